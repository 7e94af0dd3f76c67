"""python -m rkd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_python_m_imports_nothing_from_a_strangers_folder(tmp_path: Path) -> None:
    for name in ("torch", "tomllib", "click"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    said = subprocess.run([sys.executable, "-m", "rkd", "recipes"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "pwned").exists()
