"""A run's folder, for who goes on with it in Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.core.errors import RkdError
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.registry.recipes import read_recipe
from rkd.storage.runfolder import RunFolder

from ..manifest import earlier_manifest
from ..nets import load_run

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run, finished or not. `config`, `manifest` and `results` are tables as its files hold them; an unfinished run
    has no results. `history` holds a table for each epoch: `epoch` (from 0), `loss`, `loss.TERM`, `lr`, `val.clean`,
    `val.robust`, weights and temperatures of schedulers."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    results: dict[str, Any]
    history: list[dict[str, Any]]
    catalog: Catalog

    @property
    def finished(self) -> bool:
        return bool(self.results)

    @property
    def student(self) -> Net:
        """In eval mode, frozen, images `(B, C, H, W)` in [0, 1] to logits `(B, K)`. Raises RkdError, WeightsError."""
        if not self.finished:
            raise RkdError(f"{self.path} is not finished: it has no student yet")
        return load_run(self.path, self.catalog).net

    @property
    def frame(self) -> "pandas.DataFrame":
        """`history` as a pandas data frame with a row an epoch. Raises RkdError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise RkdError("run.frame needs pandas: pip install pandas; run.history has the same as dicts") from None
        return pandas.DataFrame(self.history)

    def __repr__(self) -> str:
        student: Mapping[str, Any] = self.results.get("student", {})
        shown = [f"{key} {student[key]:.1%}" for key in ("clean", "worst_case") if isinstance(student.get(key), float)]
        state = ", ".join(shown) if self.finished else f"unfinished, {len(self.history)} epochs"
        return f"<run {self.path}: {state}>"


def loaded_run(path: str | Path, catalog: Catalog) -> LoadedRun:
    """Raises RkdError for a folder that is no run."""
    folder = RunFolder.open(path)
    results = folder.read_json(folder.evaluation) if folder.finished else {}
    history = [line for line in folder.lines() if "epoch" in line] if folder.metrics.exists() else []
    return LoadedRun(folder.path, read_recipe(folder.config), earlier_manifest(folder), results, history, catalog)
