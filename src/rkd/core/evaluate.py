"""Clean and attacked accuracy, sample by sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .data import Split, check_images, fetch
from .errors import DataError, Refused, RkdError
from .interfaces import Probe
from .modes import running
from .nets import NetStudent, check_logits
from .random import key
from .step import AttackPlan, Step
from .types import Mode, ThreatModel, View

Progress = Callable[[str, int, int], None]
"""(what, samples done, samples in all)"""


@dataclass
class Evaluation:
    """Which samples a net gets right. All tensors `(N,)`, on the CPU.

    A sample counts as right under an attack if it is right both clean and attacked: an image that is already
    wrong needs no attack, and none is run on it.
    """

    index: Tensor
    clean: Tensor
    attacks: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(self.index)

    def accuracy(self, attack: str | None = None) -> float:
        """A fraction in [0, 1]: clean, or under an attack."""
        right = self.clean if attack is None else self.attacks[attack]
        return float(right.double().mean())

    def w_robust(self, attack: str) -> float:
        """(clean + robust) / 2, the measure of Zhao et al. (MTARD, ECCV 2022)."""
        return (self.accuracy() + self.accuracy(attack)) / 2

    def nrr(self, attack: str) -> float:
        """The harmonic mean of clean and robust accuracy."""
        clean, robust = self.accuracy(), self.accuracy(attack)
        return 2 * clean * robust / (clean + robust) if clean + robust else 0.0

    def worst(self) -> Tensor:
        """Samples that every attack left right, `(N,)` bool."""
        right = self.clean.clone()
        for survived in self.attacks.values():
            right &= survived
        return right

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        names = list(self.attacks)
        return {
            "samples": self.samples,
            "clean": self.accuracy(),
            "attacks": {name: self.accuracy(name) for name in names},
            "w_robust": {name: self.w_robust(name) for name in names},
            "nrr": {name: self.nrr(name) for name in names},
            "worst_case": float(self.worst().double().mean()),
            "interval_95": {
                name: list(wilson(int(right.sum()), self.samples))
                for name, right in {"clean": self.clean, **self.attacks}.items()
            },
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "warnings": list(self.warnings),
        }


# Tensors of inference mode take no part in gradients, which attacks need, whatever the caller's own mode.
@torch.inference_mode(False)
def evaluate(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan] | None = None,
    *,
    threat: ThreatModel,
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """Run `net`, which takes images in [0, 1], on `split`, clean and under each attack.

    `limit` takes that many samples, drawn once and for all from the split (the same for every net and seed).
    The net is left as it was: weights, gradients, buffers, modes; so is the global random state. An attack in train
    mode runs in `frozen` here. `classes`: None for as many as the net has.
    Raises DataError for images outside [0, 1], RkdError if an attack leaves [0, 1] or the net's logits are unfit.
    """
    positions = choose(len(split), limit)
    result = Evaluation(positions, torch.empty(0, dtype=torch.bool))
    report = progress or (lambda what, done, total: None)
    device = torch.device(device)

    started = time.perf_counter()
    clean = []
    with running(net, "eval"), torch.no_grad():
        for part in positions.split(batch_size):
            batch = fetch(split, part, device)
            check_images(batch.x)
            logits = net(batch.x)
            classes = classes or (logits.shape[-1] if isinstance(logits, Tensor) and logits.ndim else 0)
            check_logits(logits, len(batch), classes, "the net")
            if int(batch.y.max()) >= classes:
                raise DataError(f"a label is {int(batch.y.max())}, but the net knows {classes} classes")
            clean.append(ops.correct(logits, batch.y).cpu())
            report("clean", sum(map(len, clean)), len(positions))
    result.clean = torch.cat(clean)
    result.seconds["clean"] = time.perf_counter() - started

    for name, plan in (attacks or {}).items():
        started = time.perf_counter()
        survived = result.clean.clone()
        standing = survived.nonzero().squeeze(1)
        report(name, len(positions) - len(standing), len(positions))
        done = len(positions) - len(standing)
        for places in standing.split(batch_size) if len(standing) else ():  # an empty tensor splits into one part
            survived[places] = _attacked(net, split, positions[places], plan, threat, key(seed, name), device)
            done += len(places)
            report(name, done, len(positions))
        result.attacks[name] = survived
        result.seconds[name] = time.perf_counter() - started
    result.warnings = doubts(result)
    return result


class _Evaluated(NetStudent):
    """A net that learns nothing any more: not even its running statistics move."""

    @contextmanager
    def attacked(self, view: View, mode: Mode) -> Iterator[Probe]:
        with super().attacked(view, "frozen" if mode == "train" else mode) as probe:
            yield probe


class _Enough(Exception):
    pass


def rehearse(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan],
    *,
    threat: ThreatModel,
    device: torch.device | str = "cpu",
) -> None:
    """Raise Refused for an attack that an evaluation could not run, at the price of one forward and backward each.

    Each is called on two images and stopped at its second question to the net.
    """
    batch = fetch(split, torch.arange(min(2, len(split))), device)
    for name, plan in attacks.items():
        asked: list[str] = []

        def stop(step: Step, view: str, logits: Tensor, asked: list[str] = asked) -> None:
            asked.append(view)
            if len(asked) > 1:
                raise _Enough

        step = Step(batch, _Evaluated(net), attacks={"adv": plan}, threat=threat, on_query=stop)
        try:
            step.image("adv")
        except _Enough:
            continue
        except RkdError as error:
            raise Refused(f"the attack {name!r} could not be run in the evaluation: {error}") from None


def _attacked(
    net: nn.Module, split: Split, part: Tensor, plan: AttackPlan, threat: ThreatModel, noise: int, device: torch.device
) -> Tensor:
    batch = fetch(split, part, device)
    step = Step(batch, _Evaluated(net), attacks={"adv": plan}, threat=threat, noise_key=noise)
    x_adv = step.image("adv")
    if x_adv.shape != batch.x.shape or not bool(x_adv.isfinite().all()):
        raise RkdError("an attack returned images of another shape, or values that are not numbers")
    if float(x_adv.min()) < -1e-6 or float(x_adv.max()) > 1 + 1e-6:
        raise RkdError("an attack returned images outside [0, 1]")
    with running(net, "eval"), torch.no_grad():
        return ops.correct(net(x_adv), batch.y).cpu()


def choose(count: int, limit: int | None) -> Tensor:
    """Positions of the samples to evaluate: all, or `limit` of them drawn once and for all, in order."""
    if limit is None or limit == count:
        return torch.arange(count)
    if not 1 <= limit <= count:
        raise DataError(f"the limit of samples must be between 1 and {count}, the size of the test data; got {limit}")
    generator = torch.Generator().manual_seed(key("evaluation subset"))
    return torch.randperm(count, generator=generator)[:limit].sort().values


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a fraction (Wilson, 1927)."""
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (
        max(0.0, (centre - spread) / (1 + z * z / count)),
        min(1.0, (centre + spread) / (1 + z * z / count)),
    )


def doubts(result: Evaluation) -> list[str]:
    """Reasons not to trust the numbers, each with what it means."""
    found = []
    robust = {name: result.accuracy(name) for name in result.attacks}
    iterated = {name: value for name, value in robust.items() if name != "fgsm"}
    if "fgsm" in robust and iterated and robust["fgsm"] < min(iterated.values()) - 0.005:
        found.append(
            f"FGSM ({robust['fgsm']:.1%}) beats every iterated attack ({min(iterated.values()):.1%}): gradients are "
            "likely masked; trust none of these numbers before a stronger attack"
        )
    for name, value in robust.items():
        if result.accuracy() > 0.2 and value > result.accuracy() - 0.002 and name != "fgsm":
            found.append(
                f"{name} changed almost nothing ({value:.1%} against {result.accuracy():.1%} clean): the net may have "
                "no usable gradient, or eps is too small to mean anything"
            )
    return found
