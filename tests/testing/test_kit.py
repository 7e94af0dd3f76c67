"""The kit must be able to fail: for each promise a component that breaks it, and the sentence that says so."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rkd import testing
from rkd.core import ops
from rkd.core.hooks import hookimpl
from rkd.core.interfaces import Target
from rkd.core.types import Batch
from rkd.data.dataset import ArraySplit
from rkd.nets.net import NetStudent
from rkd.plugins.attacks.pgd import Pgd
from rkd.testing import LinearNet, OneStep, TinyNet, tiny_dataset, tiny_net, tiny_run


def says(check: Callable[[], None], word: str) -> None:
    with pytest.raises(AssertionError) as error:
        check()
    assert word in str(error.value)


def test_untouched() -> None:
    net = tiny_net().eval()
    with testing.untouched(net):
        net(testing.tiny_batch().x)


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("the flag training of 'arch.norm'", lambda net: net.arch.norm.eval()),
        ("the weights of 'arch.head.bias'", lambda net: net.arch.head.bias.data.add_(1)),
        ("the gradients of 'arch.conv.weight'", lambda net: net(testing.tiny_batch().x).sum().backward()),
        ("the buffers of 'arch.norm.running_mean'", lambda net: net.arch.norm.running_mean.add_(1)),
        ("the flag requires_grad of 'arch.conv.weight'", lambda net: net.arch.conv.weight.requires_grad_(False)),
        ("the hooks of 'arch.conv'", lambda net: net.arch.conv.register_forward_hook(lambda *_: None)),
        ("random state of torch", lambda net: torch.rand(1)),
        ("random state of Python", lambda net: random.random()),
    ],
)
def test_what_was_touched(word: str, change: Callable[[nn.Module], Any]) -> None:
    net = tiny_net().train()

    def check() -> None:
        with testing.untouched(net, buffers="buffers" in word):
            change(net)

    says(check, word)


# Attacks


@dataclass
class Around(OneStep):
    """A sound attack, and something done to what it finds."""

    change: Callable[[Tensor, Tensor], Tensor] = lambda found, x: found

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return self.change(super().__call__(x, target), x)


@dataclass
class Signed(OneStep):
    """One signed step of Linf; `step` breaks it."""

    step: Callable[[Tensor, Tensor], Tensor] = lambda gradient, x: gradient.sign()

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        super().__call__(x, target)  # refuses L2
        _, gradient = target.gradient(x)
        return (x + target.threat.eps * self.step(gradient, x)).clamp(0, 1)


class Round(Signed):
    """Takes every ball for a box."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return (x + target.threat.eps * target.gradient(x)[1].sign()).clamp(0, 1)


class InPlace(Signed):
    def __call__(self, x: Tensor, target: Target) -> Tensor:
        return x.copy_(super().__call__(x, target))


class Remembers(Signed):
    calls = 0

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        Remembers.calls += 1
        return x + (super().__call__(x, target) - x) / Remembers.calls


class Hooked(Signed):
    """Leaves something behind in the net."""

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        net = next(c.cell_contents for c in target._probe.__closure__ if isinstance(c.cell_contents, NetStudent)).net
        net.register_forward_hook(lambda *_: None)
        return super().__call__(x, target)


@dataclass
class Greedy(OneStep):
    """Forgets that more restarts must not be weaker."""

    restarts: int = 1

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        found = super().__call__(x, target)
        return found if self.restarts == 1 else x


