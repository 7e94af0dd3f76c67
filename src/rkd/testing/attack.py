"""Attacks and objectives."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.attack import Target
from rkd.core.errors import RkdError
from rkd.core.interfaces import Attack, Objective, Probe
from rkd.core.step import AttackPlan, Step
from rkd.core.traits import name_of, traits_of
from rkd.core.types import Batch, Mode, Norm, ThreatModel
from rkd.data.dataset import check_images
from rkd.nets.student import NetStudent
from rkd.storage.text import fraction

from .state import promise, require, untouched
from .tiny import CLASSES, FlatNet, LinearNet, Scaled, cross_entropy, tiny_batch, tiny_net, tiny_step, tiny_teachers

LINF = ThreatModel("Linf", 8 / 255, 2 / 255)
L2 = ThreatModel("L2", 0.25, 0.0625)
THREATS = (LINF, L2, ThreatModel("L1", 0.8, 0.2), ThreatModel("L0", 4, 1), ThreatModel("L0-values", 4, 1))


@promise
def check_attack(
    attack: Attack, *, eps: float | None = None, optimum: float = 0.9, sparse_optimum: float = 0,
    needs_gradient: bool = True, plainest: ThreatModel = LINF,
) -> None:  # fmt: skip
    """Raise AssertionError unless `attack` keeps the promises of `rkd.plugin.Attack`.

    It is tried in each norm, and must raise Refused in one that it does not know. `eps`: its own radius, where
    it does not take the target's. `optimum`: the share of the best possible gain that it must reach on a linear net,
    where it does not fool it with less (lower for searches without gradients, 0 for those that guarantee nothing).
    `sparse_optimum`: the same in L1 and L0, where plain steps along the gradient stop at 0 and 1 far from the best.
    `needs_gradient`: whether it must at least hold still where there is no gradient. `plainest`: a ball that it must
    know, in which most is tried. There is one teacher to ask.
    """
    who = type(attack).__name__
    _check_traits(attack, plainest, who)
    batch = tiny_batch()
    for threat in THREATS:
        radius = threat.eps if eps is None else eps
        try:
            x_adv = run_attack(attack, tiny_net(), batch, threat)
        except RkdError as error:
            where = f"{plainest.norm} {fraction(plainest.eps)}"
            require(threat.norm != plainest.norm, f"{who} refuses the plainest of threats, {where}: {error}")
            continue
        _check_images(x_adv, batch.x, radius, threat, who)
        _check_optimum(attack, threat, radius, optimum if threat in (LINF, L2) else sparse_optimum, who)
    _check_respect(attack, plainest, who)
    _check_reproducible(attack, plainest, who)
    _check_hard_nets(attack, plainest, plainest.eps if eps is None else eps, needs_gradient, who)
    _check_restarts(attack, plainest, who)


@promise
def check_objective(objective: Objective, *, roles: Sequence[str] = ("robust",)) -> None:
    """Raise AssertionError unless `objective` keeps the promises of `rkd.plugin.Objective`.

    `roles`: the teachers that there are in the trial.
    """
    who = name_of(objective)
    batch, net, teachers = tiny_batch(), tiny_net(), tiny_teachers(roles)
    x = (batch.x + 0.02 * torch.rand(batch.x.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)

    def score(images: Tensor, net: nn.Module = net, batch: Batch = batch, keep: Tensor | None = None) -> Tensor:
        # Inside a search, where objectives live: eval mode, frozen weights.
        attack = _Score(images)
        step = tiny_step(batch, net, teachers=teachers, attacks={"adv": AttackPlan(attack, objective)})
        (step if keep is None else step.select(keep)).image("adv")
        return attack.result

    before = x.clone()
    x.requires_grad_()
    with untouched(net, *(teacher.net for teacher in teachers.values()), who=who):
        values = score(x)
        require(isinstance(values, Tensor), f"{who} must return a tensor, got {type(values).__name__}")
        require(
            tuple(values.shape) == (len(batch),),
            f"{who} must return one value per sample, ({len(batch)},), got {tuple(values.shape)}: "
            "an objective never averages over the batch",
        )
        require(values.isfinite().all(), f"{who} returned values that are not finite")
        require(values.requires_grad, f"{who} must be differentiable in the images")
        (one,) = torch.autograd.grad(values[0], x, retain_graph=True)
        (whole,) = torch.autograd.grad(values.sum(), x)
    require(torch.equal(x.detach(), before), f"{who} must not change the images it is given")
    require(whole.isfinite().all(), f"the gradient of {who} is not finite")
    require(not one[1:].any(), f"{who}: the value of one sample depends on the images of others")
    require(whole.any(), f"{who} has no gradient at all")
    keep = torch.tensor([5, 1, 2])
    part = score(x.detach()[keep], keep=keep)
    require(torch.allclose(part, values.detach()[keep], atol=1e-5), f"{who} changes when samples leave (step.select)")
    sure = Scaled(tiny_net(), 1e4)
    x = x.detach().requires_grad_()
    values = score(x, sure)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    require(values.isfinite().all() and gradient.isfinite().all(), f"{who} is not finite for logits around 1e4")
    with contextlib.suppress(RkdError):
        values = score(batch.x, batch=tiny_batch(soft=True))
        require(values.isfinite().all(), f"{who} is not finite under soft labels; raise Refused if it needs hard ones")


def run_attack(
    attack: Attack, net: nn.Module, batch: Batch, threat: ThreatModel = LINF, objective: Objective = cross_entropy,
    classes: int = CLASSES,
) -> Tensor:  # fmt: skip
    """The images that `attack` finds, by the way of a Step with one teacher."""
    plans, teachers = {"adv": AttackPlan(attack, objective)}, tiny_teachers(("robust",), classes=classes)
    return Step(batch, NetStudent(net), teachers, plans, threat=threat, noise_key=5).image("adv")


@dataclass
class _Score:
    """An attack that looks at the score of given images and finds nothing."""

    images: Tensor
    mode: Mode = "eval"

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        self.result = target.score(self.images)
        return x


def _check_traits(attack: Attack, threat: ThreatModel, who: str) -> None:
    """What the attack declares is true of it."""
    traits = traits_of(attack)
    norms = (None, *get_args(Norm))
    checked = (("mode", traits.mode, get_args(Mode)), ("norm", traits.norm, norms), ("measure", traits.measure, norms))
    for name, value, words in checked:
        require(value in words, f"{who}.{name} must be one of {', '.join(map(str, words))}, got {value!r}")
    require(isinstance(traits.objective, str), f"the objective among the traits of {who} is a name, such as 'ce'")
    options: list[str] = [item.name for item in dataclasses.fields(attack)] if dataclasses.is_dataclass(attack) else []
    require(
        not traits.any_radius or (traits.seeks_nearest and "bounded" in options),
        f"{who} declares any_radius: then it must declare seeks_nearest, too, and have an option `bounded`",
    )
    asked: list[Tensor] = []
    differentiated: list[bool] = []

    def objective(step: Step, probe: Probe, x: Tensor) -> Tensor:
        asked.append(x)
        return cross_entropy(step, probe, x)

    batch, net = tiny_batch(), tiny_net()
    with torch.no_grad():
        batch = dataclasses.replace(batch, y=net.eval()(batch.x).argmax(1))  # many need nothing where the net is wrong
    net.register_forward_pre_hook(lambda _, x: differentiated.append(x[0].requires_grad and torch.is_grad_enabled()))
    run_attack(attack, net, batch, threat, objective)
    require(bool(asked) or traits.own_objective, f"{who} never asks for target.score: declare own_objective=True")
    require(not asked or not traits.own_objective, f"{who} declares own_objective, and asks for target.score")
    require(not (traits.black_box and any(differentiated)), f"{who} declares black_box, and takes gradients")


class _Broken(Exception):
    pass


def _check_images(x_adv: Tensor, x: Tensor, eps: float, threat: ThreatModel, who: str) -> None:
    require(
        x_adv.shape == x.shape and x_adv.dtype == torch.float32,
        f"{who} must return float32 images {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}",
    )
    require(not x_adv.requires_grad, f"{who} must return images without a graph")
    check_images(x_adv)
    distance = float(ops.image_norm(x_adv.double() - x.double(), threat.norm).max())
    require(distance <= eps + 1e-6, f"{who} left the {threat.norm} ball of radius {eps:.6g}: {distance:.6g}")


def _check_optimum(attack: Attack, threat: ThreatModel, eps: float, optimum: float, who: str) -> None:
    net = tiny_net(LinearNet, classes=2)
    x = 0.3 + 0.4 * tiny_batch(16).x  # away from 0 and 1
    with torch.no_grad():
        batch = dataclasses.replace(tiny_batch(16), x=x, y=net(x).argmax(1))
    weight = net.get_parameter("arch.weight").detach()
    side = 1 - 2 * batch.y.float()  # class 0 is attacked towards 1, and the other way round
    slope = (side[:, None] * (weight[1] - weight[0])).reshape(batch.x.shape)
    best = ops.linear_optimum(batch.x, slope, eps, threat.norm)
    x_adv = run_attack(attack, net, batch, threat, classes=2)
    with torch.no_grad():
        clean, found, known = (-ops.margin(net(x), batch.y) for x in (batch.x, x_adv, best))
    gain = (found - clean) / (known - clean)
    # Some searches stop where they have fooled the net, and leave alone what they cannot fool.
    expected = (found <= 0) & (clean + optimum * (known - clean) > 0)
    if optimum and expected.any():
        least = float(gain[expected].min())
        require(
            least >= optimum - 1e-3,
            f"{who} reaches {least:.0%} of the best possible gain on a linear net ({threat.norm}); "
            f"{optimum:.0%} was expected: more steps, or `optimum=` for one that is weak on purpose",
        )
    if optimum:
        require((found >= clean - 1e-4).all(), f"{who} makes images less adversarial than they were ({threat.norm})")


def _check_respect(attack: Attack, threat: ThreatModel, who: str) -> None:
    """The net is left as it was, in each mode, also where it fails in the middle and where the caller has no grad."""
    modes: list[Any] = [attack]
    if dataclasses.is_dataclass(attack) and any(f.name == "mode" for f in dataclasses.fields(attack)):
        modes = [dataclasses.replace(attack, mode=mode) for mode in get_args(Mode)]
    for variant in modes:
        net, batch = tiny_net(), tiny_batch()
        net.train()
        net.get_submodule("arch.norm").eval()  # a net in parts: one module in another mode,
        net.get_parameter("arch.conv.bias").requires_grad_(False)  # one weight frozen, one with a gradient
        head = net.get_parameter("arch.head.weight")
        head.grad = torch.ones_like(head)
        before = batch.x.clone()
        mode, calls = traits_of(variant).mode, itertools.count()

        def fail_at_the_second(*_: Any, calls: Iterator[int] = calls) -> None:
            if next(calls):
                raise _Broken

        with untouched(net, buffers=mode != "train", who=f"{who} in mode {mode}"):
            with torch.no_grad():
                run_attack(variant, net, batch, threat)
            failing = net.register_forward_pre_hook(fail_at_the_second)
            with contextlib.suppress(_Broken):
                run_attack(variant, net, batch, threat)
            failing.remove()
        require(torch.equal(batch.x, before), f"{who} must not change the images it is given")
        require(not batch.x.requires_grad, f"{who} must not ask for gradients of the images it is given")


def _check_reproducible(attack: Attack, threat: ThreatModel, who: str) -> None:
    net, batch = tiny_net(LinearNet), tiny_batch()
    x_adv = run_attack(attack, net, batch, threat)
    require(
        torch.equal(x_adv, run_attack(attack, net, batch, threat)),
        f"{who} finds other images the second time: draw from target.noise alone",
    )
    for keep in (torch.tensor([6, 0, 3]), torch.tensor([5]), torch.tensor([2, 1])):
        part = run_attack(attack, net, batch.select(keep), threat)
        require(
            torch.allclose(part, x_adv[keep], atol=1e-6),
            f"{who}: what it finds for an image depends on the other images of the batch",
        )


def _check_hard_nets(attack: Attack, threat: ThreatModel, eps: float, needs_gradient: bool, who: str) -> None:
    batch = tiny_batch()
    for name, net in (
        ("a net without any gradient", FlatNet()),
        ("a net with logits around 1e4", Scaled(tiny_net(), 1e4)),
        ("a net with logits around 1e-6", Scaled(tiny_net(), 1e-6)),
    ):
        if needs_gradient or not isinstance(net, FlatNet):
            _check_images(run_attack(attack, net, batch, threat), batch.x, eps, threat, f"on {name}, {who}")
    with contextlib.suppress(RkdError):
        soft = tiny_batch(soft=True)
        _check_images(run_attack(attack, tiny_net(), soft, threat), soft.x, eps, threat, f"under soft labels, {who}")


def _check_restarts(attack: Attack, threat: ThreatModel, who: str) -> None:
    if not dataclasses.is_dataclass(attack) or not any(f.name == "restarts" for f in dataclasses.fields(attack)):
        return
    try:
        once, often = (dataclasses.replace(attack, restarts=count) for count in (1, 4))
    except (ValueError, RkdError):
        return  # without a random start there is nothing to restart
    net = Scaled(tiny_net(), 3)
    batch = tiny_batch(16)
    with torch.no_grad():
        batch = dataclasses.replace(batch, y=net.eval()(batch.x).argmax(1))
        found = [net(run_attack(variant, net, batch, threat)) for variant in (once, often)]
    fooled = [~ops.correct(logits, batch.y) for logits in found]
    traits = traits_of(attack)
    if traits.own_objective and traits.objective == "margin":
        score = [-ops.margin(logits, batch.y) for logits in found]
    else:
        score = [ops.cross_entropy(logits, batch.y) for logits in found]
    require(not (fooled[0] & ~fooled[1]).any(), f"{who}: with more restarts an image is no longer fooled")
    same = fooled[0] == fooled[1]
    require((score[1] >= score[0] - 1e-5)[same].all(), f"{who}: with more restarts the score is lower")
