"""How an evaluation is carried out: its settings, the samples it takes, and the loop over their batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from torch import Tensor

from ..core.errors import DataError, RkdError
from ..core.random import key
from ..core.types import ThreatModel
from ..data.dataset import Split
from ..distributed.ranks import ALONE, Ranks
from ..nets.net import PLAIN, Accelerator
from .journal import Journal

Progress = Callable[[str, int, int], None]
"""Told the name of what is evaluated, the samples done, and those there are in all."""

Record = dict[str, Tensor]
"""What is known of one batch; `right` has a row for each sample."""


@dataclass(frozen=True, eq=False)
class EvalSettings:
    """Everything about an evaluation but the net, the data and the attacks."""

    threat: ThreatModel = field(default_factory=ThreatModel)
    classes: int | None = None
    """None: as many as the net has."""
    seed: int = 0
    """Of all random numbers; which samples `limit` takes does not depend on it."""
    batch_size: int = 256
    limit: int | None = None
    """So many samples, drawn once and for all from the split: the same for every net and seed. None: all."""
    positions: Tensor | None = None
    """`(M,)`: these very samples, whatever the limit."""
    device: torch.device | str = "cpu"
    rounded: bool = False
    """Also the accuracy after rounding each adversarial image to 8 bits inside its ball."""
    examples: int = 0
    """How many images to keep for a gallery."""
    progress: Progress | None = None
    journal: Journal | None = None
    """Where finished batches are kept; what it holds is not computed again."""
    accelerator: Accelerator = PLAIN
    """Attacks that confirm what they find run by it, such as on a faster copy of the net; every image that is counted
    is judged by the net itself all the same."""
    ranks: Ranks = ALONE
    """Processes that call this alike: each computes its share of the batches, and all get the whole result."""

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise RkdError(f"the batch size must be a whole number of at least 1, got {self.batch_size!r}")

    def plain(self) -> EvalSettings:
        """The same without a journal and further findings: an evaluation beside the main one."""
        return replace(self, journal=None, accelerator=PLAIN, rounded=False, examples=0)

    def samples(self, split: Split) -> Tensor:
        """Positions in the split of the samples to evaluate, `(N,)`. Raises DataError."""
        return choose_samples(len(split), self.limit) if self.positions is None else self.positions

    def report(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(name, done, total)


def choose_samples(count: int, limit: int | None) -> Tensor:
    """Positions of the samples to evaluate: all, or `limit` of them drawn once and for all, in order."""
    if limit is None or limit == count:
        return torch.arange(count)
    if not isinstance(limit, Integral) or not 1 <= limit <= count:
        raise DataError(f"the limit of samples must be between 1 and {count}, the size of the test data; got {limit}")
    generator = torch.Generator().manual_seed(key("evaluation subset"))
    return torch.randperm(count, generator=generator)[:limit].sort().values


def split_by_margin(rows: Tensor, margin: Tensor, batch_size: int, processes: int) -> Sequence[Tensor]:
    """`rows` in batches of at most `batch_size`, for several processes as many and as large a batch for each.

    Samples of a similar `margin` go together: where most are fooled, a batch soon shrinks, and where most are robust,
    it stays as large as it is fast. The processes are dealt theirs in turn, so that they have as much to do.
    """
    rows = rows[margin.argsort(descending=True, stable=True)]
    rounds = max(-(-len(rows) // (batch_size * processes)), 1)
    dealt = [part[place::processes] for part in rows.tensor_split(rounds) for place in range(processes)]
    return [part for part in dealt if len(part)]


def run_batches(
    name: str, batches: Sequence[Tensor], compute: Callable[[Tensor], Record], total: int, settings: EvalSettings,
    is_valid: Callable[[Record, Tensor, Record | None], bool] = lambda record, rows, other: True,
) -> list[Record]:  # fmt: skip
    """`compute(rows)` for each of `batches`, in order, with the seconds it took.

    The processes of `settings.ranks` take the batches in turn, and each gets all records. A journal's record is taken
    instead if it `is_valid` for these rows and beside another record, if there is one. The progress counts samples of
    `total`: those in no batch are done before.
    """
    journal, ranks = settings.journal, settings.ranks
    count = sum(map(len, batches))
    done = total - count
    settings.report(name, done, total)
    records: dict[int, Record] = {}
    for number, rows in enumerate(batches):
        done += len(rows)
        if number % ranks.size != ranks.rank:
            continue
        record = journal.read(name, number) if journal else None
        if record is None or not is_valid(record, rows, next(iter(records.values()), None)):
            started = time.perf_counter()
            record = compute(rows)
            record["seconds"] = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
            if journal:
                journal.write(name, number, record)
        records[number] = record
        settings.report(name, done, total)
    for others in ranks.objects(records):
        records |= others
    if sum(len(record["right"]) for record in records.values()) != count:
        raise RkdError(f"{name}: the processes evaluated other images than the {count} they were to share")
    if ranks.size > 1:
        settings.report(name, total, total)
    return [records[number] for number in range(len(batches))]