@pytest.mark.parametrize(
    ("attack", "word"),
    [
        (Around(change=lambda found, x: (x + 1.2 * (found - x)).clamp(0, 1)), "left the Linf ball"),
        (Around(change=lambda found, x: found + 0.02), "[0, 1]"),
        (Around(change=lambda found, x: found * torch.nan), "not numbers"),
        (Around(change=lambda found, x: x), "0% of the best possible gain"),
        (Around(change=lambda found, x: (2 * x - found).clamp(0, 1)), "of the best possible gain"),
        (Around(change=lambda found, x: found.requires_grad_()), ""),  # the core detaches it
        (Round(), "left the L2 ball"),
        (Signed(step=lambda g, x: g.sum(0, keepdim=True).sign()), "of the best possible gain"),
        (Signed(step=lambda g, x: g / g.abs()), "not numbers"),
        (Signed(step=lambda g, x: g.sign() * (torch.rand_like(x) < 2)), "global random state"),
        (Signed(step=lambda g, x: g / g.abs().max()), "depends on the other images"),
        (Remembers(), "the second time"),
        (InPlace(), "must not change the images"),
        (Hooked(), "the hooks of"),
        (dataclasses.replace(OneStep(), mode="evaluate"), "mode must be one of"),
        (Greedy(), "with more restarts"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:12],
)
def test_attacks(attack, word: str) -> None:
    if word:
        says(lambda: testing.check_attack(attack, optimum=0.9 if "gain" in word else 0), word)
    else:
        testing.check_attack(attack, optimum=0)


def test_attacks_that_are_sound() -> None:
    testing.check_attack(OneStep(), optimum=0)
    testing.check_attack(Pgd(eps=4 / 255, restarts=2), eps=4 / 255)


# Objectives


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y).mean(), "one value per sample"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y).detach(), "differentiable"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) + 0 * probe(x.flip(0))[:, 0] ** 2, ""),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) + probe(x)[:, 0].sum(), "images of others"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), step.y) * torch.rand(1), "random state"),
        (lambda step, probe, x: probe(x).exp().sum(1).log(), "not finite for logits around 1e4"),
        (lambda step, probe, x: -probe(x).softmax(1)[:, 0].log(), "not finite for logits around 1e4"),
        (lambda step, probe, x: 0 * ops.cross_entropy(probe(x), step.y), "no gradient"),
        (lambda step, probe, x: ops.cross_entropy(probe(x), torch.arange(len(x)) % 4), "when samples leave"),
        (lambda step, probe, x: probe(x).sum(1) if step.y.ndim == 1 else probe(x).sum(1) / 0, "soft labels"),
    ],
)
def test_objectives(objective, word: str) -> None:
    if word:
        says(lambda: testing.check_objective(objective), word)
    else:
        testing.check_objective(objective)


# Losses


@dataclass
class Sound:
    """Cross-entropy, clean and attacked; `change` breaks it."""

    change: Callable[[dict[str, Tensor]], Any] = lambda terms: terms
    weights: Any = field(default_factory=dict)
    roles: Any = ()
    defaults: Any = field(default_factory=lambda: {"attack": "pgd"})

    def __call__(self, step) -> Any:
        clean, adv = step.students("clean", "adv")
        return self.change({"clean": ops.cross_entropy(clean, step.y), "adv": ops.cross_entropy(adv, step.y)})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, ""),
        ({"change": lambda t: {"clean": t["clean"].mean()}}, "one value per sample"),
        ({"change": lambda t: list(t.values())}, "by name"),
        ({"change": lambda t: {}}, "by name"),
        ({"change": lambda t: {1: t["clean"]}}, "must be text"),
        ({"change": lambda t: {"clean": t["clean"].detach()}}, "no gradient"),
        ({"change": lambda t: {"clean": t["clean"] / 0}}, "not finite"),
        ({"change": lambda t: {"clean": (t["clean"] * 0).sqrt()}}, "the gradient"),
        ({"change": lambda t: {"clean": t["clean"].exp()}}, "not finite"),
        ({"change": lambda t: {"clean": t["clean"] * t["clean"].mean()}}, "other samples"),
        ({"change": lambda t: {"clean": t["clean"] * torch.rand(1)}}, "random state"),
        ({"weights": {"cleen": 1.0}}, "names ['cleen']"),
        ({"weights": {"clean": "1"}}, "number or a schedule"),
        ({"weights": {"clean": float("nan")}}, "not finite"),
        ({"weights": None}, "weights must map"),
        ({"roles": "robust"}, "sequence of names"),
        ({"roles": ("robust", "robust")}, "twice"),
        ({"defaults": {}}, "its defaults name no attack"),
        ({"defaults": ["pgd"]}, "defaults must map"),
    ],
)
def test_losses(settings: dict, word: str) -> None:
    if word:
        says(lambda: testing.check_loss(Sound(**settings)), word)
    else:
        testing.check_loss(Sound())


