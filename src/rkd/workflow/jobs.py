"""`rkd run` as jobs of SLURM, by submitit: one task for each process, sent again where it was when its time is over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkd.core.errors import RkdError

from .sweep import state_of


@dataclass(frozen=True)
class Job:
    """What a task does: `rkd WORDS`. Pickled by submitit and called on the node, once for each process.

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
            raise RuntimeError(f"rkd {' '.join(words)} ended with {code}; see the job's log")
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
        found = AutoExecutor(folder=logs, cluster=cluster)
        if found.cluster == "local" and cluster is None:
            raise RkdError("there is no SLURM on this machine (no srun); --cluster local runs the job here")
        found.update_parameters(**parameters)
    except (TypeError, ValueError, NameError, RuntimeError) as error:
        raise RkdError(f"submitit does not take these parameters: {str(error).splitlines()[0]}") from None
    return found


def submit(jobs: Sequence[Job], logs: Path, cluster: str | None, parameters: Mapping[str, Any]) -> list[Any]:
    """Send jobs off, as one array where there are several. Returns submitit's jobs. Raises RkdError."""
    where = executor(logs, cluster, parameters)
    if len(jobs) == 1:
        return [where.submit(jobs[0])]
    with where.batch():
        sent = [where.submit(job) for job in jobs]
    return sent
