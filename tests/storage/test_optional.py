"""Packages that may be missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.storage.optional import optional


def test_an_optional_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert optional("json.decoder", "x", "this").JSONDecoder
    with pytest.raises(RkdError, match=r"^this needs rkd_none: pip install 'rkd-toolkit\[x\]'$"):
        optional("rkd_none.inner", "x", "this")
    (tmp_path / "rkd_broken.py").write_text("import rkd_none")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(RkdError, match="it is there, and does not load: No module named 'rkd_none'"):
        optional("rkd_broken", "x", "this")
