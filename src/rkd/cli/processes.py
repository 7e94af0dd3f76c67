"""A command in several processes of this machine, by torchrun's launcher."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence

COMMAND = (sys.executable, "-m", "rkd")
"""What each process runs, before the words of the command line."""


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or a job system, has started this process beside others."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def in_processes(words: Sequence[str], count: int) -> int:
    """Run `rkd WORDS` in `count` processes that share the machine's cores; the first one shows results.

    Returns the exit code: of the first to fail, whereupon the others are ended, or 0. Signals are passed on.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the process that fails has told already
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=f"rkd-{os.getpid()}", max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    program, *arguments = COMMAND
    try:
        elastic_launch(config, program)(*arguments, *words)
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        return code if code >= 0 else 128 - code  # as a shell tells of a signal
    except SignalException as signal:
        return 128 + int(signal.sigval)
    return 0
