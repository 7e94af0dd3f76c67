"""Nets, images and runs that are small enough to try everything on them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.attack import Target
from rkd.core.errors import Refused
from rkd.core.hooks import run_hooks
from rkd.core.interfaces import Attack, Loss, Objective, Probe, Scheduler, Student, Teacher
from rkd.core.random import forked
from rkd.core.run import Run
from rkd.core.step import AttackPlan, Step
from rkd.core.traits import LossTraits, declared
from rkd.core.types import Batch, Mode, Shape, ThreatModel
from rkd.data.dataset import ArraySplit, Dataset
from rkd.data.loader import Loader
from rkd.nets.net import Net, NetTeacher
from rkd.nets.student import NetStudent
from rkd.registry.catalog import Catalog
from rkd.registry.hooks import HasParts
from rkd.training.checkpoints import Checkpointer
from rkd.training.companions import Following, learning, make_companions
from rkd.training.divergence import DivergenceMonitor

SHAPE: Shape = (3, 8, 8)
CLASSES = 4
MEAN, STD = 0.4, 0.25


class TinyNet(nn.Module):
    """Convolution, batch norm, two linear layers: everything an attack or a conversion can leave in disorder."""

    def __init__(self, shape: Shape = SHAPE, classes: int = CLASSES, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class LinearNet(nn.Module):
    """Logits that are linear in the pixels: what the best attack does is known."""

    def __init__(self, shape: Shape = SHAPE, classes: int = CLASSES, gain: float = 0.5) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(gain * torch.randn(classes, pixels))
        self.bias = nn.Parameter(0.1 * torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class FlatNet(nn.Module):
    """Logits that ignore the images: no attack has a gradient here."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0.0 * x.flatten(1).sum(1, keepdim=True)


class Scaled(nn.Module):
    """Another net's logits times a factor: very sure of itself."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


@dataclass
class OneStep:
    """The smallest attack there is: a random start and one signed step."""

    mode: Mode = "eval"

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        if target.threat.norm != "Linf":
            raise Refused(f"this attack knows the Linf ball alone, not {target.threat.norm}")
        eps = target.threat.eps
        start = x + target.noise.uniform(x.shape[1:], -eps / 2, eps / 2)
        _, gradient = target.gradient(start.clamp(0, 1))
        return (start + eps / 2 * gradient.sign()).clamp(0, 1)


def cross_entropy(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """The objective of most attacks."""
    return ops.cross_entropy(probe(x), step.y)


class StubTeacher(NetTeacher):
    """A teacher of any role: a frozen linear net, which counts how often it is asked."""

    def __init__(self, role: str, seed: int = 0, shape: Shape = SHAPE, classes: int = CLASSES) -> None:
        with forked(seed):
            super().__init__(Net(LinearNet(shape, classes), (MEAN,) * shape[0], (STD,) * shape[0]), role)
        self.asked = 0

    def logits(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().logits(x)


class TinyParts:
    """`rkd.plugin.Parts` for trials: every reference is a linear net, attacks are the catalog's."""

    def __init__(self, catalog: Catalog, shape: Shape = SHAPE, classes: int = CLASSES) -> None:
        self.catalog = catalog
        self.shape, self.classes = shape, classes

    def net(self, reference: str, normalize: str = "auto", options: Mapping[str, Any] | None = None) -> nn.Module:
        return tiny_net(LinearNet, self.shape, self.classes, seed=20).eval().requires_grad_(False)

    def attack(self, name: str, options: Mapping[str, Any] | None = None) -> Attack:
        attack = self.catalog.create("attack", name, options)
        if isinstance(attack, HasParts):
            attack.assemble(self)
        return attack


def tiny_net(
    kind: Callable[..., nn.Module] = TinyNet, shape: Shape = SHAPE, classes: int = CLASSES, seed: int = 0
) -> Net:
    """An untrained net behind its normalisation. Its batch norms look as if they had been trained a while."""
    with forked(seed):
        arch = kind(shape, classes)
        for module in arch.modules():
            if isinstance(module, nn.BatchNorm2d):
                with torch.no_grad():
                    nn.init.normal_(module.get_buffer("running_mean"), 0, 0.3)
                    nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
    return Net(arch, (MEAN,) * shape[0], (STD,) * shape[0])


