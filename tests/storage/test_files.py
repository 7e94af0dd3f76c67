"""Files that survive a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.evaluation.journal import Journal
from rkd.storage.files import append_line, write_atomic


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(RkdError, match="No space left"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(RkdError, match="cannot write"):
        write_atomic(tmp_path / "nowhere" / "file", b"")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / f".report.html.{os.getpid()}.tmp").symlink_to(precious)  # the name that a write uses
    write_atomic(run / "report.html", b"a page")
    assert (run / "report.html").read_text() == "a page"
    (run / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(RkdError, match="cannot write"):
        append_line(run / "metrics.jsonl", "{}")
    (run / "journal").symlink_to(tmp_path)
    with pytest.raises(RkdError, match="link"):
        Journal(run / "journal").open("abc")
    assert precious.read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir()) == ["precious", "run"]
