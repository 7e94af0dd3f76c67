"""Each self-check warns of the net it is meant for, and of no sound one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.samples import EvalSettings
from rkd.evaluation.selfcheck import full_checks, margin_slope, other_normalization, quick_checks
from rkd.nets.first_look import InputNormalization
from rkd.nets.net import Net
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_batch, tiny_net, untouched
from rkd.workflow.evaluate import check_plans

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)
AGAIN = AttackPlan(Pgd(steps=3, start="uniform"), ce)


class Linear(nn.Module):
    """Two classes, told apart by the mean grey: easy to get right, and to attack where the scale is sane."""

    def __init__(self, scale: float = 60.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        grey = (x.mean((1, 2, 3)) - 0.5) * self.scale
        return torch.stack((-grey, grey), 1)


def split(count: int = 48) -> ArraySplit:
    """Images around 0.5 -+ 0.06: an Linf ball of 8/255 does not bridge the gap, one of 32/255 does."""
    noise = 0.1 * (tiny_batch(count, seed=3).x - 0.5)
    y = torch.arange(count) % 2
    return ArraySplit((0.5 + 0.06 * (2 * y - 1).view(-1, 1, 1, 1) + noise).clamp(0, 1), y)


def near() -> ArraySplit:
    """The same with classes so near that every image falls at 8/255, to an attack that sees where to go."""
    return ArraySplit(0.5 + 0.4 * (split().images(torch.arange(48)) - 0.5), split().labels)


def checks(net: nn.Module, **settings) -> list[str]:
    return [doubt.check for doubt in quick_checks(net, split(), EvalSettings(threat=THREAT, **settings), repeat=AGAIN)]


def test_a_sound_net_raises_no_doubt() -> None:
    assert checks(Linear().eval()) == []


def test_the_net_is_left_as_it_was() -> None:
    net = tiny_net().train()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        labels = net.eval()(x).argmax(1)
    net.train()
    with untouched(net):
        quick_checks(net, ArraySplit(x, labels), EvalSettings(threat=THREAT), repeat=AGAIN)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(around) -> None:
    net = Linear().eval()
    with around():
        assert checks(net) == []


def test_train_mode() -> None:
    class WithDropout(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return super().forward(self.drop(x))

    assert checks(WithDropout().train()) == ["train-mode"]
    assert checks(WithDropout().eval()) == []


def test_stochastic_and_nondeterministic() -> None:
    class Noisy(Linear):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.3, training=True))

    assert checks(Noisy().eval()) == ["stochastic", "nondeterministic"]


def test_batch_dependent() -> None:
    class Batchy(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            return super().forward(0.5 + 0.1 * self.norm(x))

    assert "batch-dependent" in checks(Batchy().eval())


def test_probabilities() -> None:
    class Soft(Linear):
        def forward(self, x):
            return super().forward(x).softmax(1)

    class Log(Linear):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    assert checks(Soft().eval()) == ["probabilities"]
    assert checks(Log().eval()) == []


def test_a_sigmoid() -> None:
    class Sigmoid(Linear):
        def forward(self, x):
            return super().forward(x).sigmoid()

    class Halved(Linear):
        def forward(self, x):
            return 0.9 * super().forward(x).softmax(1)

    assert checks(Sigmoid().eval()) == ["probabilities"]
    assert checks(Halved().eval()) == ["probabilities"]


def test_a_gradient_that_is_no_number() -> None:
    """An attack takes NaN for 0 and stays where it is."""

    class Rooted(Linear):
        def forward(self, x):
            return super().forward(x) + 0 * (x.flatten(1)[:, :1] * 0).sqrt()

    assert checks(Rooted().eval()) == ["nan-gradient"]


def test_a_saturated_softmax() -> None:
    """Defensive distillation's way: logits a hundred times too large."""
    doubts = quick_checks(Linear(6000.0).eval(), split(), EvalSettings(threat=THREAT))
    assert [doubt.check for doubt in doubts] == ["zero-gradient"]
    assert "apart" in doubts[0].meaning and "logits" in doubts[0].advice


