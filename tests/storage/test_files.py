"""Files that survive a crash."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.evaluation.journal import Journal
from rkd.storage import files
from rkd.storage.files import (
    MOST_TENSORS,
    append_line,
    check_safetensors,
    make_room,
    open_file,
    remove_abandoned,
    whole_folder,
    write_atomic,
)
from rkd.storage.serialize import load_state, load_weights
from rkd.storage.text import read_text


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
    files._temporary(run / "report.html").symlink_to(precious)  # the name that a write uses
    write_atomic(run / "report.html", b"a page")
    assert (run / "report.html").read_text() == "a page"
    (run / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(RkdError, match="cannot write"):
        append_line(run / "metrics.jsonl", "{}")
    (run / "journal").symlink_to(tmp_path)
    with pytest.raises(RkdError, match="link"):
        Journal(run / "journal").open("abc")
    assert precious.read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir()) == ["precious", "run"]


def test_only_files_are_opened(tmp_path: Path) -> None:
    """A FIFO in place of a file was waited for without end."""
    os.mkfifo(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match=r"no file|\[Errno"):
            open_file(path)
        for read in (read_text, load_state, load_weights):
            with pytest.raises(RkdError, match="no file"):
                read(path)
        with pytest.raises(RkdError, match="cannot write"):
            append_line(path, "{}")
    listening.close()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a" / "new") as work:
        (work / "half").touch()
        raise KeyboardInterrupt
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "a" / "new").mkdir()  # an empty one is as good as none
    with whole_folder(tmp_path / "a" / "new") as work:
        (work / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "new").iterdir()] == ["file"]
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "a" / "new"):
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


def test_what_killed_processes_were_writing_goes(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = files._temporary(tmp_path / "page.html")
    for name in (mine.name, mine.name.replace(str(os.getpid()), str(ended.pid)), ".notes.1.tmp", "page.html"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{files._HOST}-{ended.pid}.tmp").mkdir()
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, ".notes.1.tmp", "page.html"])


def test_a_header_of_a_million_tensors_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % number for number in range(MOST_TENSORS + 1)) + "}").encode()
    for size, words in ((len(header), "50,001 tensors; at most 50,000"), (1 << 40, "at most 67,108,864")):
        file.write_bytes(struct.pack("<Q", size) + header)
        with pytest.raises(ValueError, match=words):
            check_safetensors(file)
        with pytest.raises(RkdError, match=words):
            load_weights(file)


def test_older_files_make_room(tmp_path: Path) -> None:
    for number, name in enumerate(["old", "older", "mine", "new"]):
        path = tmp_path / f"{name}.answers"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number) if name != "older" else (1, 1))
    (tmp_path / "else").write_bytes(bytes(1000))
    make_room(tmp_path, "*.answers", 90, 400, {tmp_path / "mine.answers"})
    assert {path.name for path in tmp_path.iterdir()} == {"old.answers", "mine.answers", "new.answers", "else"}
    make_room(tmp_path, "*.answers", 250, 400, {tmp_path / "mine.answers"})
    assert {path.name for path in tmp_path.iterdir()} == {"mine.answers", "else"}
