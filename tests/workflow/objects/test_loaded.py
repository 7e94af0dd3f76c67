"""A run's folder in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import rkd

from . import SHORT, halves, small


def test_history_and_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = rkd.train(out=tmp_path / "it", student=small(), data=halves(), loss="ce", **SHORT)
    run = rkd.load_run(tmp_path / "it")
    assert run.finished and run.results["student"]["clean"] == results["student"]["clean"]
    assert [line["epoch"] for line in run.history] == [0, 1] and run.history[0]["loss"] > 0
    assert repr(run).startswith(f"<run {tmp_path / 'it'}: clean ")
    pandas = pytest.importorskip("pandas")
    assert isinstance(run.frame, pandas.DataFrame) and list(run.frame["epoch"]) == [0, 1]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(rkd.RkdError, match=r"pip install pandas; run\.history has the same"):
        _ = run.frame


def test_what_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(rkd.RkdError, match="is not a run"):
        rkd.load_run(tmp_path)
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    run = rkd.load_run(tmp_path)
    assert (run.history, run.results, run.config) == ([], {}, {"epochs": 3})
    with pytest.raises(rkd.RkdError, match="is not finished"):
        _ = run.student