def test_the_smallest_loss_and_attack_there_are() -> None:
    """What need not be said need not be there: roles, defaults, weights, mode."""

    class Loss:
        def __call__(self, step) -> dict[str, Tensor]:
            return {"ce": ops.cross_entropy(step.student("clean"), step.y)}

    class Attack:
        def __call__(self, x: Tensor, target: Target) -> Tensor:
            return OneStep()(x, target)

    testing.check_loss(Loss())
    testing.check_attack(Attack(), optimum=0)
    testing.check_trains(tiny_run(Loss()))


def test_a_loss_with_a_memory() -> None:
    class Counts(Sound):
        seen = 0

        def __call__(self, step) -> Any:
            self.seen += 1
            return {name: self.seen * term for name, term in super().__call__(step).items()}

    says(lambda: testing.check_loss(Counts()), "the second time")


def test_a_loss_that_changes_the_batch() -> None:
    class Changes(Sound):
        def __call__(self, step) -> Any:
            step.batch.x.mul_(0.5)
            return super().__call__(step)

    says(lambda: testing.check_loss(Changes()), "must not change the batch")


def test_a_loss_that_teaches_the_teacher() -> None:
    class Thaws(Sound):
        def __call__(self, step) -> Any:
            step._teachers["robust"].net.train()
            return super().__call__(step)

    says(lambda: testing.check_loss(Thaws(roles=("robust",))), "the flag training")


# Schedulers


@dataclass
class Steady:
    """Counts steps and says so; `update_with` breaks it."""

    update_with: Callable[..., Any] = lambda self, step, terms: {"weight.adv": 1.0 + self.count}
    complete: bool = True
    count: int = 0

    def update(self, step, terms) -> Any:
        self.count += 1
        return self.update_with(self, step, terms)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count} if self.complete else {}

    def load_state_dict(self, state) -> None:
        self.count = state.get("count", 0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, ""),
        ({"complete": False}, "state_dict() lacks something"),
        ({"update_with": lambda self, step, terms: {"weight.other": 1.0}}, "the loss has the terms"),
        ({"update_with": lambda self, step, terms: {"weight.adv": float("nan")}}, "not finite"),
        ({"update_with": lambda self, step, terms: {"weight.adv": terms["adv"].mean()}}, "attached to the graph"),
        ({"update_with": lambda self, step, terms: [1.0]}, "by name"),
        ({"update_with": lambda self, step, terms: {1: 1.0}}, "must be text"),
        ({"update_with": lambda self, step, terms: {"T": float(torch.rand(1))}}, "random state"),
        ({"update_with": lambda self, step, terms: {"T": terms["adv"].data.zero_()}}, "must not change the loss"),
    ],
)
def test_schedulers(settings: dict, word: str) -> None:
    if word:
        says(lambda: testing.check_scheduler(Steady(**settings)), word)
    else:
        testing.check_scheduler(Steady())


@pytest.mark.parametrize(("kept", "word"), [(lambda t: t, "with its graph"), (lambda t: {1, 2}, "not set")])
def test_schedulers_that_keep_too_much(kept, word: str) -> None:
    class Keeps(Steady):
        def update(self, step, terms) -> Any:
            self.last = kept(terms["adv"])
            return {}

        def state_dict(self) -> dict[str, Any]:
            return {"last": [self.last]}

    says(lambda: testing.check_scheduler(Keeps()), word)


# Extensions


