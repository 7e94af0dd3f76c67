"""Trainings whose outcome is kept in the cache: a run in a folder named by a hash of its whole configuration and the
data's fingerprint. Two processes that want the same one: the first trains under a file lock, the second waits.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from rkd import __version__
from rkd.core.errors import RkdError, TrainingFailed
from rkd.data.dataset import Dataset
from rkd.distributed.ranks import Ranks
from rkd.registry.recipes import Table
from rkd.storage.runfolder import RunFolder

from ..folders import cache_folder
from ..plan import Reporter


class TrainRun(Protocol):
    """`rkd.workflow.train.train_run`, which prepares and is itself in need of what is prepared."""

    def __call__(
        self, table: Mapping[str, Any], catalog: Any, path: Path, reporter: Reporter | None = None, *,
        title: str = ..., dry_run: bool = ..., limit_minutes: float | None = ..., how_to_avoid: str = ...,
        resume: bool = ..., ranks: Ranks = ...,
    ) -> Mapping[str, Any]: ...  # fmt: skip


def place_of_prepared(table: Table, kind: str, names: tuple[str | None, ...], data: Dataset) -> Path:
    """The folder of a training under `kind` in the cache."""
    # The attacks of the evaluation, the device, checkpoints and the place of the data change nothing about the net.
    table = {key: value for key, value in table.items() if key not in ("evaluate", "device", "checkpoint")}
    table["data"] = {key: value for key, value in table["data"].items() if key not in ("dir", "download")}
    digest = hashlib.sha256(json.dumps([__version__, table, data.fingerprint], sort_keys=True).encode()).hexdigest()
    # All names may be a stranger's: a recipe names the role, a plugin the data set.
    return cache_folder() / kind / "-".join([*map(_slug, (data.name.split(":")[0], *names)), digest[:12]])


def is_prepared(folder: Path) -> bool:
    """Whether the training that belongs into `folder` is complete."""
    return (folder / "evaluation.json").is_file()


def prepare_into(
    folder: Path, what: str, train: Callable[[Path, bool], Any], reporter: Reporter, ranks: Ranks, how_to_change: str
) -> None:
    """Have `folder` by `train(path, resume)`, unless another process is quicker. `what`: "the robust teacher".

    Raises RkdError, TrainingFailed.
    """
    unfinished = folder.with_name(f"{folder.name}.part")
    with _lock(folder, reporter, ranks):
        if ranks.from_first(is_prepared(folder)):
            return
        begun = RunFolder(unfinished)
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)  # an earlier version's half
        if not ranks.from_first(begun.finished):
            try:
                _train(begun, what, train, reporter, ranks)
            except TrainingFailed as error:
                error.add_note(f"that is {what}; {how_to_change}")
                raise
        ranks.once(lambda: unfinished.rename(folder))


def _train(begun: RunFolder, what: str, train: Callable[[Path, bool], Any], reporter: Reporter, ranks: Ranks) -> None:
    """Train, or go on with a training that was killed."""
    if ranks.from_first(begun.config.is_file()):
        reporter.message(f"continuing with {what}, which another process began ({begun.path})")
        try:
            train(begun.path, True)
            return
        except RkdError as error:
            # Whatever is wrong with what was left there, the user has not asked for it by name.
            reporter.message(f"it cannot be continued ({error}); it is prepared anew")
    ranks.once(lambda: shutil.rmtree(begun.path, ignore_errors=True))
    try:
        train(begun.path, False)
    except TrainingFailed:
        if ranks.first:
            shutil.rmtree(begun.path, ignore_errors=True)
        raise


@contextmanager
def _lock(folder: Path, reporter: Reporter, ranks: Ranks) -> Iterator[None]:
    """Inside, no other job prepares this very net."""
    lock = FileLock(f"{folder}.lock")

    def acquired(seconds: float) -> bool:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            place = f"the cache folder {folder.parent}"
            raise RkdError(f"cannot write into {place}: {error.strerror}; set RKD_CACHE") from None
        return True

    if not ranks.once(lambda: acquired(1)):
        reporter.message(f"waiting for another process that prepares {folder}")
        # From time to time the other processes of this job hear that it still waits.
        while not ranks.once(lambda: acquired(60)):
            continue
    try:
        yield
    finally:
        if ranks.first:
            lock.release()


def _slug(name: str | None) -> str:
    return "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else "-" for c in name or "")[:60].lstrip(".")
