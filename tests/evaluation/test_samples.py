"""Which samples an evaluation takes, and the loop over their batches."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import DataError, RkdError
from rkd.core.random import Noise
from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.distributed.ranks import Ranks
from rkd.evaluation.corruptions import corrupted_accuracy
from rkd.evaluation.curve import curve
from rkd.evaluation.journal import Journal
from rkd.evaluation.samples import EvalSettings, choose_samples, run_batches, split_by_margin
from rkd.evaluation.transfer import transfer_matrix
from rkd.plugins.attacks.cw_l2 import CwL2
from rkd.plugins.attacks.pgd import Pgd
from rkd.testing import tiny_batch, tiny_net
from rkd.testing.tiny import cross_entropy


def test_samples_are_all_or_the_same_few() -> None:
    assert torch.equal(choose_samples(10, 10), torch.arange(10))
    few = choose_samples(50, 15)
    assert torch.equal(few, choose_samples(50, 15)) and torch.equal(few, few.sort().values) and len(few.unique()) == 15
    for limit in (0, -1, 11, 2.5):
        with pytest.raises(DataError, match="between 1 and 10"):
            choose_samples(10, limit)


def test_settings_say_which_samples() -> None:
    split = ArraySplit(torch.zeros(6, 1, 2, 2), torch.zeros(6))
    assert torch.equal(EvalSettings().samples(split), torch.arange(6))
    assert torch.equal(EvalSettings(limit=2).samples(split), choose_samples(6, 2))
    assert EvalSettings(limit=2, positions=torch.tensor([5])).samples(split).tolist() == [5]


@pytest.mark.parametrize("size", [0, -1, 2.5, "8"])
def test_a_batch_size_that_is_none(size: object) -> None:
    with pytest.raises(RkdError, match="batch size must be a whole number of at least 1"):
        EvalSettings(batch_size=size)


@pytest.mark.parametrize(
    ("count", "size", "processes"), [(197, 125, 2), (810, 256, 2), (5, 100, 4), (3, 2, 8), (9, 4, 1)]
)
def test_batches_are_shared_equally(count: int, size: int, processes: int) -> None:
    margin = torch.rand(count, generator=torch.Generator().manual_seed(1))
    parts = split_by_margin(torch.arange(count), margin, size, processes)
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(count))
    for first in range(0, len(parts) - processes, processes):
        now, next_ones = (margin[torch.cat(list(parts[at : at + processes]))] for at in (first, first + processes))
        assert now.min() >= next_ones.max(), "those of the largest margin come first, shared by all"
    sizes = [len(part) for part in parts]
    assert max(sizes) <= size and min(sizes) > 0
    if processes > 1 and count >= processes:
        assert len(parts) % processes == 0 and max(sizes) - min(sizes) <= 1
    assert not split_by_margin(torch.arange(0), torch.rand(0), size, processes)


def square(rows: Tensor) -> dict[str, Tensor]:
    return {"right": rows % 2 == 0, "square": rows**2}


def test_records_come_in_order_and_the_progress_counts_samples(tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    settings = EvalSettings(progress=lambda *news: told.append(news))
    batches = torch.tensor([6, 7, 8, 9]).split(3)
    records = run_batches("x", batches, square, 10, settings)
    assert [record["square"].tolist() for record in records] == [[36, 49, 64], [81]]
    assert all(record["seconds"].shape == (1,) for record in records)
    assert told == [("x", 6, 10), ("x", 9, 10), ("x", 10, 10)]
    assert run_batches("x", (), square, 10, settings) == [] and told[-1] == ("x", 10, 10)


def test_a_journals_records_are_not_computed_again(tmp_path) -> None:
    journal = Journal(tmp_path)
    journal.open("0" * 32)
    settings, calls = EvalSettings(journal=journal), []

    def compute(rows: Tensor) -> dict[str, Tensor]:
        calls.append(rows.tolist())
        return square(rows)

    batches = torch.arange(5).split(2)
    first = run_batches("x", batches, compute, 5, settings)
    again = run_batches("x", batches, compute, 5, settings)
    assert len(calls) == 3 and all(torch.equal(a["square"], b["square"]) for a, b in zip(first, again, strict=True))
    run_batches("x", batches, compute, 5, settings, lambda record, rows, other: len(rows) == 2)
    assert calls[3:] == [[4]], "what does not fit is computed"


@dataclass(frozen=True)
class Pair(Ranks):
    """The second of two processes, with what the first one says."""

    first_says: object = None

    def objects(self, mine):
        return [self.first_says, mine]


def test_processes_take_batches_in_turn() -> None:
    batches, calls = torch.arange(6).split(2), []

    def compute(rows: Tensor) -> dict[str, Tensor]:
        calls.append(rows.tolist())
        return square(rows)

    theirs = {number: square(batches[number]) for number in (0, 2)}
    ranks = Pair(rank=1, size=2, first_says=theirs)
    records = run_batches("x", batches, compute, 6, EvalSettings(ranks=ranks))
    assert calls == [[2, 3]] and torch.equal(torch.cat([r["square"] for r in records]), torch.arange(6) ** 2)
    with pytest.raises(RkdError, match="other images than the 6"):
        run_batches("x", batches, compute, 6, EvalSettings(ranks=replace(ranks, first_says={0: theirs[0]})))


@dataclass(frozen=True)
class Thread(Ranks):
    """One of two processes in one, each a thread that waits for the other."""

    said: tuple[Queue[object], Queue[object]] = field(default_factory=lambda: (Queue(), Queue()))

    def objects(self, mine):
        self.said[self.rank].put(mine)
        theirs = self.said[1 - self.rank].get(timeout=60)
        return [theirs, mine] if self.rank else [mine, theirs]

    def from_first(self, value):
        return self.objects(value)[0]


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.images = tiny_net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.net(x)


def darker(x: Tensor, severity: int, noise: Noise) -> Tensor:
    return x * (1 - 0.1 * severity)


@pytest.mark.parametrize("what", ["corruptions", "curve", "nearest", "transfer"])
def test_processes_share_what_stands_beside_an_evaluation(what: str) -> None:
    batch = tiny_batch(64)
    split = ArraySplit(batch.x, batch.y)
    attack = {"curve": Pgd(steps=2), "transfer": Pgd(steps=2), "nearest": CwL2(steps=2, searches=1)}.get(what)
    plan = AttackPlan(attack, cross_entropy)
    original = Asked().eval()  # drawn once: threads share torch's random state

    def run(ranks: Ranks) -> tuple[Any, int]:
        net, settings = (
            copy.deepcopy(original),
            EvalSettings(ranks=ranks, batch_size=8, threat=ThreatModel("L2", 0.5, 0.1)),
        )
        if what == "corruptions":
            found = corrupted_accuracy(net, split, {"darker": darker}, settings)
        elif what == "transfer":
            found = transfer_matrix({"one": net}, split, plan, settings)
        else:
            found = curve(net, split, "it", plan, [0.1, 0.5], settings)
        return found, net.images

    alone, images = run(Ranks())
    said = (Queue(), Queue())
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(run, [Thread(rank, 2, said=said) for rank in range(2)]))
    assert [found for found, _ in both] == [alone, alone]
    assert max(asked for _, asked in both) < 0.8 * images, "each does its part"
