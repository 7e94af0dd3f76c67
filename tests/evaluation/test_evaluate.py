"""Evaluation against a plain loop, and what it leaves alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from rkd.core.attack import Target
from rkd.core.errors import DataError, Refused, RkdError
from rkd.core.step import AttackPlan
from rkd.core.types import Mode, ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.evaluate import evaluate, rehearse
from rkd.evaluation.result import Evaluation
from rkd.evaluation.samples import EvalSettings, choose_samples
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.testing import LinearNet, OneStep, tiny_batch, tiny_net, untouched
from rkd.testing.tiny import cross_entropy
from rkd.training.dry_run import counting

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)
PLANS = {"one": AttackPlan(OneStep(), cross_entropy), "pgd": AttackPlan(Pgd(steps=3, start="uniform"), ce)}
COUNT = 40


def split(net: nn.Module, wrong: int = 10) -> ArraySplit:
    """Images whose labels are the net's answers, but for the first few."""
    x = tiny_batch(COUNT, seed=4).x
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 4
    return ArraySplit(x, y)


def run(net: nn.Module, data, plans=PLANS, **settings) -> Evaluation:
    return evaluate(net, data, plans, EvalSettings(threat=THREAT, classes=4, **settings))


@pytest.mark.slow
def test_accuracies_are_those_of_a_plain_loop() -> None:
    net = tiny_net()
    data = split(net)
    result = run(net, data)
    w = 0
    assert result.accuracy() == 1 - 10 / COUNT
    for name, plan in PLANS.items():
        alone = evaluate(net, data, {name: plan}, EvalSettings(threat=THREAT, classes=4, batch_size=1))
        right = []
        for place in range(COUNT):
            one = ArraySplit(data.images(torch.tensor([place])), data.labels[place : place + 1])
            x, y = one.images(torch.tensor([0])), one.labels
            right.append(bool(net(x).argmax(1) == y))
        assert result.clean.tolist() == right
        assert torch.equal(result.attacks[name], alone.attacks[name]), "the batch size changes nothing"
        assert not (result.attacks[name] & ~result.clean).any(), "what is wrong clean counts as wrong attacked"
        w += int((result.clean & ~result.attacks[name]).sum())
    assert w > 0, "no attack has found anything: the test shows nothing"


def test_attacked_accuracy_on_a_linear_net_is_the_analytic_one() -> None:
    """With two classes and room on all sides the best attack is known: eps * sign(w)."""
    net = tiny_net(LinearNet, classes=2)
    x = 0.3 + 0.4 * tiny_batch(COUNT, seed=4).x
    with torch.no_grad():
        z = net(x)
        y = z.argmax(1)
        weight = net.arch.weight[1] - net.arch.weight[0]
        reach = THREAT.eps * weight.abs().sum() / 0.25  # behind the normalisation
        survives = (z[:, 0] - z[:, 1]).abs() > reach
    plans = {"pgd": AttackPlan(Pgd(steps=10), ce)}
    result = evaluate(net, ArraySplit(x, y), plans, EvalSettings(threat=THREAT, classes=2))
    assert torch.equal(result.attacks["pgd"], survives)
    assert 0 < int(survives.sum()) < COUNT


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(around) -> None:
    net = tiny_net()
    data = split(net)
    expected = run(net, data)
    with around():
        result = run(net, data)
        assert torch.is_grad_enabled() is (around is torch.enable_grad)
    assert torch.equal(result.attacks["pgd"], expected.attacks["pgd"])


@pytest.mark.parametrize("training", [True, False])
def test_the_net_is_left_as_it_was(training: bool) -> None:
    net = tiny_net()
    data = split(net)
    net.train(training)
    net.arch.norm.eval()
    net.arch.conv.bias.requires_grad_(False)
    net.arch.head.weight.grad = torch.ones_like(net.arch.head.weight)
    with untouched(net):
        run(net, data, {**PLANS, "train": AttackPlan(OneStep("frozen"), cross_entropy)})


@pytest.mark.parametrize("mode", ["eval", "train", "frozen"])
def test_an_attack_in_any_mode_moves_no_running_statistics(mode) -> None:
    net = tiny_net()
    data = split(net)
    with untouched(net):
        result = run(net, data, {"it": AttackPlan(OneStep(mode), cross_entropy)})
        rehearse(net, data, {"it": AttackPlan(OneStep(mode), cross_entropy)}, EvalSettings(threat=THREAT))
    assert result.accuracy("it") < result.accuracy()


