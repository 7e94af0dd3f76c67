"""What the machine says of itself. Imports no torch."""

import contextlib
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The processor's model as Linux names it; elsewhere, and where it is not named, the architecture ("x86_64")."""
    with contextlib.suppress(OSError, StopIteration):
        lines = CPUINFO.read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()
