"""JSMA against all pairs tried one by one, and against softmax at high temperature."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.interfaces import Attack
from rkd.core.traits import traits_of
from rkd.core.types import Batch, ThreatModel
from rkd.plugins.attacks import jsma
from rkd.plugins.attacks.jsma import Jsma, best_pair
from rkd.registry.catalog import reference_keys
from rkd.testing import tiny_batch, tiny_net, untouched
from rkd.testing.attack import run_attack
from rkd.testing.tiny import FlatNet, Scaled

LINF = ThreatModel("Linf", 8 / 255, 2 / 255)


def labelled(net: nn.Module, batch: Batch) -> Batch:
    with torch.no_grad():
        return Batch(batch.x, net.eval()(batch.x).argmax(1), batch.index)


def problem() -> tuple[nn.Module, Batch]:
    net = Scaled(tiny_net(), 5)
    return net, labelled(net, Batch(0.5 * tiny_batch(6).x, tiny_batch(6).y, tiny_batch(6).index))


@pytest.mark.parametrize("alike", [-0.99, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 10, 150])
def test_the_best_of_all_pairs_is_found(alike: float, n: int) -> None:
    gain = torch.randn(40, n)
    loss = alike * gain + (1 - alike**2) ** 0.5 * torch.randn(40, n)
    free = torch.rand(40, n) > 0.3
    for scale in (1.0, 1e-30):
        p, q, found = best_pair(scale * gain, scale * loss, free)
        gains, losses = (values.unsqueeze(2) + values.unsqueeze(1) for values in (gain.double(), loss.double()))
        fit = (gains > 0) & (losses > 0) & free.unsqueeze(2) & free.unsqueeze(1) & ~torch.eye(n, dtype=torch.bool)
        score = torch.where(fit, gains * losses, -1.0)
        best = score.flatten(1).amax(1)
        assert torch.equal(found, best > 0)
        ours = score[torch.arange(40), p, q]
        assert torch.allclose(ours[found], best[found], rtol=1e-5)


def test_unscaled_pairs_are_the_same_until_their_products_underflow() -> None:
    gain, free = torch.randn(40, 30), torch.rand(40, 30) > 0.3
    loss = gain + 0.5 * torch.randn(40, 30)
    for scale in (1.0, 1e-15):
        scaled, unscaled = (best_pair(scale * gain, scale * loss, free, way) for way in (True, False))
        assert scaled[2].any() and torch.equal(scaled[2], unscaled[2])
        for ours, theirs in zip(scaled[:2], unscaled[:2], strict=True):
            assert torch.equal(ours[scaled[2]], theirs[scaled[2]])
    assert best_pair(1e-30 * gain, 1e-30 * loss, free)[2].any()
    assert not best_pair(1e-30 * gain, 1e-30 * loss, free, False)[2].any()


class Slopes(nn.Module):
    """Three classes: pixels 0 and 1 speak for class 1, 2 and 3 for class 2, the others for class 0."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(3, 8)
        weight[1, :2], weight[2, 2:4], weight[0, 4:] = 3.0, 2.0, 0.1
        weight[0, :4] = -1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_changes_the_two_pixels_that_matter(of: str) -> None:
    net, batch = Slopes(), Batch(torch.full((2, 1, 2, 4), 0.1), torch.zeros(2).long(), torch.arange(2))
    images, reached, changed, aims = searched(Jsma(of=of, fraction=0.5), net, batch)
    assert aims.tolist() == [[1, 2], [1, 2]] and reached.all() and (changed == 2).all()
    expected = torch.full((2, 8), 0.1)
    expected[0, :2] = expected[1, 2:4] = 1
    assert torch.equal(images[0].flatten(1), expected)
    assert not ops.correct(net(run_attack(Jsma(of=of, fraction=0.5), net, batch, LINF)), batch.y).any()


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_nearly_full_pixels_are_left_alone_on_wish(theta: float) -> None:
    """The saliency sees no size: without `full` the pair is spent on pixels that hardly have room."""
    weight = torch.tensor([[-8.0, -8.0, -2.0, -2.0], [8.0, 8.0, 2.0, 2.0]]) * theta
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].weight.data.copy_(weight)
    images = torch.tensor([253 / 255, 254 / 255, 0.1, 0.1])
    images = images if theta > 0 else 1 - images
    net[1].bias.data.copy_(torch.tensor([0.0, -2 * float(weight[1] @ images) - 1]))
    batch = Batch(images.reshape(1, 1, 2, 2), torch.zeros(1).long(), torch.arange(1))
    options = {"of": "logits", "theta": theta, "fraction": 0.5}
    plain, reached, *_ = searched(Jsma(**options), net, batch)
    assert not reached.any() and (plain[0, 0].flatten()[:2] - batch.x.flatten()[:2]).abs().min() > 0
    found, reached, changed, _ = searched(Jsma(full=0.95, **options), net, batch)
    assert reached.all() and changed.tolist() == [[2]]
    assert torch.equal(found[0, 0].flatten()[:2], batch.x.flatten()[:2])


