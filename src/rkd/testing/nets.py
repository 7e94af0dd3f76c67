"""Models and conversions of the student."""

import copy

import torch
from torch import Tensor

from rkd.core.random import forked
from rkd.core.traits import name_of
from rkd.core.types import Shape
from rkd.nets.modes import running
from rkd.nets.net import Net
from rkd.nets.sources import Conversion, Model
from rkd.nets.student import NetStudent

from .state import promise, require, untouched
from .tiny import tiny_batch, tiny_net


@promise
def check_model(model: Model, *, shape: Shape = (3, 32, 32), classes: int = 10, unused: bool = False) -> None:
    """Raise AssertionError unless `model` keeps the promises of `rkd.plugin.Model` for this shape.

    `unused`: whether weights that the logits do not depend on are allowed.
    """
    who = f"{name_of(model)} for images {shape}"
    with forked(1):
        arch = model(shape, classes)
    with forked(1):
        twin = model(shape, classes)
    for (name, a), b in zip(arch.state_dict().items(), twin.state_dict().values(), strict=True):
        require(torch.equal(a, b), f"{who}: two nets from one seed differ in {name!r}: draw from torch's generator")
    net = Net(arch, (0.5,) * shape[0], (0.25,) * shape[0])
    x = tiny_batch(4, shape, classes).x
    with untouched(net, who=who), running(net, "eval"), torch.no_grad():
        logits = net(x)
        part = net(x[[2, 0]])
    _check_logits(logits, 4, classes, who)
    require(torch.allclose(logits[[2, 0]], part, atol=1e-4), f"{who}: in eval mode logits depend on the other images")
    sums = logits.sum(1)
    softmax = bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    require(not softmax, f"{who} returns probabilities; it must return logits, without a softmax")
    x.requires_grad_()
    with forked(2), running(net, "train"):
        with torch.no_grad():  # branches and heads that start at zero hide what lies behind them
            for weight in net.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        logits = net(x)
    _check_logits(logits, 4, classes, f"in train mode, {who}")
    require(logits.requires_grad, f"{who}: the logits are not differentiable")
    weights = dict(net.named_parameters())
    weighting = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((logits * weighting).sum(), [x, *weights.values()], allow_unused=True)
    require(found[0] is not None and found[0].any(), f"{who}: the logits do not depend on the images")
    idle = [name.removeprefix("arch.") for name, gradient in zip(weights, found[1:], strict=True) if gradient is None]
    require(unused or not idle, f"{who}: the logits do not depend on {', '.join(idle[:4])}")
    twin.load_state_dict(arch.state_dict())
    clone = copy.deepcopy(arch)
    for name, other in (("load_state_dict", twin), ("deepcopy", clone)):
        with running(other, "eval"), running(arch, "eval"), torch.no_grad():
            same = torch.equal(other(x), arch(x))
        require(same, f"{who}: {name} gives a net that answers differently")


@promise
def check_conversion(conversion: Conversion, *, view: str = "adv") -> None:
    """Raise AssertionError unless `conversion` keeps the promises of `rkd.plugin.Conversion`.

    `view`: one that an attack makes.
    """
    who = type(conversion).__name__
    plain = tiny_net()
    batch = tiny_batch()
    student = conversion(NetStudent(copy.deepcopy(plain)))
    require(isinstance(student, NetStudent), f"{who} must return a NetStudent, got {type(student).__name__}")
    images = {view: (batch.x + 0.03).clamp(0, 1), "clean": batch.x}
    with untouched(student.net, who=who), torch.no_grad():
        for mode in ("eval", "frozen"):
            logits = student.logits(images, mode)
            require(list(logits) == list(images), f"{who}: logits come for {list(logits)}, asked were {list(images)}")
            for z in logits.values():
                _check_logits(z, len(batch), 4, who)
    with untouched(student.net, who=who), student.attacked(view, "eval") as probe:
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(probe(x).sum(), x)
        require(gradient.isfinite().all(), f"{who}: the attacked net has no finite gradient")
    logits = copy.deepcopy(student).logits(images, "train")
    require(all(z.requires_grad for z in logits.values()), f"{who}: the logits do not depend on any weight")
    deployed = student.deployed()
    with running(deployed, "eval"), running(student.net, "eval"), torch.no_grad():
        kept = student.logits({"clean": batch.x}, "eval")["clean"]
        require(torch.equal(deployed(batch.x), kept), f"{who}: the deployed net answers clean images differently")
    require(
        set(student.routed) <= set(student.routed) - {"clean"},
        f"{who}: clean images must go through the net's own norms, which are deployed",
    )


def _check_logits(logits: Tensor, count: int, classes: int, who: str) -> None:
    require(isinstance(logits, Tensor), f"{who} must return a tensor of logits, got {type(logits).__name__}")
    require(
        tuple(logits.shape) == (count, classes) and logits.is_floating_point(),
        f"{who} must return float logits ({count}, {classes}), got {logits.dtype} {tuple(logits.shape)}",
    )
    require(logits.isfinite().all(), f"{who} returned logits that are not finite")
