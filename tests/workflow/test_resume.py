"""A run goes on with its own configuration, or with one that was accepted; killed in between, nothing is stuck."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rkd.core.errors import RkdError, Stopped
from rkd.storage.runfolder import RunFolder
from rkd.workflow.resume import check_config, digest
from rkd.workflow.train import train_run

from .test_train import CATALOG, StopsAt, table


@pytest.mark.slow
def test_a_change_that_is_killed_on_its_way_is_brought_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    small = table(validate={"steps": 1, "limit": 20}, evaluate={"attacks": [], "limit": 20, "checks": "off"})
    train_run(small | {"epochs": 1}, CATALOG, path)
    folder = RunFolder(path)
    old = folder.config.read_text()

    def killed(self: RunFolder, text: str) -> None:
        raise KeyboardInterrupt

    longer = tomllib.loads(old) | {"epochs": 2}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(longer, CATALOG, path, resume=True, changed=True)
    assert folder.config.read_text() == old and not folder.finished
    check_config(folder)
    assert tomllib.loads(folder.config.read_text())["epochs"] == 2
    train_run(tomllib.loads(folder.config.read_text()), CATALOG, path, resume=True)
    assert [line["epoch"] for line in folder.history()] == [0, 1] and folder.finished
    folder.config.write_text(old)  # put back by somebody: not taken for a change on its way
    with pytest.raises(RkdError, match="epochs 2 -> 1"):
        check_config(folder)
    check_config(folder, accept=True)


@pytest.mark.slow
def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        train_run(table(), CATALOG, path, StopsAt(0, 0))
    folder = RunFolder(path)
    folder.last.unlink()
    check_config(folder)
    assert folder.read_json(folder.manifest)["config"] == digest(folder.config.read_text())
    folder.config.write_text("")
    with pytest.raises(RkdError, match="has changed since the run began"):
        check_config(folder)