def test_extensions() -> None:
    class Fine:
        @hookimpl
        def rkd_after_update(self, run):
            self.steps = getattr(self, "steps", 0) + 1

    class Noisy:
        @hookimpl
        def rkd_after_update(self, run):
            torch.rand(1)

    class Unsteady:
        seen = 0

        @hookimpl
        def rkd_after_update(self, run):
            Unsteady.seen += 1
            run.student.net.arch.head.bias.data.add_(0.01 * Unsteady.seen)

    class Misspelt:
        @hookimpl
        def rkd_after_updates(self, run): ...

    class Forgetful:
        """Its strength grows with the steps, and a checkpoint does not know."""

        def __init__(self) -> None:
            self.steps = 0

        @hookimpl
        def rkd_after_update(self, run):
            self.steps += 1
            run.student.net.arch.head.bias.data.add_(0.01 * self.steps)

    class Mindful(Forgetful):
        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps = state["steps"]

    testing.check_extension(Fine())
    testing.check_extension(Mindful())
    says(lambda: testing.check_extension(Forgetful()), "state_dict() lacks something")
    says(lambda: testing.check_extension(Noisy()), "random state")
    says(lambda: testing.check_extension(Unsteady()), "the second time")
    says(lambda: testing.check_extension(Misspelt()), "rkd_after_updates")


# Models, conversions


def model(change: Callable[[nn.Module], nn.Module] = lambda net: net) -> Callable[..., nn.Module]:
    return lambda shape, classes: change(TinyNet(shape, classes))


class Twice(nn.Module):
    def __init__(self, net: nn.Module, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.after = net, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(x))


class Idle(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.unused = net, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def dirty(net: nn.Module) -> nn.Module:
    net.head.bias.data.fill_(random.random())
    return net


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda net: net, ""),
        (lambda net: nn.Sequential(net, nn.Softmax(dim=1)), "returns probabilities"),
        (lambda net: Twice(net, lambda z: (z, z)), "tuple"),
        (lambda net: Twice(net, lambda z: z[:, :3]), "(4, 10)"),
        (lambda net: Twice(net, lambda z: z / 0), "not finite"),
        (lambda net: Twice(net, lambda z: z - z.mean(0)), "depend on the other images"),
        (lambda net: Twice(net, lambda z: z * 0 + 1), "do not depend on the images"),
        (lambda net: Twice(net, lambda z: z.detach()), "not differentiable"),
        (Idle, "do not depend on unused.weight, unused.bias"),
        (dirty, "two nets from one seed differ"),
    ],
)
def test_models(change, word: str) -> None:
    if word:
        says(lambda: testing.check_model(model(change), shape=(3, 8, 8)), word)
    else:
        testing.check_model(model(change), shape=(3, 8, 8))


def test_models_that_draw_elsewhere() -> None:
    def draws(net: nn.Module) -> nn.Module:
        return Twice(net, lambda z: z + torch.rand(1))

    says(lambda: testing.check_model(model(draws), shape=(3, 8, 8)), "random state")


def test_conversions() -> None:
    testing.check_conversion(lambda student: student)
    says(lambda: testing.check_conversion(lambda student: student.net), "must return a NetStudent")

    def other(student: NetStudent) -> NetStudent:
        class Other(NetStudent):
            def deployed(self) -> nn.Module:
                return tiny_net(seed=4)

        return Other(student.net)

    says(lambda: testing.check_conversion(other), "answers clean images differently")
    says(lambda: testing.check_conversion(lambda s: NetStudent(s.net, routed=("clean",))), "net's own norms")

    def flips(student: NetStudent) -> NetStudent:
        student.net.arch.norm.register_forward_hook(lambda module, *_: (module.running_mean.add_(1), None)[1])
        return student

    says(lambda: testing.check_conversion(flips), "the buffers")


# Data

COUNT = iter(range(1, 1000))


def test_datasets() -> None:
    testing.check_dataset(tiny_dataset())
    for change, word in [
        ({"fingerprint": ""}, "fingerprint"),
        ({"std": (0.1, 0.1, 0.0)}, "std must be positive"),
        ({"classes": ("a", "b", "c", "c")}, "share a name"),
        ({"defaults": {"epoch": 3}}, "no such setting"),
        ({"teachers": {"robust": {}}}, "names no model"),
        ({"teachers": {"robust": {"model": "x", "recipe": {"epochs": 0}}}}, "no valid settings"),
        ({"shape": (3, 9, 8)}, "float32 (4, 3, 9, 8)"),
    ]:
        broken = dataclasses.replace(tiny_dataset(), **change)
        says(lambda broken=broken: testing.check_dataset(broken), word)