def test_a_gradient_that_is_cut_off() -> None:
    class Rounded(Linear):
        def forward(self, x):
            return super().forward((x * 255).round() / 255)

    class Detached(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    assert checks(Rounded().eval()) == ["zero-gradient"]
    assert checks(Detached().eval()) == ["zero-gradient"]
    (doubt,) = quick_checks(Rounded().eval(), split(), EvalSettings(threat=THREAT))
    assert "square" in doubt.advice and "autoattack" not in doubt.advice, "no attack by gradients sees more"


def test_a_net_in_another_precision() -> None:
    assert checks(Linear().double().eval()) == []


# Attacks with a known outcome


def probed(net: nn.Module, catalog: Catalog) -> list[str]:
    plans = check_plans(THREAT, (3, 8, 8), catalog)
    assert set(plans) == {"fgsm", "short", "long", "large", "unbounded", "margin", "black-box"}
    found, result = full_checks(net, split(), plans, EvalSettings(threat=THREAT), samples=32)
    assert result.samples == 32 and result.accuracy() == 1
    return [doubt.check for doubt in found]


def test_probing_a_sound_net(catalog: Catalog) -> None:
    assert probed(Linear().eval(), catalog) == []


@pytest.mark.parametrize("eps", [0.2 / 255, 1 / 255, 3 / 255])
def test_probing_a_sound_net_in_a_small_ball(catalog: Catalog, eps: float) -> None:
    """No image falls, and none in the larger ball: but their margins shrink with the ball."""
    threat = THREAT.with_eps(eps)
    found, result = full_checks(
        Linear().eval(), split(), check_plans(threat, (3, 8, 8), catalog), EvalSettings(threat=threat), samples=32
    )
    assert result.accuracy("large") > 0.9
    assert found == []


def test_probing_a_net_that_rounds(catalog: Catalog) -> None:
    """No gradient at all: nothing that needs one finds anything, not even without bounds."""

    class Rounded(Linear):
        def forward(self, x):
            return super().forward((x * 255).round() / 255)

    assert {"larger-eps", "unbounded"} <= set(probed(Rounded().eval(), catalog))


def test_probing_a_saturated_softmax(catalog: Catalog) -> None:
    found, _ = full_checks(
        Linear(60000.0).eval(), near(), check_plans(THREAT, (3, 8, 8), catalog), EvalSettings(threat=THREAT), samples=32
    )
    assert {"cross-entropy", "unbounded"} <= {doubt.check for doubt in found}


def test_probing_a_jagged_loss(catalog: Catalog) -> None:
    """A ripple that small steps follow and large ones do not see (gradient masking)."""

    class Rippled(Linear):
        def forward(self, x):
            ripple = 0.02 * torch.sin(x * 4000).mean((1, 2, 3)) * self.scale
            grey = (x.mean((1, 2, 3)) - 0.5) * self.scale + ripple
            return torch.stack((-grey, grey), 1)

    found, _ = full_checks(
        Rippled().eval(), near(), check_plans(THREAT, (3, 8, 8), catalog), EvalSettings(threat=THREAT), samples=32
    )
    assert {doubt.check for doubt in found} & {"black-box-beats-pgd", "unbounded", "larger-eps"}


# How far a margin falls


class Rounded(Linear):
    def forward(self, x):
        return super().forward((x * 255).round() / 255)


def test_the_slope_of_a_linear_net() -> None:
    """Its margin is 2 scale (grey - 1/2): a pixel's share of it is 2 scale / n."""
    net, dimensions = Linear().eval(), 3 * 8 * 8
    with untouched(net):
        assert margin_slope(net, split(), EvalSettings(threat=THREAT)) == pytest.approx(120, rel=1e-4)
    l2 = ThreatModel("L2", 0.5, 0.1)
    assert margin_slope(net, split(), EvalSettings(threat=l2)) == pytest.approx(120 / dimensions**0.5, rel=1e-4)


def test_gradients_that_lead_nowhere_have_no_slope() -> None:
    class Detached(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    class Faint(Linear):  # right, and by its gradient still right when every pixel may be anything
        def forward(self, x):
            z = super().forward(x.detach())
            return z + 0.001 * super().forward(x)

    class Rooted(Linear):
        def forward(self, x):
            return super().forward(x) + 0 * (x.flatten(1)[:, :1] * 0).sqrt()

    for net in (Rounded(), Detached(), Faint(), Rooted()):
        assert margin_slope(net.eval(), split(), EvalSettings(threat=THREAT)) is None
    wrong = ArraySplit(split().images(torch.arange(48)), 1 - split().labels)
    assert margin_slope(Linear().eval(), wrong, EvalSettings(threat=THREAT)) is None, "no image is right"


class StretchedIsFragile(nn.Module):
    """Right by a robust feature; on images beyond 1, as normalisation makes them, a fragile one counts as well."""

    def forward(self, x):
        stretch = torch.where(x.amax((1, 2, 3)) > 1, 4.0, 1.0)
        pattern = torch.ones_like(x[0])
        pattern[:, ::2] = -1
        grey = x.mean((1, 2, 3)) / stretch - 0.5 + 3 * (stretch > 1) * (x * pattern).mean((1, 2, 3))
        return torch.stack((-grey, grey), 1) * 50


@pytest.mark.parametrize("known", ["open", "file"])
def test_another_normalisation_that_is_as_good_but_for_attacks(known: str) -> None:
    """A published MNIST net: 99 % clean either way, 91.6 % under PGD as it was trained, 0 % as it was guessed."""
    stretched, plain = ((0.0,), (0.25,)), ((0.0,), (1.0,))
    for own, other in ((stretched, plain), (plain, stretched)):
        net = Net(StretchedIsFragile())
        net.settle(InputNormalization(*own, "it", known, other=other if known == "open" else None))
        found = other_normalization(net.eval(), split(), EvalSettings(threat=THREAT), AGAIN, samples=32)
        assert [doubt.check for doubt in found] == ["normalization"] * (known == "open")
        if found:
            assert "100% right, and 100%" in found[0].finding and "--normalize" in found[0].advice


def test_another_normalisation_that_is_worse_is_no_doubt() -> None:
    net = Net(Linear())
    net.settle(InputNormalization((0.0,), (1.0,), "none", "compared", other=((0.5,), (10.0,))))
    assert other_normalization(net.eval(), split(), EvalSettings(threat=THREAT), AGAIN, samples=32) == []