def tiny_batch(
    count: int = 8, shape: Shape = SHAPE, classes: int = CLASSES, seed: int = 0, soft: bool = False
) -> Batch:
    """Images as decoded from bytes, many pixels exactly 0 or 1; every class among the labels. `soft`: probabilities."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(-60, 316, (count, *shape), generator=generator).clamp(0, 255)
    y = torch.arange(count) % classes
    if soft:
        y = torch.rand(count, classes, generator=generator).softmax(1)
    return Batch(pixels / 255, y, torch.arange(100, 100 + count))


def tiny_dataset(count: int = 24, shape: Shape = SHAPE, classes: int = CLASSES, seed: int = 0) -> Dataset:
    """A data set of `tiny_batch` images, two thirds for training."""
    batch = tiny_batch(count, shape, classes, seed)
    cut = 2 * count // 3
    return Dataset(
        name="tiny",
        train=ArraySplit(batch.x[:cut], batch.y[:cut]),
        test=ArraySplit(batch.x[cut:], batch.y[cut:]),
        shape=shape,
        classes=tuple("abcdefghijklmnop"[:classes]),
        mean=(MEAN,) * shape[0],
        std=(STD,) * shape[0],
        threat=ThreatModel("Linf", 8 / 255, 2 / 255),
        fingerprint="tiny",
    )


def tiny_teachers(roles: Sequence[str], shape: Shape = SHAPE, classes: int = CLASSES) -> dict[str, StubTeacher]:
    """One stub teacher a role, all different."""
    return {role: StubTeacher(role, 10 + place, shape, classes) for place, role in enumerate(roles)}


def tiny_companions(loss: Loss, student: NetStudent, teachers: Mapping[str, Teacher]) -> dict[str, Student]:
    """The companions that a loss declares, for `student`: of other weights, of its own average, of teachers."""

    def new(name: str) -> NetStudent:
        net = copy.deepcopy(student.net)
        with forked(30), torch.no_grad():
            for weight in net.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        return NetStudent(net)

    return make_companions(declared(loss, LossTraits).companions, student, teachers, new)


def tiny_step(
    batch: Batch | None = None,
    net: nn.Module | None = None,
    *,
    roles: Sequence[str] = (),
    teachers: Mapping[str, Teacher] | None = None,
    attacks: Mapping[str, AttackPlan] | None = None,
    **settings: Any,
) -> Step:
    """A step on `tiny_batch()` of a `tiny_net()` with `teachers` or stubs in `roles`; the rest as for `Step`."""
    batch = tiny_batch() if batch is None else batch
    student = NetStudent(tiny_net() if net is None else net)
    teachers = tiny_teachers(roles) if teachers is None else teachers
    return Step(batch, student, teachers, attacks or {}, **{"noise_key": 5, **settings})


def tiny_run(
    loss: Loss,
    *,
    attack: Attack | None = None,
    objective: Objective | None = None,
    schedulers: Mapping[str, Scheduler] | None = None,
    conversion: Callable[[NetStudent], NetStudent] | None = None,
    extensions: Mapping[str, Any] | None = None,
    data: Dataset | None = None,
    batch_size: int = 8,
    **settings: Any,
) -> Run:
    """A run on `tiny_dataset()` with stub teachers for the loss's roles, and its companions. A loss that asks for the
    view `adv` needs an `attack`; `OneStep()` will do. `settings` as for `rkd.plugin.Run`."""
    data = data or tiny_dataset()
    student = settings.pop("student", None) or NetStudent(tiny_net(shape=data.shape, classes=len(data.classes)))
    if conversion is not None:
        student = conversion(student)
    attacks = {}
    if attack is not None:
        attacks["adv"] = AttackPlan(attack, objective or cross_entropy)
    lr = settings.pop("lr", 0.05)
    optimizer = settings.pop("optimizer", None) or torch.optim.SGD(student.net.parameters(), lr, momentum=0.9)
    teachers = tiny_teachers(declared(loss, LossTraits).roles or (), data.shape, len(data.classes))
    companions = tiny_companions(loss, student, teachers)
    for one in learning(companions).values():
        optimizer.add_param_group({"params": list(one.net.parameters())})
    return Run(
        **{
            "student": student,
            "loss": loss,
            "loader": Loader(data.train, batch_size, seed=0),
            "data": data,
            "optimizer": optimizer,
            "epochs": 1,
            "lr": lr,
            "teachers": teachers,
            "companions": companions,
            "attacks": attacks,
            "schedulers": dict(schedulers or {}),
            "hooks": run_hooks({"companions": Following(), **(schedulers or {}), **(extensions or {})}),
            "monitor": DivergenceMonitor(),
            "checkpoints": Checkpointer(),
            **settings,
        }
    )
