"""Losses, schedulers, extensions."""

import contextlib
import copy
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.errors import RkdError
from rkd.core.hooks import hookimpl, run_hooks
from rkd.core.interfaces import Loss, Scheduler, Teacher
from rkd.core.run import Run
from rkd.core.step import AttackPlan, Step
from rkd.core.trainer import fit, train_step
from rkd.core.traits import LossTraits, declared
from rkd.core.types import Batch, at
from rkd.nets.student import NetStudent
from rkd.storage.serialize import load_state, save_state
from rkd.training.dry_run import dry_step

from .state import promise, require, untouched
from .tiny import (
    LinearNet,
    OneStep,
    Scaled,
    cross_entropy,
    tiny_batch,
    tiny_companions,
    tiny_net,
    tiny_run,
    tiny_step,
    tiny_teachers,
)


@promise
def check_loss(loss: Loss, *, views: Sequence[str] = ("adv",), per_sample: bool = True) -> None:
    """Raise AssertionError unless `loss` keeps the promises of `rkd.plugin.Loss`.

    `views`: those that an attack makes in the trial. `per_sample`: whether each sample's value follows from that
    sample alone, which almost every loss promises.
    """
    who = type(loss).__name__
    _check_attributes(loss, who)
    batch, net = tiny_batch(), tiny_net()
    kept = Batch(batch.x.clone(), batch.y.clone(), batch.index)
    teachers = tiny_teachers(declared(loss, LossTraits).roles or ())
    step = _step(loss, batch, net, views, teachers)
    twin = copy.deepcopy(net)
    # Its forwards in train mode may move running statistics; nothing else of any net, and no random numbers.
    with untouched(net, buffers=False, who=who), untouched(*(t.net for t in teachers.values()), who=who):
        terms = loss(step)
    _check_terms(terms, batch, who)
    require(torch.equal(batch.x, kept.x) and torch.equal(batch.y, kept.y), f"{who} must not change the batch")
    unknown = set(declared(loss, LossTraits).weights) - set(terms)
    require(not unknown, f"{who}.weights names {sorted(unknown)}, but the terms are {sorted(terms)}")
    for view, derived in declared(loss, LossTraits).derived_views.items():
        images = step.image(view)
        inside = bool(((images >= 0) & (images <= 1)).all())
        require(
            inside or not derived.bounded, f"{who}.derived_views: {view!r} leaves [0, 1], so it needs bounded=False"
        )
    if idle := set(declared(loss, LossTraits).companions) - step.used.companions:
        require(False, f"{who} never asks the companions {sorted(idle)} that it declares")
    if "attack" not in declared(loss, LossTraits).defaults:
        require(not step.used.views, f"{who} asks for the view {step.used.views}, but its defaults name no attack")
    gradient = _gradient(loss, terms, net)
    require(gradient.isfinite().all(), f"the gradient of {who} is not finite")
    require(gradient.any(), f"{who} has no gradient by the student's weights")
    again = loss(_step(loss, batch, twin, views))
    for name, term in again.items():
        require(torch.allclose(term, terms[name], atol=1e-6), f"{who} gives another {name!r} the second time")
    _check_extremes(loss, batch, views, who)
    if per_sample:
        _check_per_sample(loss, batch, views, who)
    try:
        soft = tiny_batch(soft=True)
        _check_terms(loss(_step(loss, soft, tiny_net(), views)), soft, f"under soft labels, {who}")
    except RkdError as error:
        require(str(error), f"{who} refuses soft labels without a word")


@promise
def check_scheduler(scheduler: Scheduler, *, terms: Sequence[str] = ("adv", "clean")) -> None:
    """Raise AssertionError unless `scheduler` keeps the promises of `rkd.plugin.Scheduler`.

    `terms`: the loss terms of the trial. One that listens to an attack's queries is told of one in each step.
    """
    who = type(scheduler).__name__
    fresh = copy.deepcopy(scheduler)  # the dry step before a training does that too
    steps = 6
    seen = [_update(scheduler, place, terms, who) for place in range(steps)]
    for name in {name for values in seen for name in values}:
        for kind in ("weight.", "class_weights."):
            if name.startswith(kind):
                require(name.removeprefix(kind) in terms, f"{who} sets {name!r}, but the loss has the terms {terms}")
    _check_state(scheduler.state_dict(), who)
    for place in range(3):
        _same_values(_update(fresh, place, terms, who), seen[place], f"{who} gives other values the second time")
    resumed = copy.deepcopy(fresh)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(path, {"scheduler": dict(fresh.state_dict())})
        for place in range(3, steps):  # what a checkpoint holds must not change behind its back
            _update(fresh, place, terms, who)
        resumed.load_state_dict(load_state(path)["scheduler"])
    for place in range(3, steps):
        after = _update(resumed, place, terms, who)
        _same_values(after, seen[place], f"{who} goes on differently after a checkpoint: state_dict() lacks something")


