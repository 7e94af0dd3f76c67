"""Where rkd keeps what can be made again: prepared teachers, journals."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`RKD_CACHE`, else `$XDG_CACHE_HOME/rkd`, else `~/.cache/rkd`."""
    if "RKD_CACHE" in os.environ:
        return Path(os.environ["RKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rkd"