def searched(attack: Jsma, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All that `run` finds, and the classes aimed at."""
    kept = []

    class Kept(Jsma):
        def __call__(self, x, target):
            kept.append((*attack.run(x, target), attack.aims(x, target)))
            return x

    run_attack(Kept(), net, batch, LINF)
    return kept[0]


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("theta", [1.0, 0.3, -1.0])
def test_what_is_returned_is_so(of: str, theta: float) -> None:
    net, batch = problem()
    with untouched(net, who="jsma"):
        images, reached, changed, aims = searched(Jsma(of=of, theta=theta, fraction=0.25), net, batch)
    assert reached.any()
    limit = int(0.25 * batch.x[0].numel())
    with torch.no_grad():
        said = net(images.flatten(0, 1)).argmax(1).view_as(aims)
    assert torch.equal(said == aims, reached)
    delta = images - batch.x.unsqueeze(1)
    assert (changed <= limit).all() and torch.equal(changed, (delta != 0).flatten(2).sum(2))
    assert images.min() >= 0 and images.max() <= 1
    assert ((delta >= 0) if theta > 0 else (delta <= 0)).all()
    x_adv = run_attack(Jsma(of=of, theta=theta, fraction=0.25), net, batch, LINF)
    fooled = ~ops.correct(net(x_adv), batch.y)
    assert torch.equal(fooled, reached.any(1))
    assert torch.equal(x_adv[~fooled], batch.x[~fooled])
    fewest = changed.masked_fill(~reached, 10**6).amin(1)
    assert torch.equal((x_adv != batch.x).flatten(1).sum(1)[fooled], fewest[fooled])


@pytest.mark.parametrize(("aim", "count"), [("all", 3), ("next", 1), ("random", 1)])
def test_aims_at_other_classes(aim: str, count: int) -> None:
    net, batch = problem()
    aims = searched(Jsma(aim=aim), net, batch)[3]
    assert aims.shape == (6, count) and (aims != batch.y.unsqueeze(1)).all()
    assert (aims >= 0).all() and (aims < 4).all()
    if aim == "next":
        assert torch.equal(aims[:, 0], (batch.y + 1) % 4)
    if aim == "all":
        assert all(len(set(row)) == 3 for row in aims.tolist())


def test_a_high_temperature_hides_the_gradient_and_dividing_by_it_brings_it_back() -> None:
    """Carlini and Wagner's answer to defensive distillation, whose logits are as many times too large."""
    net, batch = problem()
    distilled = Scaled(net, 3000)
    standing = [
        int(ops.correct(net(run_attack(attack, distilled, batch, LINF)), batch.y).sum())
        for attack in (Jsma(), Jsma(temperature=3000.0), Jsma(of="logits"))
    ]
    undistilled = int(ops.correct(net(run_attack(Jsma(), net, batch, LINF)), batch.y).sum())
    assert standing[0] > undistilled + 2
    assert standing[1] == undistilled and standing[2] < standing[0]


def test_unscaled_products_vanish_before_the_derivatives_do() -> None:
    net, batch = problem()
    distilled = Scaled(net, 100)
    standing = [
        int(ops.correct(net(run_attack(attack, distilled, batch, LINF)), batch.y).sum())
        for attack in (Jsma(), Jsma(scaled=False), Jsma(scaled=False, temperature=100.0))
    ]
    assert standing[1] > standing[0] == standing[2]


def test_a_sample_gets_the_same_image_in_any_batch() -> None:
    net, batch = problem()
    for attack in (Jsma(), Jsma(aim="random", of="logits")):
        together = run_attack(attack, net, batch, LINF)
        keep = torch.tensor([4, 0])
        assert torch.equal(run_attack(attack, net, batch.select(keep), LINF), together[keep])
        assert torch.equal(run_attack(attack, net, batch, LINF), together)


def test_without_a_gradient_nothing_is_changed() -> None:
    for of in ("probabilities", "logits"):
        batch = labelled(net := FlatNet(), tiny_batch(4))
        assert torch.equal(run_attack(Jsma(of=of), net, batch, LINF), batch.x)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"theta": 0.0}, "theta"),
        ({"theta": 2.0}, "theta"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"aim": "none"}, "aim"),
        ({"of": "features"}, "of must"),
        ({"temperature": 0.0}, "temperature"),
        ({"full": 0.0}, "full"),
        ({"full": 1.1}, "full"),
        ({"mode": "test"}, "mode"),
    ],
)
def test_nonsense_is_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Jsma(**options)


def test_defaults_are_papernots() -> None:
    attack = jsma.rkd_attacks()["jsma"]()
    assert isinstance(attack, Attack) and attack.mode == "eval" and not traits_of(attack).bounded
    assert attack.theta == 1 and int(attack.fraction * 784 + 1e-6) == 112 and attack.of == "probabilities"
    assert attack.full == 1
    assert len(reference_keys(inspect.getdoc(jsma))) == 4