@promise
def check_extension(extension: Any, loss: Loss | None = None) -> None:
    """Raise AssertionError unless a tiny training goes well with `extension`: finite, repeatable, to be continued."""
    who = type(extension).__name__
    run_hooks({"it": copy.deepcopy(extension)})
    chosen: Any = loss or _Plain()
    attack = OneStep() if "attack" in declared(chosen, LossTraits).defaults else None

    def run_with(mine: Any, **others: Any) -> Run:
        return tiny_run(chosen, attack=attack, extensions={"it": mine, **others}, epochs=2)

    def end(run: Run) -> Tensor:
        random = torch.get_rng_state()
        fit(run)
        require(torch.equal(torch.get_rng_state(), random), f"{who} must not touch the global random state")
        return torch.cat([p.detach().flatten() for p in run.eval_net().parameters()])

    whole, again = (end(run_with(copy.deepcopy(extension))) for _ in range(2))
    require(whole.isfinite().all(), f"with {who} the weights are not finite")
    require(torch.equal(whole, again), f"with {who} the same training ends differently the second time")
    mine = copy.deepcopy(extension)
    if hasattr(mine, "state_dict"):
        require(hasattr(mine, "load_state_dict"), f"{who} has a state_dict but no load_state_dict")
    stopped = run_with(mine, stop=_Stop())
    with contextlib.suppress(_Stop.Now):
        fit(stopped)
    if hasattr(mine, "state_dict"):
        _check_state(mine.state_dict(), who)
    resumed = run_with(copy.deepcopy(extension))
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "state.safetensors", stopped.state_dict())
        resumed.load_state_dict(load_state(Path(folder) / "state.safetensors"))
    require(
        torch.equal(end(resumed), whole),
        f"with {who} a training that was interrupted ends differently: state_dict() lacks something",
    )


class _Stop:
    """An extension that ends a training after its first epoch."""

    class Now(Exception):
        pass

    @hookimpl(trylast=True)
    def rkd_epoch_end(self, run: Run, metrics: dict[str, Any]) -> None:
        raise self.Now


class _Plain:
    """Cross-entropy, clean and attacked."""

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd"}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        clean, adv = step.students("clean", "adv")
        return {"clean": ops.cross_entropy(clean, step.y), "adv": ops.cross_entropy(adv, step.y)}


def _step(
    loss: Loss, batch: Batch, net: nn.Module, views: Sequence[str], teachers: Mapping[str, Teacher] | None = None
) -> Step:
    traits = declared(loss, LossTraits)
    plans = {view: AttackPlan(OneStep(), cross_entropy) for view in views}
    teachers = tiny_teachers(traits.roles or ()) if teachers is None else teachers
    companions = tiny_companions(loss, NetStudent(net), teachers)
    return tiny_step(
        batch, net, teachers=teachers, attacks=plans, progress=0.5, companions=companions, views=traits.derived_views,
        targets=traits.targets,
    )  # fmt: skip


def _check_attributes(loss: Loss, who: str) -> None:
    traits = declared(loss, LossTraits)
    roles, defaults, weights = traits.roles or (), traits.defaults, traits.weights
    require(
        not isinstance(roles, str) and all(isinstance(role, str) and role for role in roles),
        f"{who}.roles must be a sequence of names, got {roles!r}",
    )
    require(len(set(roles)) == len(roles), f"{who}.roles names one role twice: {roles!r}")
    require(
        isinstance(defaults, Mapping) and all(isinstance(key, str) for key in defaults),
        f"{who}.defaults must map names to values, got {defaults!r}",
    )
    require(isinstance(weights, Mapping), f"{who}.weights must map terms to numbers, got {weights!r}")
    for term, weight in weights.items():
        require(callable(weight) or isinstance(weight, Real), f"{who}.weights[{term!r}] must be a number or a schedule")
        values = torch.tensor([at(weight, progress) for progress in (0.0, 0.5, 1.0)])
        require(values.isfinite().all(), f"{who}.weights[{term!r}] is not finite")


def _check_terms(terms: Any, batch: Batch, who: str) -> None:
    require(isinstance(terms, Mapping) and terms, f"{who} must return its terms by name, got {type(terms).__name__}")
    for name, term in terms.items():
        require(isinstance(name, str), f"{who}: the name of a term must be text, got {name!r}")
        require(
            isinstance(term, Tensor) and tuple(term.shape) == (len(batch),),
            f"{who}: the term {name!r} must hold one value per sample, ({len(batch)},), "
            f"got {tuple(getattr(term, 'shape', ()))}: a loss never averages over the batch itself",
        )
        require(term.is_floating_point() and term.isfinite().all(), f"{who}: the term {name!r} is not finite")


