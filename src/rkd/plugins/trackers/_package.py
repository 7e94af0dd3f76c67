"""What the trackers share. Not a plugin."""

from importlib.util import find_spec

from rkd.plugin import RkdError


def check_tracker(name: str, package: str, every: int) -> None:
    """Raise for a tracker that cannot be: said when a run's settings are read, not when it begins to train."""
    if every < 0:
        raise ValueError(f"every must not be negative, got {every}")
    if find_spec(package) is None:
        raise RkdError(f"{name} needs the package {package}: pip install 'rkd-toolkit[{name}]'")