def test_the_number_of_classes_is_the_nets_unless_it_is_given() -> None:
    net = tiny_net()
    x = tiny_batch().x
    assert evaluate(net, ArraySplit(x, torch.zeros(8)), settings=EvalSettings(threat=THREAT)).samples == 8, (
        "no label need be the last class"
    )
    with pytest.raises(DataError, match="a label is 4, but the net knows 4 classes"):
        evaluate(net, ArraySplit(x, torch.full((8,), 4)), settings=EvalSettings(threat=THREAT))


def test_a_net_that_gets_everything_wrong_needs_no_attack() -> None:
    net = tiny_net()
    result = run(net, split(net, wrong=COUNT))
    assert result.accuracy() == 0
    assert result.accuracy("pgd") == 0
    assert result.nrr("pgd") == 0


def test_an_attack_runs_only_on_what_is_still_right() -> None:
    seen = []

    class Look:
        mode = "eval"

        def __call__(self, x, target):
            seen.append(len(x))
            return x

    net = tiny_net()
    run(net, split(net), {"look": AttackPlan(Look(), cross_entropy)}, batch_size=16)
    assert sum(seen) == COUNT - 10


def test_the_seed_decides() -> None:
    net = tiny_net()
    data = split(net)
    starts = []

    class Look:
        mode = "eval"

        def __call__(self, x, target):
            starts.append(target.noise.uniform((2,)))
            return x

    plan = {"look": AttackPlan(Look(), cross_entropy)}
    for seed in (1, 1, 2):
        run(net, data, plan, seed=seed)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_limit_takes_the_same_samples_every_time() -> None:
    net = tiny_net()
    data = split(net)
    part = run(net, data, limit=15, seed=1)
    assert part.samples == 15
    assert torch.equal(part.index, run(net, data, limit=15, seed=2).index)
    assert torch.equal(part.index, part.index.sort().values)
    assert torch.equal(part.clean, run(net, data).clean[part.index])
    assert torch.equal(choose_samples(10, 10), torch.arange(10))
    for limit in (0, -1, 11):
        with pytest.raises(DataError, match="between 1 and 10"):
            choose_samples(10, limit)


def test_progress_is_told() -> None:
    told = []
    net = tiny_net()
    run(net, split(net), {"pgd": PLANS["pgd"]}, batch_size=16, progress=lambda *news: told.append(news))
    assert [news for news in told if news[0] == "clean"] == [("clean", done, 40) for done in (0, 16, 32, 40)]
    assert [news for news in told if news[0] == "pgd"] == [("pgd", 10, 40), ("pgd", 25, 40), ("pgd", 40, 40)]


class RawSplit:
    """A split that checks nothing."""

    def __init__(self, images, labels) -> None:
        self._images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index):
        return self._images[index]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.01, -0.01, 255.0])
def test_images_that_are_none(bad: float) -> None:
    x = tiny_batch().x.clone()
    x[3, 0, 0, 0] = bad
    with pytest.raises(DataError, match="images"):
        run(tiny_net(), RawSplit(x, tiny_batch().y))


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (lambda x: x + 1, "outside"),
        (lambda x: x - 0.5, "outside"),
        (lambda x: x * math.nan, "not numbers"),
        (lambda x: x[:1], "returned"),
        (lambda x: (x + 0.1).clamp(0, 1), "the attack 'bad' left its ball"),
    ],
)
def test_an_attack_that_leaves_the_images(bad, word: str) -> None:
    class Bad:
        mode = "eval"

        def __call__(self, x, target):
            return bad(x)

    net = tiny_net()
    with pytest.raises(RkdError, match=word):
        run(net, split(net), {"bad": AttackPlan(Bad(), cross_entropy)})


