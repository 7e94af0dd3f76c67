"""One process at a time works on a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.storage.lock import run_lock
from rkd.storage.runfolder import RunFolder

HOLD = """
import sys, time
from rkd.storage.lock import run_lock
from rkd.storage.runfolder import RunFolder
with run_lock(RunFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with run_lock(folder):
        with pytest.raises(RkdError, match="another process is working"), run_lock(folder):
            pass
        assert folder.lock.exists()
    assert not folder.lock.exists()
    with run_lock(folder):
        pass


def test_the_system_frees_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(RkdError, match="another process"), run_lock(RunFolder(tmp_path)):
            pass
        process.kill()
        process.wait()
    with run_lock(RunFolder(tmp_path)):
        pass


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError), run_lock(RunFolder(tmp_path)):
        raise ValueError
    with run_lock(RunFolder(tmp_path)):
        pass


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RkdError, match="cannot write"), run_lock(RunFolder(tmp_path / "run")):
        pass
