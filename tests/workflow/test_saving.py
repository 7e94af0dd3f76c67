"""What `rkd eval --save` keeps is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.registry.catalog import Catalog
from rkd.storage.runfolder import RunFolder
from rkd.workflow.evaluate import EvalRequest, evaluate_request

from .test_train import CATALOG, table
from .test_train import train_run as train


@pytest.mark.slow
@pytest.mark.parametrize("file", ["evaluation.json", "net.json", "evaluation.toml", "manifest.json"])
def test_killed_while_it_is_saved(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    """Killed just after evaluation.json, it was refused for good, and `rkd compare` took the half folder for whole."""
    train(table(epochs=1, evaluate={"attacks": [], "limit": 20, "checks": "off"}), CATALOG, tmp_path / "run")
    request = EvalRequest(str(tmp_path / "run"), attacks=[], checks="off", save=str(tmp_path / "saved"))
    write = RunFolder.write_text
    write_json = RunFolder.write_json

    def killed(self: RunFolder, path: Path, content: object) -> None:
        (write if path.suffix == ".toml" else write_json)(self, path, content)  # type: ignore[operator]
        if path.name == file:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_text", killed)
        patch.setattr(RunFolder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_request(request, catalog)
    assert not list((tmp_path / "saved").iterdir()), "as empty as at the start"
    with pytest.raises(RkdError, match="is not a run"):
        RunFolder.open_results(tmp_path / "saved")
    evaluate_request(request, catalog)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"evaluation.json", "net.json", "evaluation.toml", "manifest.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "saved"]
