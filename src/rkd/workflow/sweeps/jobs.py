"""`rkd run` as processes of this machine, and as jobs of SLURM by submitit: one task for each process, sent again where
it was when its time is over.

submitit's own local executor is not used for the first: it is an extra, and does not deal out GPUs.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rkd.core.errors import RkdError
from rkd.storage.files import open_file, open_to_append
from rkd.storage.text import MOST_JSON, command

from ..forecast import duration
from .sweep import Point, Sweep, state_of


class LocalRuns:
    """Runs of a sweep on this machine, `jobs` at a time, each of `processes`, with its output in `FOLDER/NAME.log`.

    `words` are further options of each run; `tell` is told of runs that are done.
    """

    def __init__(
        self, sweep: Sweep, folder: Path, words: Sequence[str], jobs: int, processes: int, tell: Callable[[str], None]
    ) -> None:
        self.sweep, self.folder, self.words = sweep, folder, words
        self.jobs, self.processes, self.tell = jobs, processes, tell
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.lock = threading.Lock()
        self.stopped = False
        self.slots = list(range(jobs))
        self.gpus = _gpus() if jobs > 1 else []

    def carry_out(self, points: Sequence[Point]) -> dict[str, str]:
        """Names of runs that failed, and why. After a KeyboardInterrupt `stop` has to be called."""
        pool = ThreadPoolExecutor(self.jobs)
        futures = {point.name: pool.submit(self._run, point) for point in points}
        while any(not future.done() for future in futures.values()):
            time.sleep(0.2)
        pool.shutdown()
        return {name: reason for name, future in futures.items() if (reason := future.result()) is not None}

    def stop(self, terminate: bool) -> None:
        """Begin no further run, and wait for those that are running; `terminate`: ask them to save and stop."""
        with self.lock:
            self.stopped = True
            running = list(self.running.values())
        for process in running:
            if terminate:
                process.terminate()
        for process in running:
            process.wait()

    def _run(self, point: Point) -> str | None:
        """Carry out one run. Returns why it failed, or None."""
        log = self.folder / f"{point.name}.log"
        try:
            opened = open_to_append(log)
        except OSError as error:
            return f"cannot write {log}: {error.strerror}"
        with opened as output:
            if not self._wait_for_log(output, point):
                return "stopped"
            if state_of(self.folder / point.name) == "finished":  # by another process, meanwhile
                return None
            began = time.monotonic()
            with self.lock:
                if self.stopped:
                    return "stopped"
                slot = self.slots.pop()
                process = self.running[point.name] = self._start(point, output, slot)
            code = process.wait()
        with self.lock:
            del self.running[point.name]
            self.slots.append(slot)
        if code:
            return _last_error(log) or f"exit code {code}"
        self.tell(f"{point.name}: done in {duration(time.monotonic() - began)}")
        return None

    def _start(self, point: Point, output: BinaryIO, slot: int) -> subprocess.Popen[bytes]:
        start = [sys.executable, "-m"]
        if self.processes > 1:
            start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        command = [*start, "rkd", *self.sweep.words(point, self.folder, self.words)]
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def _wait_for_log(self, output: BinaryIO, point: Point) -> bool:
        """Wait until no other process writes this log: the run of a sweep that was killed may outlive it. False: the
        sweep was stopped meanwhile.

        A lock on an open file is the child's as well, and ends with the last of them.
        """
        try:
            import fcntl
        except ImportError:
            return True  # not on Windows: the run itself refuses to be carried out twice
        told = False
        while not self.stopped:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if not told:
                    self.tell(f"{point.name}: waiting for another process that carries it out")
                told = True
                time.sleep(0.5)
        return False


def _gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(number) for number in range(torch.cuda.device_count())]


def _last_error(log: Path) -> str:
    with open_file(log) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_JSON))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


@dataclass(frozen=True)
class Job:
    """One task, `rkd WORDS`: pickled by submitit and called on the node, once for each process.

    `run`: the folder of the run that the words begin; once it is there it is continued.
    """

    words: tuple[str, ...]
    run: str

    def __call__(self) -> str:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        state = state_of(Path(self.run))
        if state == "finished":
            return self.run
        words = ["run", "--resume", self.run] if state == "begun" else list(self.words)
        # A process of its own, and a group: SLURM's SIGUSR2, by which submitit knows that the time is over, must not
        # reach it.
        process = subprocess.Popen([sys.executable, "-m", "rkd", *words], start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            _let_it_save(process)
            raise
        if code:
            raise RuntimeError(f"`{command(*words)}` ended with {code}; see the job's log")
        return self.run

    def checkpoint(self, *arguments: Any) -> Any:
        """The job's time is over, or another needs the node: the same again, from the run's last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _let_it_save(process: subprocess.Popen[bytes]) -> None:
    """The job has been sent again: let the run end its step and save. Where it is one of several processes, the others
    stop after the same step."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
        return
    process.kill()


def executor(logs: Path, cluster: str | None, parameters: Mapping[str, Any]) -> Any:
    """submitit's executor. `cluster`: `slurm`, `local`, or None for SLURM where it is installed. Raises RkdError."""
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise RkdError("submitit is needed to submit jobs: pip install 'rkd-toolkit[slurm]'") from None
    try:
        chosen = AutoExecutor(folder=logs, cluster=cluster)
        if chosen.cluster == "local" and cluster is None:
            raise RkdError("there is no SLURM on this machine (no srun); --cluster local runs the job here")
        chosen.update_parameters(**parameters)
    except (TypeError, ValueError, NameError, RuntimeError) as error:
        raise RkdError(f"submitit does not take these parameters: {str(error).splitlines()[0]}") from None
    return chosen


def submit(jobs: Sequence[Job], logs: Path, cluster: str | None, parameters: Mapping[str, Any]) -> list[Any]:
    """Send jobs off, as one array where there are several. Returns submitit's jobs. Raises RkdError."""
    queue = executor(logs, cluster, parameters)
    if len(jobs) == 1:
        return [queue.submit(jobs[0])]
    with queue.batch():
        sent = [queue.submit(job) for job in jobs]
    return sent