def _gradient(loss: Loss, terms: Mapping[str, Tensor], net: nn.Module) -> Tensor:
    weights = declared(loss, LossTraits).weights
    total = torch.stack([at(weights.get(name, 1.0), 0.5) * term.mean() for name, term in terms.items()]).sum()
    if not total.requires_grad:
        return torch.zeros(1)
    gradients = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None] or [torch.zeros(1)])


def _check_extremes(loss: Loss, batch: Batch, views: Sequence[str], who: str) -> None:
    for factor in (1e4, 0.0):
        teachers = tiny_teachers(declared(loss, LossTraits).roles or ())
        for teacher in teachers.values():
            teacher.net = Scaled(teacher.net, 1e4)
        net = Scaled(tiny_net(), factor)
        terms = loss(_step(loss, batch, net, views, teachers))
        what = f"{who} for logits around {factor:g} (teachers 1e4)"
        _check_terms(terms, batch, what)
        require(_gradient(loss, terms, net).isfinite().all(), f"the gradient of {what} is not finite")


def _check_per_sample(loss: Loss, batch: Batch, views: Sequence[str], who: str) -> None:
    net = tiny_net(LinearNet)  # no batch norm, which mixes samples in train mode
    keep = torch.tensor([4, 1, 6])
    whole, part = (loss(_step(loss, b, net, views)) for b in (batch, batch.select(keep)))
    for name in whole:
        require(
            torch.allclose(whole[name][keep], part[name], atol=1e-4, rtol=1e-4),
            f"{who}: a sample's {name!r} depends on the other samples of the batch",
        )


def _update(scheduler: Scheduler, place: int, names: Sequence[str], who: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(place)
    raw = {name: torch.rand(8, generator=generator).requires_grad_() for name in names}
    terms = {name: 2 * value for name, value in raw.items()}
    before = {name: term.detach().clone() for name, term in terms.items()}
    hook = run_hooks({"it": scheduler}).hook
    step = tiny_step(
        roles=("robust", "clean"), progress=place / 10, lr_scale=0.1 if place > 3 else 1.0,
        attacks={"adv": AttackPlan(OneStep(), cross_entropy)},
        on_query=lambda step, view, rows, query, logits: hook.rkd_attack_query(
            step=step, view=view, rows=rows, query=query, logits=logits
        ),
    )  # fmt: skip
    step.image("adv")
    random = torch.get_rng_state()
    values = scheduler.update(step, terms)
    require(torch.equal(random, torch.get_rng_state()), f"{who} must not touch the global random state")
    require(isinstance(values, Mapping), f"{who}.update must return values by name, got {type(values).__name__}")
    for name, value in values.items():
        require(isinstance(name, str), f"{who}: the name of a value must be text, got {name!r}")
        number = torch.as_tensor(value)
        require(number.isfinite().all(), f"{who}: the value {name!r} is not finite")
        require(not number.requires_grad, f"{who}: the value {name!r} is attached to the graph; detach what you keep")
    for name, term in terms.items():
        require(torch.equal(term.detach(), before[name]), f"{who} must not change the loss term {name!r}")
    return dict(values)


def _same_values(a: Mapping[str, Any], b: Mapping[str, Any], sentence: str) -> None:
    require(set(a) == set(b), sentence)
    for name in a:
        require(torch.equal(torch.as_tensor(a[name]).cpu(), torch.as_tensor(b[name]).cpu()), f"{sentence} ({name})")


def _check_state(state: Any, who: str) -> None:
    require(isinstance(state, Mapping), f"{who}.state_dict must return a mapping, got {type(state).__name__}")
    stack = list(state.values())
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        elif isinstance(value, Tensor):
            require(not value.requires_grad, f"{who} keeps a tensor with its graph: memory grows with every step")
        else:
            require(
                value is None or isinstance(value, (bool, int, float, str)),
                f"{who}: a state may hold numbers, strings, tensors, lists and dicts, not {type(value).__name__}",
            )


def check_trains(run: Run, steps: int = 2) -> None:
    """Raise AssertionError unless `steps` updates after a dry step leave weights that are finite and have moved."""
    dry_step(run)
    before = torch.cat([p.detach().flatten().clone() for p in run.student.net.parameters()])
    for batch in itertools.islice(run.loader.batches(0), steps):
        require(train_step(run, batch).isfinite().all(), "the loss is not finite")
    after = torch.cat([p.detach().flatten() for p in run.student.net.parameters()])
    require(after.isfinite().all(), "a weight is not finite after training")
    require(not torch.equal(before, after), "training has moved no weight")
