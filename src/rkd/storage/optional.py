"""Packages that an extra of rkd-toolkit brings, and that may be missing."""

import importlib
from typing import Any

from ..core.errors import RkdError


def optional(module: str, extra: str, purpose: str) -> Any:
    """The module of an optional package, which an extra of rkd-toolkit brings; `purpose` is what needs it. Raises
    RkdError, with what to type, where it is missing or does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        why = "" if missing else f" (it is there, and does not load: {error})"
        raise RkdError(f"{purpose} needs {package}{why}: pip install 'rkd-toolkit[{extra}]'") from None