@pytest.mark.slow
def test_the_gallery_shows_what_came_nearest_to_fooling_the_net() -> None:
    @dataclass
    class Moves:
        """Some way towards what one step finds, in a ball of its own."""

        share: float
        eps: float | None = None
        mode: ClassVar[Mode] = "eval"

        def __call__(self, x: Tensor, target: Target) -> Tensor:
            return x + self.share * (OneStep()(x, target) - x)

    net = tiny_net()
    shares = {"still": Moves(0.0), "far": Moves(1.0), "near": Moves(0.5), "outside": Moves(1.0, eps=1.0)}
    attacks = {name: AttackPlan(attack, cross_entropy) for name, attack in shares.items()}
    result = run(net, split(net), attacks, examples=12)
    gallery = result.gallery
    assert gallery is not None and set(gallery.attacks) <= {"far", "near"}
    for place, (row, name) in enumerate(zip(gallery.rows.tolist(), gallery.attacks, strict=True)):
        leads = {name: result.outcomes[name].margin[row].clamp(min=0) for name in ("still", "far", "near")}
        assert leads[name] == min(leads.values())
        assert not torch.equal(gallery.adversarial[place], gallery.clean[place])
    parts = run(net, split(net), attacks, examples=12, batch_size=7).gallery
    assert parts is not None and torch.allclose(parts.adversarial, gallery.adversarial), "in whatever batches"
    only = run(net, split(net), {"outside": attacks["outside"]}, examples=3).gallery
    assert only is not None and only.attacks == ["outside"] * 3


def test_a_net_for_other_classes() -> None:
    with pytest.raises(RkdError, match=r"\(8, 4\).*expected \(8, 7\)"):
        evaluate(tiny_net(), RawSplit(tiny_batch().x, tiny_batch().y), settings=EvalSettings(threat=THREAT, classes=7))


def test_a_net_whose_logits_are_not_numbers() -> None:
    net = tiny_net()
    data = split(net, 0)
    with torch.no_grad():
        net.arch.head.bias[0] = math.nan
    with pytest.raises(RkdError, match="NaN or infinity"):
        run(net, data)


class Breaks(nn.Module):
    """Right on images of one grey, NaN on all others."""

    def forward(self, x):
        grey = x.flatten(1)
        broken = torch.where((grey == grey[:, :1]).all(1), 0.0, torch.nan)
        return torch.stack((1 + grey.mean(1) + broken, grey.mean(1) * 0), 1)


def test_a_net_that_breaks_under_attack() -> None:
    """NaN counts as wrong, leaves no NaN in the summary, and is said."""
    data = ArraySplit(torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64))
    result = evaluate(Breaks(), data, {"pgd": PLANS["pgd"]}, EvalSettings(threat=THREAT))
    assert (result.accuracy(), result.accuracy("pgd")) == (1, 0)
    assert "for 6 of the images that pgd made" in str(result.warnings[0])
    assert result.warnings[0].check == "not-numbers"
    json.dumps(result.summary(), allow_nan=False)


def test_margins_are_those_of_the_logits() -> None:
    net = tiny_net()
    data = split(net)
    result = run(net, data, batch_size=7)
    logits = net(data.images(torch.arange(COUNT))).detach()
    for row, (label, margin) in enumerate(zip(data.labels.tolist(), result.outcomes["clean"].margin, strict=True)):
        others = [float(value) for k, value in enumerate(logits[row]) if k != label]
        assert float(margin) == pytest.approx(float(logits[row, label]) - max(others), abs=1e-5)
    for name, right in result.attacks.items():
        assert torch.equal(result.outcomes[name].margin > 0, right)


# Rehearsals


def test_a_rehearsal_costs_one_question_and_leaves_the_net_alone() -> None:
    net = tiny_net().train()
    with untouched(net), counting({"net": net}) as counts:
        rehearse(
            net, split(tiny_net()), {**PLANS, "long": AttackPlan(Pgd(steps=1000), ce)}, EvalSettings(threat=THREAT)
        )
    assert counts["net"].forwards <= 2 * 3


def test_a_rehearsal_finds_what_could_not_be_run() -> None:
    from rkd.plugins.objectives.kl import KlTeacher

    for plan, word in (
        (AttackPlan(Pgd(), KlTeacher()), "a teacher is needed"),
        (AttackPlan(Pgd(norm="L2"), ce), "its own eps"),
    ):
        with pytest.raises(Refused, match=rf"'mine' could not be run in the evaluation: .*{word}"):
            rehearse(tiny_net(), split(tiny_net()), {"mine": plan}, EvalSettings(threat=THREAT))