def test_splits() -> None:
    good = tiny_dataset().train

    class Split(ArraySplit):
        def __init__(self, images: Callable[[Tensor], Tensor]) -> None:
            self.labels = good.labels
            self._change = images

        def __len__(self) -> int:
            return len(good)

        def images(self, index: Tensor) -> Tensor:
            return self._change(good.images(index))

    for change, word in [
        (lambda x: x.double(), "float32"),
        (lambda x: x / (1 + x.mean(0)), "depends on which others"),
        (lambda x: x + 0 * torch.rand(1), "random state"),
    ]:
        broken = dataclasses.replace(tiny_dataset(), train=Split(change))
        says(lambda broken=broken: testing.check_dataset(broken), word)


@pytest.mark.parametrize(
    ("augment", "word"),
    [
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x.flip(-1)), ""),
        (lambda batch, noise: Batch(batch.x.mul_(0.5), batch.y, batch.index), "must return a new batch"),
        (lambda batch, noise: batch.x, "must return a Batch"),
        (lambda batch, noise: batch.select(torch.arange(4)), "keep the samples"),
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x[..., 1:]), "must stay float32"),
        (lambda batch, noise: dataclasses.replace(batch, x=torch.rand_like(batch.x)), "random state"),
        (lambda batch, noise: dataclasses.replace(batch, y=batch.y.float()), "int64"),
        (lambda batch, noise: dataclasses.replace(batch, y=torch.ones(8, 4)), "probabilities"),
        (lambda batch, noise: dataclasses.replace(batch, views={"weak": batch.x.double()}), "weak must stay float32"),
        (lambda batch, noise: dataclasses.replace(batch, x=batch.x / next(COUNT)), "the second time"),
        (lambda batch, noise: dataclasses.replace(batch, x=(batch.x + batch.x.flip(0)) / 2), "mixes = True"),
    ],
)
def test_augments(augment, word: str) -> None:
    if word:
        says(lambda: testing.check_augment(augment), word)
    else:
        testing.check_augment(augment)


class Half:
    """Halves images, or not: two versions, of which it says what `says` makes of them."""

    def __init__(self, says, count=2) -> None:
        self.says, self.count = says, count

    def __call__(self, batch, noise):
        return dataclasses.replace(batch, x=torch.where(self.draw(noise).view(-1, 1, 1, 1), batch.x / 2, batch.x))

    def variants(self, shape):
        return self.count

    def variant(self, noise, shape):
        return self.says(self.draw(noise))

    def draw(self, noise):
        return noise.uniform(()) < 0.5


@pytest.mark.parametrize(
    ("augment", "word"),
    [
        (Half(lambda half: half.long()), ""),
        (Half(lambda half: half.long(), 0), "a number from 1 on"),
        (Half(lambda half: half.long(), 1), "from 0 to 0"),
        (Half(lambda half: half.float()), "must be int64"),
        (Half(lambda half: half.long()[:5]), "must be int64"),
        (Half(lambda half: half.long() * 0), "version 0 of one image is not one image"),
    ],
)
def test_versions_of_images(augment, word: str) -> None:
    if word:
        says(lambda: testing.check_augment(augment), word)
    else:
        testing.check_augment(augment)


def test_trains() -> None:
    testing.check_trains(tiny_run(Sound(), attack=OneStep()))
    says(lambda: testing.check_trains(tiny_run(Sound(), attack=OneStep(), lr=0.0)), "moved no weight")


def test_the_stubs() -> None:
    teacher = testing.StubTeacher("robust")
    assert (teacher.role, teacher.logits(testing.tiny_batch().x).shape, teacher.asked) == ("robust", (8, 4), 1)
    assert isinstance(tiny_net(LinearNet).arch, LinearNet)
    batch = testing.tiny_batch(soft=True)
    assert torch.allclose(batch.y.sum(1), torch.ones(8))
    assert ((batch.x == 0) | (batch.x == 1)).any(), "borders are where attacks go wrong"
