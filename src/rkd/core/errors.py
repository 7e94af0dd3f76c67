"""The errors that rkd raises on purpose.

`RkdError` is shown to the user as one message without a traceback (exit code 2). A message says what was asked,
what there is, and what to type.
"""

from collections.abc import Sequence


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
