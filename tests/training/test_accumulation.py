"""A batch in parts is the same batch: gradients, weights that schedulers set, running statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import Refused
from rkd.core.run import Run
from rkd.core.step import Step
from rkd.core.trainer import fit, train_step
from rkd.data.loader import Loader
from rkd.nets.student import NetStudent
from rkd.plugins.extensions.awp import Awp
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.defaults import default_schedulers
from rkd.testing import LinearNet, OneStep, tiny_dataset, tiny_net, tiny_run
from rkd.training.accumulation import Accumulation, micro_batch_count, micro_batches
from rkd.training.dry_run import counting

CATALOG = load_catalog()


@dataclass
class Balanced:
    """Sets a weight, class weights and a temperature from everything that a step can be asked."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, Any]:
        right = ops.correct(step.student("adv"), step.labels).float()
        sure = ops.entropy(step.teacher("robust"))
        counts = torch.bincount(step.y, minlength=4).float()
        wrong = torch.zeros(4).index_add(0, step.y, 1 - right) / counts.clamp_min(1)
        moved = (step.image("adv") - step.image()).abs().flatten(1).amax(1)
        own = step.student("clean", "eval").detach().softmax(1).amax(1)
        self.seen.append({"size": len(step.batch), "sure": sure, "moved": moved, "own": own, **terms})
        return {
            "weight.adv": 1 + terms["adv"].detach().median(),
            "class_weights": 0.5 + wrong + 0.1 * own.mean(),
            "T": 1 + sure.max(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class TwoTerms:
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "pgd"}
    weights: ClassVar[Mapping[str, float]] = {"clean": 0.3}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        clean, adv = step.students("clean", "adv")
        return {"clean": ops.cross_entropy(clean, step.y), "adv": ops.kl(adv, step.teacher(), step.knob("T"))}


def a_run(loss: Any, accumulation: int, net: Any = LinearNet, **settings: Any) -> Run:
    data = tiny_dataset(33)  # 22 to train on: 10, 10 and 2
    student = NetStudent(tiny_net(net))
    return tiny_run(
        loss, attack=OneStep(), data=data, batch_size=10, student=student, backward=Accumulation(accumulation),
        optimizer=torch.optim.SGD(student.net.parameters(), 0.05, momentum=0.9), **settings,
    )  # fmt: skip


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.student.net.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOG.names("loss"))
def test_every_method_learns_the_same_in_parts(name: str) -> None:
    ends = []
    for accumulation in (1, 3):
        loss = CATALOG.create("loss", name)
        schedulers = {name: CATALOG.create("scheduler", name) for name in default_schedulers(loss)}
        run = a_run(loss, accumulation, schedulers=schedulers, epochs=2)
        if "attack" not in loss.defaults:
            run.attacks = {}
        elif loss.defaults["attack"] == "pgd-joint":  # makes two views
            run.attacks["adv"] = replace(run.attacks["adv"], attack=CATALOG.create("attack", "pgd-joint", {"steps": 2}))
        fit(run)
        ends.append((weights(run), run.state.history[-1]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-5)
    for key in ends[0][1].keys() - {"seconds"}:
        assert ends[0][1][key] == pytest.approx(ends[1][1][key], rel=1e-4, abs=1e-6), key


def test_schedulers_see_the_whole_batch_once() -> None:
    whole, parts = (a_run(TwoTerms(), n, schedulers={"s": Balanced()}) for n in (1, 4))
    for batch in whole.loader.batches(0):
        for run in (whole, parts):
            train_step(run, batch)
    for one, other in zip(whole.schedulers["s"].seen, parts.schedulers["s"].seen, strict=True):
        assert one.keys() == other.keys() and one["size"] == other["size"]
        for name in one.keys() - {"size"}:
            torch.testing.assert_close(one[name].detach(), other[name], rtol=1e-4, atol=1e-5)
            assert one["size"] == 2 or not other[name].requires_grad
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-5)
    assert len(parts.schedulers["s"].seen) == 3


def test_awp_in_parts() -> None:
    ends = []
    for accumulation in (1, 3):
        run = a_run(TwoTerms(), accumulation, extensions={"awp": Awp(0.05)}, schedulers={"s": Balanced()})
        fit(run)
        ends.append(weights(run))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedulers", [{}, {"s": Balanced()}])
