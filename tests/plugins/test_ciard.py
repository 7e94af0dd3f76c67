"""CIARD against plain float64 loops: the push, its order of magnitude, and a robust teacher that goes on learning."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.run import Run
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.ciard import Ciard
from rkd.plugins.schedulers.entropy_balance import EntropyBalance
from rkd.plugins.schedulers.magnitude import Magnitude
from rkd.registry.catalog import Catalog
from rkd.registry.defaults import method_defaults
from rkd.registry.schedules import parse_schedule
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, tiny_run, tiny_step
from rkd.testing.tiny import CLASSES
from rkd.training.accumulation import Accumulation

from .by_hand import Setting, difference, kl, onehot, softmax


def schedulers(rate: float = 0.2) -> dict:
    return {"entropy-balance": EntropyBalance(rate=rate, robust="learner"), "magnitude": Magnitude()}


def another_learner(run: Run) -> None:
    """The companion is not the teacher any more, and temperatures are not 1."""
    run.companions["learner"].net.load_state_dict(tiny_net(LinearNet, seed=8).state_dict())
    run.state.knobs = {"T.robust": 1.5, "T.clean": 3.0}


def order(values: list[float]) -> int:
    return math.floor(math.log10(abs(sum(values) / len(values))))


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("since", [0.0, 0.5])
def test_losses_and_gradients_of_both_nets(reduction: str, since: float) -> None:
    loss = Ciard(since=since, reduction=reduction)
    s = Setting(loss, prepare=another_learner, schedulers=schedulers())
    share = 1 / CLASSES if reduction == "mean" else 1.0
    adv, clean, push, wrong = [], [], [], []
    for z_adv, z, robust, natural, fooled, y in zip(
        s.student("adv"), s.student(), s.companion("learner", "adv"), s.teacher("clean"), s.teacher("clean", "adv"),
        s.y, strict=True,
    ):  # fmt: skip
        adv.append(share * kl(softmax(robust, 1.5), softmax(z_adv)))
        clean.append(share * kl(softmax(natural, 3.0), softmax(z)))
        wrong.append(max(fooled) != fooled[y])
        push.append(share * kl(softmax(fooled), softmax(z_adv, 5.0)))
    assert 0 < sum(wrong) < len(wrong)
    pushed = [value for value, bad in zip(push, wrong, strict=True) if bad]
    scale = 10.0 ** (min(order(adv), order(clean)) - order(pushed)) * len(wrong) / sum(wrong)
    assert float(s.run.state.knobs["weight.push"]) == pytest.approx(scale, rel=1e-6)
    learner = [-math.log(softmax(w)[y]) for w, y in zip(s.companion("learner", "adv"), s.y, strict=True)]
    values = [
        a + c - scale * bad * p + (since == 0) * own
        for a, c, p, bad, own in zip(adv, clean, push, wrong, learner, strict=True)
    ]
    rows: dict[str, list] = {"adv": [], "clean": []}
    for z_adv, z, robust, natural, fooled, bad in zip(
        s.student("adv"), s.student(), s.companion("learner", "adv"), s.teacher("clean"), s.teacher("clean", "adv"),
        wrong, strict=True,
    ):  # fmt: skip
        towards = difference(softmax(z_adv), softmax(robust, 1.5), share)
        away = difference(softmax(z_adv, 5.0), softmax(fooled), -scale * bad * share / 5.0)
        rows["adv"].append([a + b for a, b in zip(towards, away, strict=True)])
        rows["clean"].append(difference(softmax(z), softmax(natural, 3.0), share))
    s.expect(values, rows)
    net = s.run.companions["learner"].net
    if since:
        assert all(weight.grad is None for weight in net.parameters())
    else:
        learned = [difference(softmax(w), onehot(y)) for w, y in zip(s.companion("learner", "adv"), s.y, strict=True)]
        s.expect_gradients(net, {"adv": learned})


def test_the_robust_teacher_stands_still_until_it_learns_and_then_it_alone_moves() -> None:
    run = tiny_run(
        Ciard(since=0.5), attack=OneStep(), schedulers=schedulers(), batch_size=4, student=NetStudent(tiny_net())
    )
    run.optimizer.param_groups[1]["weight_decay"] = 0.1
    teacher = run.teachers["robust"].net
    moved = []
    for place, batch in enumerate(run.loader.batches(0)):
        run.state.batch = place
        train_step(run, batch)
        nets = (run.companions["learner"].net, teacher)
        moved.append(any(not torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True)))
    assert moved == [False, False, True, True]
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())


def test_answers_of_the_learner_are_those_of_eval_mode() -> None:
    run = tiny_run(Ciard(since=0.0), attack=OneStep(), schedulers=schedulers())
    step = run.step(tiny_batch())
    run.total_loss(step)
    assert torch.equal(step.teacher("learner", "adv"), run.companions["learner"].net.eval()(step.image("adv")))
    assert step.companion("learner", "adv").requires_grad


def test_steps_of_the_scripts_own_optimiser_are_as_long() -> None:
    """A constant gradient g moves by lr g / (1 - momentum) a step in the end."""
    assert 0.1 * Ciard().lr / (1 - 0.9) == pytest.approx(1e-4 / (1 - 0.1))


def test_in_parts_it_is_the_same_push() -> None:
    ends = []
    for parts in (1, 4):
        run = tiny_run(
            Ciard(since=0.0, lr=1.0), attack=OneStep(), schedulers=schedulers(), backward=Accumulation(parts),
            student=NetStudent(tiny_net(LinearNet, seed=3)),
        )  # fmt: skip
        train_step(run, tiny_batch())
        nets = (run.student.net, run.companions["learner"].net)
        ends.append([*(w for net in nets for w in net.parameters()), run.state.knobs["weight.push"]])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def weight_of(own: list[float], *others: float) -> float:
    terms = {"push": torch.tensor(own), "adv": torch.full((len(own),), others[0]), "clean": torch.tensor(others[1:])}
    return float(Magnitude().update(tiny_step(), terms)["weight.push"])


def test_magnitude() -> None:
    assert weight_of([-0.02, -0.04, -0.09, -0.01], 3.0, 0.7, 0.5) == pytest.approx(10.0)  # tenths over hundredths
    assert weight_of([-0.02, 0.0, -0.06, 0.0], 30.0, 40.0) == pytest.approx(1000.0 * 2)
    assert weight_of([-700.0, -0.0, -0.0, -0.0], 2e-3, 3.0) == pytest.approx(1e-5 * 4)
    assert weight_of([0.0, 0.0], 1.0, 1.0) == 0, "none of the images is wrong"
    assert weight_of([-1.0, -1.0], 0.0, 1.0) == 0


def test_a_term_that_is_not_there() -> None:
    with pytest.raises(Refused, match=r"magnitude: this loss has no term 'clean' \(its terms: push, adv\)"):
        Magnitude().update(tiny_step(), {"push": torch.ones(2), "adv": torch.ones(2)})
    for others in ([], ["adv", "push"]):
        with pytest.raises(ValueError, match="others: names of other terms"):
            Magnitude(others=others)


def test_what_the_method_brings(catalog: Catalog) -> None:
    brought = method_defaults(Ciard, {}, catalog)["schedulers"]
    assert brought == {"entropy-balance": {"robust": "learner"}, "magnitude": {}}
    rate = parse_schedule("drops(0.001, 215/300, factor=0)")
    assert [rate(epoch / 300) for epoch in (0, 214.9, 215, 299)] == [0.001, 0.001, 0, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"T": 0.0}, "T must be at least"), ({"since": 1.5}, "since must be between"), ({"lr": -1.0}, "lr must be at")],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ciard(**options)
