"""AutoAttack: four different attacks in turn, each on the samples that are robust to the ones before it.

    apgd-ce    100 steps on cross-entropy
    apgd-t     100 steps on the targeted ratio of logits, towards each of the 9 likeliest other classes
    fab-t      100 steps along the boundary, to each of these 9 classes
    square     5,000 queries without gradients

In L1, as the authors have it: five starts of apgd-ce, and five targets of apgd-t (Croce and Hein, 2021). In L0 there is
none.

A sample counts as robust if it survives all four: the worst case for each sample. This is the version `standard`, by
whose number robust nets are compared. The file of each part tells how it works and where it differs from the
authors' code. `autoattack-reference` is that code itself, as released on PyPI (pyautoattack), behind the same
interface: slower, and the yardstick for `autoattack`. It needs the extra `reference`:
`pip install 'rkd-toolkit[reference]'`.

References: croce2020reliable, croce2021mind, melamed2024malt

Images on the very boundary fall with one seed and stand with another. `boundary_restarts` runs square again, each time
with other random numbers, on those whose lowest margin is at most 0.005: never a weaker verdict, and no longer the
standard version.

`autoattack+` runs two more attacks before apgd-t, each on the survivors: `apgd-margin` with 5 restarts, and apgd-t with
its classes in MALT's order (Melamed et al. 2024). The parts of `autoattack` follow with the random numbers that they
have there, and a sample's images do not depend on the others of its batch: whatever falls to `autoattack` falls to
`autoattack+`. It takes up to 14 times 100 steps more for an image that nothing fools. Its number is no standard one.

Where nothing fooled the net, the image is returned that came nearest to it: of all parts' the one of the lowest margin.
One that the net gets wrong as it is, is returned unchanged. With K < 10 classes the targeted parts try the K - 1
others; see `notes`.

The reference draws from torch's global generators, seeds them, switches off any debugger or coverage measurement,
counts calls in a table that it never clears, makes tensors of torch's default type, logs warnings, adds to the
gradients of weights, and writes into the logits it is given. Here its random numbers come from a fork of the
generators with a seed that follows from the attack's noise, and all the rest is undone. Its resuming (broken) and its
own check of accuracy are not used. It gets as many targets as there are classes; of 3 classes or fewer, its targeted
APGD stops with an error and is left out.
It stops with an error too where logits are of another type than float32 or do not depend on the images, and where
square is left with nothing but ties of two logits: it is spared these. Images of it that are no numbers (in L2, where
gradients are none) are given up.
Its randomness is that of a batch: unlike everywhere else in rkd, a sample's result depends on its batch.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from rkd.plugin import Attack, AttackTraits, HasNotes, Mode, Norm, RkdError, Schedule, Target, forked, hookimpl, ops

from ._early_stop import (
    MOST_TARGETS,
    FooledImages,
    begin,
    finite_margin,
    for_samples,
    misclassified,
    reference_logits,
)
from ._options import CONVEX, attacker, check_search
from .apgd import ApgdCe, ApgdMargin, ApgdT
from .fab import FabT
from .square import Square

_BOUNDARY = 0.005
"""The margin up to which another seed of the last part is worth its queries."""


@dataclass
class AutoAttack:
    """AutoAttack, version standard: four attacks, each on the survivors of the one before (Croce and Hein 2020).

    `eps` in units of [0, 1] images; None: the data set's. `steps` of apgd-ce and of each target of apgd-t and fab-t,
    `targets` of both, `queries` of square: the standard ones unless told. `boundary_restarts`: further runs of square
    on images whose lowest margin is at most 0.005.
    """

    eps: Schedule | None = None
    norm: Norm | None = None
    steps: int = 100
    targets: int = MOST_TARGETS
    queries: int = 5000
    boundary_restarts: int = 0
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(own_objective=True, confirms=True)

    def __post_init__(self) -> None:
        check_search(
            self.eps, self.norm, self.mode, knows=CONVEX,
            steps=self.steps, targets=self.targets, queries=self.queries,
        )  # fmt: skip
        if not 0 <= self.boundary_restarts <= 100:
            raise ValueError(f"boundary_restarts must be from 0 to 100, got {self.boundary_restarts}")

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`."""
        return self.run(x, target)[0]

    def run(self, x: Tensor, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial images, and which samples are robust `clean` and after each part, `(B,)` bool."""
        x = x.detach()
        attacker(target, self.eps, self.norm, knows=CONVEX)
        result = begin(x, target)
        robust = {"clean": ~result.fooled}
        parts = self.parts(self.norm or target.threat.norm)
        for name, attack in parts.items():
            spend(attack, result, result.remaining(), x, target, name)
            robust[name] = ~result.fooled
        last = parts["square"]
        for restart in range(self.boundary_restarts):
            near = (~result.fooled & (result.score >= -_BOUNDARY)).nonzero().squeeze(1)
            spend(last, result, near, x, target, "boundary", restart)
        robust["square"] = ~result.fooled
        return result.images, robust

    def parts(self, norm: Norm = "Linf") -> dict[str, Attack]:
        """The attacks in their order."""
        sparse = norm == "L1"
        shared: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "mode": self.mode}
        return {
            "apgd-ce": ApgdCe(steps=self.steps, restarts=5 if sparse else 1, **shared),
            "apgd-t": ApgdT(steps=self.steps, targets=min(self.targets, 5) if sparse else self.targets, **shared),
            "fab-t": FabT(steps=self.steps, targets=self.targets, **shared),
            "square": Square(queries=self.queries, **shared),
        }

    def notes(self, classes: int) -> list[str]:
        """What is done differently for so few classes, and what is not the standard version."""
        parts = [attack for attack in self.parts().values() if isinstance(attack, HasNotes)]
        notes = [note for attack in parts for note in attack.notes(classes)]
        return notes + _unusual(self, "autoattack", "steps", "targets", "queries", "boundary_restarts")


def spend(attack: Attack, result: FooledImages, rows: Tensor, x: Tensor, target: Target, *name: object) -> None:
    """Run an attack on the samples at `rows`, with random numbers that follow from `name`, and note what it found."""
    if not len(rows):
        return
    selected = for_samples(target, rows, *name)
    images = attack(x[rows], selected)
    logits = reference_logits(images, selected)
    fooled, score = misclassified(logits, selected.y), -finite_margin(logits, selected.y)
    result.add_better(rows, images, fooled, score)


@dataclass
class AutoAttackPlus(AutoAttack):
    """AutoAttack and more: a margin attack with restarts, and targets in MALT's order (after Melamed et al. 2024).

    Never weaker than `autoattack` with the same seed. Options as there; `restarts` of the margin attack.
    """

    restarts: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_search(None, None, self.mode, restarts=self.restarts)

    def parts(self, norm: Norm = "Linf") -> dict[str, Attack]:
        """The attacks in their order: those of `autoattack` under the names that they have there."""
        shared: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "mode": self.mode, "steps": self.steps}
        first, *others = list(super().parts(norm).items())
        more: dict[str, Attack] = {
            "apgd-margin": ApgdMargin(restarts=self.restarts, **shared),
            "apgd-t malt": ApgdT(targets=self.targets, order="malt", **shared),
        }
        return {first[0]: first[1], **more, **dict(others)}

    def notes(self, classes: int) -> list[str]:
        """That it is not the standard version, and what is done differently for so few classes."""
        own = "autoattack+: more attacks than the standard version has: do not compare it with published numbers"
        return list(dict.fromkeys([own, *super().notes(classes)]))


@dataclass
class Reference:
    """AutoAttack by its authors' own code (pyautoattack), version standard: the yardstick for `autoattack`.

    Needs the extra `reference` (`pip install 'rkd-toolkit[reference]'`).

    `eps` in units of [0, 1] images; None: the data set's. `queries` of square: the standard ones unless told.
    """

    eps: Schedule | None = None
    norm: Norm | None = None
    queries: int = 5000
    mode: Mode = "eval"

    traits: ClassVar = AttackTraits(own_objective=True)

    def __post_init__(self) -> None:
        check_search(self.eps, self.norm, self.mode, knows=CONVEX, queries=self.queries)
        if find_spec("pyautoattack") is None:  # said when the attack is built, not hours later when it is run
            raise RkdError(
                "autoattack-reference needs pyautoattack, its authors' code: pip install 'rkd-toolkit[reference]' "
                "(autoattack, rkd's own, needs nothing)"
            )

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the ball around `x`."""
        from pyautoattack import AutoAttack as Theirs  # here: nobody else needs it

        threat = attacker(target, self.eps, self.norm, knows=CONVEX)
        if not threat.eps > 0:
            return x.clone()
        x = x.detach()
        y = ops.hard(target.y)
        with torch.no_grad():
            classes = target.logits(x[:1]).shape[1]
        seed = target.noise.key % 2**31
        with contained(seed, x.device):
            theirs = Theirs(_Probe(target), eps=threat.eps, norm=threat.norm, seed=seed, device=x.device)
            theirs.fab.n_target_classes = min(MOST_TARGETS, classes - 1)
            theirs.apgd_targeted.n_target_classes = min(5 if threat.norm == "L1" else MOST_TARGETS, classes - 1)
            theirs.square.n_queries = self.queries
            if classes <= 3:
                theirs.attacks_to_run = ["apgd-ce", "fab-t", "square"]
            theirs.square.margin_and_loss = _settled(theirs.square.margin_and_loss)
            images, _ = theirs.run_standard_evaluation(x, y, batch_size=len(x))
        finite = images.flatten(1).isfinite().all(1)
        return ops.where(finite, images.detach(), x)

    def notes(self, classes: int) -> list[str]:
        """What is done differently for so few classes."""
        notes = []
        if classes <= MOST_TARGETS:
            notes.append(
                f"autoattack-reference: {classes - 1} target classes, not {MOST_TARGETS}: there are {classes} classes"
            )
        if classes <= 3:
            notes.append(f"autoattack-reference: apgd-t is left out, which cannot do with {classes} classes")
        return notes + _unusual(self, "autoattack-reference", "queries")


def _unusual(attack: AutoAttack | Reference, attack_name: str, *names: str) -> list[str]:
    """What makes it another version than the standard one."""
    standard = type(attack)()
    return [
        f"{attack_name}: {name} = {getattr(attack, name)}, where the standard version has {getattr(standard, name)}: "
        "do not compare it with published numbers"
        for name in names
        if getattr(attack, name) != getattr(standard, name)
    ]


class _Probe:
    """The net as the reference calls it. It gets copies of the logits, for it writes into them, in float32, for it
    mixes them with numbers of its own, and with a graph, also where they do not depend on the images."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._target.logits(x).float().clone()
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits


def _settled(margins: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The reference's margins with a tie as a success: where all that is left are ties, square has an empty batch and
    ends with an error. Everywhere else it takes a tie as a success already."""

    def settled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margin, loss = margins(x, y)
        return torch.where(margin == 0, -torch.finfo(margin.dtype).tiny, margin), loss

    return settled


@contextmanager
def contained(seed: int, device: torch.device) -> Iterator[None]:
    """Undoes what pyautoattack does to its process, and seeds the random numbers that it will seed again."""
    from pyautoattack import checks

    logger = logging.getLogger("auto-attack")
    trace, counts, disabled = sys.gettrace(), dict(checks.funcs), logger.disabled
    seed_cuda, kind = torch.cuda.random.manual_seed, torch.get_default_dtype()
    logger.disabled = True
    if device.type != "cuda":  # it would seed a GPU that takes no part
        torch.cuda.random.manual_seed = lambda seed: None
    torch.set_default_dtype(torch.float32)  # else its tensors are not of the images' type
    try:
        with forked(seed, device), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_default_dtype(kind)
        torch.cuda.random.manual_seed = seed_cuda
        logger.disabled = disabled
        checks.funcs.update(counts)
        sys.settrace(trace)


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"autoattack": AutoAttack, "autoattack+": AutoAttackPlus, "autoattack-reference": Reference}