def test_running_statistics_see_each_part_once(schedulers: dict[str, Any]) -> None:
    from rkd.testing import TinyNet

    run = a_run(TwoTerms(), 5, TinyNet, schedulers=schedulers)
    batch = next(run.loader.batches(0))
    before = int(run.student.net.arch.norm.num_batches_tracked)
    train_step(run, batch)
    assert int(run.student.net.arch.norm.num_batches_tracked) - before == 10, "five parts, two views"


def test_what_parts_cost() -> None:
    """Forwards of one part are the smaller; a search, a teacher and a graph are never paid twice."""

    def cost(accumulation: int, schedulers: dict[str, Any]) -> tuple[int, int, int]:
        run = a_run(TwoTerms(), accumulation, schedulers=schedulers)
        step = run.step(next(run.loader.batches(0)))
        with counting({"student": run.student.net, "teacher": run.teachers["robust"].net}) as counts:
            run.backward(run, step)
        return counts["student"].forwards, counts["student"].backwards, counts["teacher"].forwards

    assert cost(1, {}) == (3, 3, 1)
    assert cost(5, {}) == (15, 15, 5)
    anl = {"anl": CATALOG.create("scheduler", "anl")}
    assert cost(5, anl) == (25, 15, 5), "two views once more each"


def test_dropout_is_the_same_at_both_looks() -> None:
    class Dropped(LinearNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))

    seen = Balanced()
    run = a_run(TwoTerms(), 2, Dropped, schedulers={"s": seen})
    train_step(run, next(run.loader.batches(0)))
    assert torch.equal(seen.seen[0]["clean"], run.terms["clean"]) and torch.equal(seen.seen[0]["adv"], run.terms["adv"])


def test_no_part_is_a_single_image() -> None:
    assert [micro_batch_count(10, n) for n in (1, 3, 5, 8)] == [1, 3, 5, 5]
    assert micro_batch_count(2, 4) == micro_batch_count(3, 4) == micro_batch_count(1, 4) == 1
    loader = Loader(tiny_dataset(33).train, 10, 0)
    assert [len(batch) for batch in loader.batches(0)] == [10, 10, 2]


def test_the_search_is_the_same_in_parts(catalog: Catalog) -> None:
    run = a_run(TwoTerms(), 1)
    run.attacks["adv"] = type(run.attacks["adv"])(
        catalog.create("attack", "pgd", {"steps": 3}), catalog.create("objective", "ce")
    )
    step, other = (run.step(next(run.loader.batches(0))) for _ in range(2))
    in_parts = torch.cat([part.image("adv") for part in micro_batches(other, 3)])
    torch.testing.assert_close(step.image("adv"), in_parts, rtol=0, atol=1e-6)


def test_a_search_that_others_would_wait_for_is_refused() -> None:
    """With synchronised batch norms, samples that leave in one process alone would leave the others waiting."""

    class Leaves(OneStep):
        def __call__(self, x: Tensor, target: Any) -> Tensor:
            target.select(torch.tensor([0])).gradient(x[:1])
            return super().__call__(x, target)

    run = a_run(TwoTerms(), 1)
    for mode, synchronised, refused in (("train", True, True), ("train", False, False), ("eval", True, False)):
        attack = Leaves()
        attack.mode = mode  # type: ignore[misc]
        run.attacks["adv"] = replace(run.attacks["adv"], attack=attack)
        step = run.step(next(run.loader.batches(0)))
        step.synchronised = synchronised
        if refused:
            with pytest.raises(Refused, match=r"attack\.mode=eval"):
                step.image("adv")
        else:
            assert step.image("adv").shape == step.image().shape


def test_schedulers_see_the_targets_of_the_whole_batch() -> None:
    class Taught(TwoTerms):
        def targets(self, step: Step) -> Tensor:
            return step.teacher().softmax(1)

    class Seeing:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def update(self, step: Step, terms: Mapping[str, Tensor]) -> dict[str, float]:
            self.seen.append(step.targets)
            return {"T": 1.0}

    both = []
    for accumulation in (1, 3):
        run = a_run(Taught(), accumulation, schedulers={"seeing": (scheduler := Seeing())})
        train_step(run, next(run.loader.batches(0)))
        both += scheduler.seen
    torch.testing.assert_close(*both)
