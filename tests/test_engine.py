"""A faster way to run the attacked student changes nothing that is computed: images, gradients, weights, verdicts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rkd.core.random import forked
from rkd.core.run import Run
from rkd.core.step import AttackPlan, Step
from rkd.core.trainer import train_step
from rkd.core.types import Batch, ThreatModel
from rkd.engine.accelerator import Engine
from rkd.engine.onednn import FusedConv
from rkd.nets.net import Net
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.datasets.digits import Digits
from rkd.plugins.models.small_cnn import SmallCNN
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import load_catalog
from rkd.testing import tiny_teachers
from rkd.workflow.build import accelerate, build
from rkd.workflow.resolve import resolve

CATALOG = load_catalog()
ATTACKED = [name for name in CATALOG.names("loss") if "attack" in CATALOG.find("loss", name).component.defaults]
WAYS = {"folded": "folded", "channels-last": "folded, channels last", "fused": "folded, fused"}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a small CNN that has seen some digits: of an untrained one many a gradient is nothing but rounding."""
    data = Digits()()
    with forked(0):
        net = Net(SmallCNN(width=4)(data.shape, 10), data.mean, data.std)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for places in list(torch.arange(len(data.train)).split(64)) * 3:
            x = data.train.images(places)
            optimizer.zero_grad()
            F.cross_entropy(net(x + 0.1 * torch.randn_like(x)), data.train.labels[places]).backward()
            optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


def run_of(loss: str, engine: str, weights: dict[str, Tensor], conversion: str | None = None) -> Run:
    table = {
        "loss": {"name": loss},
        "student": {"model": "small-cnn", "width": 4, "conversions": {conversion: {}} if conversion else {}},
        "data": {"name": "digits", "validation": 0},
        "batch_size": 64,
        "epochs": 1,
        "engine": engine,
    }
    plan = resolve(table, CATALOG)
    run = build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))
    accelerate(run, engine)
    missing = run.student.net.load_state_dict(weights, strict=False).missing_keys
    assert all(".aux." in name for name in missing)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.01
    return run


def moved(run: Run) -> Tensor:
    """What one training step adds to the weights."""
    before = [p.detach().clone() for p in run.student.net.parameters()]
    train_step(run, run.loader.batch(torch.arange(64), 0))
    after = run.student.net.parameters()
    return torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).detach()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ATTACKED)
def test_every_method_moves_its_weights_alike(loss: str, weights: dict[str, Tensor]) -> None:
    plain = moved(run_of(loss, "plain", weights))
    for way in WAYS:
        run = run_of(loss, way, weights)
        found = moved(run)
        ran = run.student.accelerator.choices()
        mode = {getattr(plan.attack, "mode", "eval") for plan in run.attacks.values()}
        assert ran == ([] if mode == {"train"} else [WAYS[way]])
        assert float((found - plain).norm() / plain.norm()) < 0.02, way


def test_auxiliary_norms_alike(weights: dict[str, Tensor]) -> None:
    plain = moved(run_of("trades", "plain", weights, "aux-bn"))
    found = moved(run_of("trades", "channels-last", weights, "aux-bn"))
    assert float((found - plain).norm() / plain.norm()) < 0.02


@pytest.mark.parametrize("way", WAYS)
def test_the_same_images_and_verdict_on_a_trained_net(way: str, weights: dict[str, Tensor]) -> None:
    """Logits within 1e-4, 99.9 % of the pixels after ten steps, robust accuracy."""
    data = Digits()()
    net = Net(SmallCNN(width=4)(data.shape, 10), data.mean, data.std)
    net.load_state_dict(weights)
    student = NetStudent(net.eval())
    places = torch.arange(300)
    batch = Batch(data.test.images(places), data.test.labels[places], places)

    def images() -> Tensor:
        plan = AttackPlan(Pgd(steps=10), ce)
        return Step(batch, student, attacks={"adv": plan}, threat=ThreatModel("Linf", 0.1, 0.02)).image("adv")

    expected = images()
    student.accelerator = Engine(way)
    found = images()
    assert float((found == expected).float().mean()) > 0.999
    with torch.no_grad():
        right = [(net(x).argmax(1) == batch.y) for x in (found, expected)]
        with student.attacked("adv", "eval") as probe:
            apart = (probe(expected) - net(expected)).abs().max() / net(expected).abs().max()
    assert torch.equal(*right) and 0.05 < float(right[0].float().mean()) < 0.95
    assert float(apart) < 1e-4


def test_bfloat16_alike_within_its_precision(weights: dict[str, Tensor]) -> None:
    """What `--precision bf16` attacks is near the net under autocast."""
    data = Digits()()
    net = Net(SmallCNN(width=4)(data.shape, 10), data.mean, data.std)
    net.load_state_dict(weights)
    net.autocast = torch.bfloat16
    student = NetStudent(net.eval())
    student.accelerator = Engine("channels-last")
    x = data.test.images(torch.arange(50))
    with torch.no_grad(), student.attacked("adv", "eval") as probe:
        assert float((probe(x) - net(x)).abs().max() / net(x).abs().max()) < 0.05
    assert student.accelerator.choices() == ["folded, bfloat16, channels last"]
    assert {p.dtype for p in student.net.parameters()} == {torch.float32}


def test_what_only_a_search_needs_is_given_back(weights: dict[str, Tensor]) -> None:
    """The training that follows a search has its memory; the next search packs the weights as they are then."""
    run = run_of("pgd-at", "fused", weights)
    assert isinstance(run.student, NetStudent)
    x = torch.rand(4, 1, 8, 8)
    for _ in range(2):
        with run.student.attacked("adv", "eval") as probe:
            asked = x.clone().requires_grad_()
            logits = probe(asked)
            logits.sum().backward()
            layers = [module for module in probe._fast.run.modules() if isinstance(module, FusedConv)]
            assert layers and all(layer.conv.packed for layer in layers) and layers[-1]._input_gradient is not None
        assert not any(layer.conv.packed or layer._input_gradient for layer in layers)
        torch.testing.assert_close(logits, run.student.net.eval()(x), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for weight in run.student.net.parameters():
                weight.mul_(1.1)
