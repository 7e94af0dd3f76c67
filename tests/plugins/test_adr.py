"""ADR against plain float64 loops: rectified labels, what they teach, and what the search climbs."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.run import Run
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.methods.adr import Adr, TradesAdr
from rkd.plugins.objectives.ce import ce_targets
from rkd.plugins.objectives.kl import kl_student
from rkd.registry.catalog import Catalog
from rkd.registry.schedules import Cosine, Ramp
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run
from rkd.testing.tiny import CLASSES
from rkd.training.accumulation import Accumulation
from rkd.workflow.resolve import resolve

from .by_hand import Setting, difference, kl, onehot, softmax


def half_way(run: Run) -> None:
    """The average is not the student, and half of the training is over."""
    run.companions["average"].net.load_state_dict(tiny_net(LinearNet, seed=8).state_dict())
    run.state.batch = 1
    assert run.progress == 0.5


def rectified(z: list[float], y: list[float], T: float, lam: float) -> list[float]:
    p = softmax(z, T)
    share = min(max(lam - (max(p) - sum(a * b for a, b in zip(p, y, strict=True))), 0), 1)
    return [share * a + (1 - share) * b for a, b in zip(p, y, strict=True)]


def cross_entropy(q: list[float], r: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(r, q, strict=True))


@pytest.mark.parametrize(("loss", "T", "lam"), [(Adr(), 2.25, 0.825), (Adr(0.3, Ramp(0, 0.5)), 0.3, 0.25)])
def test_adr(loss: Adr, T: float, lam: float) -> None:
    s = Setting(loss, prepare=half_way, objective=ce_targets)
    targets = [rectified(z, onehot(y), T, lam) for z, y in zip(s.companion("average"), s.y, strict=True)]
    q = [softmax(z) for z in s.student("adv")]
    values = [cross_entropy(a, r) for a, r in zip(q, targets, strict=True)]
    s.expect(values, {"adv": [difference(a, r) for a, r in zip(q, targets, strict=True)]})


def test_the_share_of_the_averages_answer_is_clipped() -> None:
    """A sure and wrong average leaves the label alone; a right one gives lam of itself."""
    step = Setting(Adr(T=0.05, lam=0.4), prepare=half_way, objective=ce_targets).step
    right = step.teacher("average").argmax(1) == step.y
    assert 0 < right.sum() < len(right)
    label = step.targets.gather(1, step.y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(step.targets.sum(1), torch.ones(len(label)))
    assert bool((label[~right] > 0.99).any()), "lam - (p_max - p_y) is below 0"
    assert bool((label[right] > 0.99).any())


def test_trades_adr() -> None:
    s = Setting(TradesAdr(beta=3.0), prepare=half_way, objective=kl_student)
    values, adv, clean = [], [], []
    for z_adv, z, average, y in zip(s.student("adv"), s.student(), s.companion("average"), s.y, strict=True):
        r = rectified(average, onehot(y), 2.25, 0.825)
        a, b = softmax(z_adv), softmax(z)
        inner = kl(b, a)
        values.append(cross_entropy(b, r) + 3 * inner)
        adv.append(difference(a, b, 3))
        moved = [3 * v * (math.log(v / w) - inner) for v, w in zip(b, a, strict=True)]
        clean.append([g + m for g, m in zip(difference(b, r), moved, strict=True)])
    s.expect(values, {"adv": adv, "clean": clean})


def test_blended_labels_take_the_place_of_the_one() -> None:
    run = tiny_run(Adr(), attack=OneStep(), objective=ce_targets)
    step = run.step(tiny_batch(soft=True))
    for place, (z, y) in enumerate(zip(step.teacher("average").tolist(), step.y.tolist(), strict=True)):
        assert step.targets[place].tolist() == pytest.approx(rectified(z, y, 2.5, 0.7), rel=1e-4)


def test_the_search_climbs_the_rectified_labels() -> None:
    """A linear net: the sign of W'(q - r) is the step."""
    run = tiny_run(Adr(), attack=OneStep(), objective=ce_targets, student=NetStudent(tiny_net(LinearNet, seed=3)))
    half_way(run)
    seen = []

    def spied(step, probe, x):
        score = ce_targets(step, probe, x)
        torch.testing.assert_close(score, -(step.targets * probe(x).log_softmax(1)).sum(1))
        seen.append(step.targets)
        return score

    run.attacks["adv"] = type(run.attacks["adv"])(OneStep(), spied)
    step = run.step(tiny_batch())
    step.image("adv")
    assert seen[0] is step.targets, "computed once, for the search and the loss"
    assert not torch.allclose(step.targets, torch.nn.functional.one_hot(step.y, CLASSES).float(), atol=0.1)


def test_what_the_method_brings(catalog: Catalog) -> None:
    plan = resolve({"loss": {"name": "adr"}}, catalog)
    search = plan.attacks["adv"]
    assert search.objective is ce_targets
    assert isinstance(search.attack, Pgd) and (search.attack.mode, search.attack.start) == ("train", "uniform")
    over_trades = resolve({"loss": {"name": "trades-adr"}}, catalog).attacks["adv"]
    assert over_trades.objective is kl_student and over_trades.attack.mode == "train"


def test_the_average_follows_by_its_decay() -> None:
    run = tiny_run(Adr(decay=0.75), attack=OneStep(), objective=ce_targets)
    run.hooks.hook.rkd_run_start(run=run)
    before = [weight.clone() for weight in run.companions["average"].net.parameters()]
    train_step(run, tiny_batch())
    run.hooks.hook.rkd_after_update(run=run)
    nets = (run.companions["average"].net, run.student.net)
    for old, mean, weight in zip(before, *(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * weight.detach())


@pytest.mark.parametrize("method", [Adr, TradesAdr])
def test_micro_batches_add_up_to_the_whole_batch(method) -> None:
    ends = []
    for parts in (1, 4):
        run = tiny_run(
            method(), attack=OneStep(), objective=ce_targets, student=NetStudent(tiny_net(LinearNet, seed=3)),
            backward=Accumulation(parts),
        )  # fmt: skip
        half_way(run)
        train_step(run, tiny_batch())
        ends.append(list(run.student.net.parameters()))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"T": 0.0}, "T must be at least"),
        ({"lam": Cosine(0.7, 1.2)}, "lam must be between 0 and 1, got"),
        ({"decay": 1.5}, "decay must be between 0 and 1"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Adr(**options)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        TradesAdr(beta=-1.0)
