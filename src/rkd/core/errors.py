"""The errors that rkd raises on purpose.

`RkdError` is shown to the user as one message without a traceback (exit code 2). A message says what was asked,
what there is, and what to type.
"""

import importlib
from collections.abc import Sequence
from typing import Any


class RkdError(Exception):
    """A mistake that the user can mend."""


class ConfigError(RkdError):
    """One or several problems in a recipe, an option or a `--set`, all reported at once."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownName(RkdError):
    """A name that nothing provides, with the nearest known ones."""


class DataError(RkdError):
    """Images, labels or a data set that cannot be used."""


class WeightsError(RkdError):
    """A weights file that is missing, corrupt or made for another architecture."""


class Refused(RkdError):
    """A combination of parts that makes no sense, with the reason."""


class NotFinite(RkdError):
    """A net whose logits are no numbers."""


class TrainingFailed(RkdError):
    """Training broke: a loss or a weight that is not finite."""


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop (SIGINT, SIGTERM), has finished its step and saved its state."""


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
