"""The result of an evaluation, sample by sample, and its measures: intervals, calibration, accuracy by class."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.types import ThreatModel


@dataclass
class AttackResult:
    """The net's predictions on the clean images, or on those that one attack made. All tensors `(N,)`, on the CPU.

    `confidence`: the largest probability, 0 where the logits are not numbers (such an answer counts as wrong).
    `margin`: the label's logit minus the largest other one. `forwards` and `backwards` count images through the net
    during the attack, `others` those through other nets that it ran on (`transfer`); `about` describes the attack.
    `rounded`: right after rounding to 8 bits inside the ball, if `EvalSettings.rounded`. `distance`: of an attack that
    looks for the nearest image that fools the net whatever the radius, how far that is, in the norm `about["measure"]`:
    0 for images that are wrong as they are, infinite where nothing fooled the net.
    """

    right: Tensor
    prediction: Tensor
    confidence: Tensor
    rounded: Tensor | None = None
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    margin: Tensor | None = None
    others: tuple[int, ...] = (0, 0)
    distance: Tensor | None = None


@dataclass
class Gallery:
    """Some images with what an attack made of them: `clean` and `adversarial` `(M, C, H, W)`, and `(M,)` positions
    among the evaluated samples with the attack's name."""

    rows: Tensor
    attacks: list[str]
    clean: Tensor
    adversarial: Tensor


@dataclass(frozen=True)
class EvaluationWarning:
    """A reason not to trust a robust accuracy: `check` is its short name, `finding` what was seen, `meaning` what it
    says, `advice` what to do."""

    check: str
    finding: str
    meaning: str
    advice: str

    def __str__(self) -> str:
        return f"{self.finding}: {self.meaning}; {self.advice}"


@dataclass
class Evaluation:
    """Which samples a net gets right: `clean` and, under each attack, `attacks[name]`, `(N,)` bool.

    A sample counts as right under an attack if it is right both clean and attacked: an image that is already
    wrong needs no attack, and none is run on it. `index`: positions in the data; `outcomes`: all that is known,
    under `clean` and the attacks' names.
    """

    index: Tensor
    labels: Tensor
    outcomes: dict[str, AttackResult]
    classes: int
    threat: ThreatModel = field(default_factory=ThreatModel)
    warnings: list[EvaluationWarning] = field(default_factory=list)
    gallery: Gallery | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Further findings by name (`curve`, `corruptions`, ...), plain values for JSON."""

    @property
    def samples(self) -> int:
        return len(self.index)

    @property
    def clean(self) -> Tensor:
        return self.outcomes["clean"].right

    @property
    def attacks(self) -> dict[str, Tensor]:
        return {name: outcome.right for name, outcome in self.outcomes.items() if name != "clean"}

    def accuracy(self, attack: str | None = None) -> float:
        """A fraction in [0, 1]: clean, or under an attack."""
        return float(self.outcomes[attack or "clean"].right.double().mean())

    def w_robust(self, attack: str) -> float:
        """(clean + robust) / 2, the measure of Zhao et al. (MTARD, ECCV 2022)."""
        return w_robust(self.accuracy(), self.accuracy(attack))

    def nrr(self, attack: str) -> float:
        """The harmonic mean of clean and robust accuracy."""
        return nrr(self.accuracy(), self.accuracy(attack))

    def counts(self, attack: str) -> bool:
        """Whether an attack keeps to the threat model, and so belongs into the worst case."""
        return self.outcomes[attack].about.get("in_threat", True)

    def worst(self) -> Tensor:
        """Samples that every attack of the threat model left right, `(N,)` bool."""
        return self._under_all(self.attacks)

    def measures(self, attack: str) -> bool:
        """Whether an attack's distance is that of the threat's norm: one that looks for the nearest image in L2 has
        little to say about an Linf ball."""
        return self.outcomes[attack].about.get("measure", self.threat.norm) == self.threat.norm

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON; `right` says of each image whether it is right, see `unpacked`."""
        names = list(self.attacks)
        worst = self.worst()
        rights = {"clean": self.clean, **self.attacks, "worst_case": worst}
        values: dict[str, Any] = {
            "samples": self.samples,
            "clean": self.accuracy(),
            "attacks": {name: self.accuracy(name) for name in names},
            "w_robust": {name: self.w_robust(name) for name in names},
            "nrr": {name: self.nrr(name) for name in names},
            "worst_case": float(worst.double().mean()),
            "interval_95": {name: interval(right) for name, right in rights.items()},
            "seconds": {name: round(outcome.seconds, 2) for name, outcome in self.outcomes.items()},
            "warnings": [asdict(warning) for warning in self.warnings],
            "per_class": {name: per_class(right, self.labels, self.classes) for name, right in rights.items()},
            "calibration": {name: calibration(o.confidence, o.right) for name, o in self.outcomes.items()},
            "searches": {name: self._attack(name) for name in names},
            "right": {name: packed(right) for name, right in rights.items()},
        }
        values["worst_class"] = {
            name: min((a for a in accuracies if a is not None), default=None)
            for name, accuracies in values["per_class"].items()
        }
        if any(o.rounded is not None for o in self.outcomes.values()):
            values["rounded"] = self._rounded()
        if self.gallery is not None:
            values["examples"] = self._examples(self.gallery)
        return values | self.extra

    def _rounded(self) -> dict[str, float]:
        """Accuracies on the images rounded to 8 bits: of each attack, and under all of the threat model."""
        rights = {name: outcome.rounded for name, outcome in self.outcomes.items() if outcome.rounded is not None}
        rights["worst_case"] = self._under_all(rights)
        return {name: float(right.double().mean()) for name, right in rights.items()}

    def _under_all(self, rights: Mapping[str, Tensor]) -> Tensor:
        """Who is right clean, and in `rights` under each attack of the threat model."""
        counted = [right for name, right in rights.items() if self.counts(name)]
        return torch.stack([self.clean, *counted]).all(0)

    def _attack(self, name: str) -> dict[str, Any]:
        outcome = self.outcomes[name]
        attacked = int(self.clean.sum())
        fooled = int((self.clean & ~outcome.right).sum())
        counts: dict[str, Any] = {
            "attacked": attacked, "fooled": fooled, "forwards": outcome.forwards, "backwards": outcome.backwards,
        }  # fmt: skip
        if any(outcome.others):
            counts |= dict(zip(("other_forwards", "other_backwards"), outcome.others, strict=True))
        if outcome.distance is not None and attacked:
            counts["distance"] = spread_of(outcome.distance[self.clean])
        return outcome.about | counts | {"seconds": round(outcome.seconds, 2)}

    def _examples(self, gallery: Gallery) -> list[dict[str, Any]]:
        def answer(name: str, row: int) -> dict[str, Any]:
            outcome = self.outcomes[name]
            return {"prediction": int(outcome.prediction[row]), "confidence": float(outcome.confidence[row])}

        return [
            {"index": int(self.index[row]), "label": int(self.labels[row]), "attack": name}
            | {"clean": answer("clean", row), "adversarial": answer(name, row)}
            for row, name in zip(gallery.rows.tolist(), gallery.attacks, strict=True)
        ]


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a fraction (Wilson, 1927)."""
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Exactly 0 and 1 at the ends, where rounding would leave a trace.
    low = (centre - spread) / scale if successes else 0.0
    high = (centre + spread) / scale if successes < count else 1.0
    return max(0.0, low), min(1.0, high)


def interval(right: Tensor) -> list[float]:
    """The 95 % interval of the share of True in `right (N,)`."""
    return list(wilson(int(right.sum()), len(right)))


def packed(right: Tensor) -> str:
    """`right (N,)` bool as hexadecimal text, four samples a digit, the first sample the highest bit."""
    bits = "".join("01"[value] for value in right.tolist())
    return "".join(f"{int(bits[place : place + 4].ljust(4, '0'), 2):x}" for place in range(0, len(bits), 4))


def unpacked(text: str, count: int) -> Tensor:
    """`(count,)` bool from what `packed` made."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in text)[:count]
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool)


def difference(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """The mean of `first - second` with its 95 % interval: two nets' values `(N,)` in [0, 1] on the same images.

    The interval is Agresti and Min's (Statistics in Medicine 2005) for paired shares, with half an image added to each
    of the two kinds of disagreement and one to the agreements, carried over to values between 0 and 1.
    """
    apart = first.double() - second.double()
    count = len(apart) + 2
    centre = float(apart.sum()) / count
    variance = (float(apart.square().sum()) + 1) / count - centre**2
    half = 1.959964 * math.sqrt(variance / count)
    return float(apart.mean()), max(-1.0, centre - half), min(1.0, centre + half)


def spread_of(distance: Tensor) -> dict[str, Any]:
    """Of the distances `(M,)` to the nearest images that fool a net: for how many one was `found`, their `mean`, and
    the radii within which 10, 25, 50 (`median`), 75 and 90 % of all are fooled; None where fewer are."""
    ordered = distance.double().sort().values
    found = int(ordered.isfinite().sum())

    def within(percent: int) -> float | None:
        radius = float(ordered[-(-percent * len(ordered) // 100) - 1])
        return radius if math.isfinite(radius) else None

    names = {"p10": 10, "p25": 25, "median": 50, "p75": 75, "p90": 90}
    spread: dict[str, Any] = {"samples": len(ordered), "found": found}
    spread["mean"] = float(ordered[:found].mean()) if found else None
    return spread | {name: within(percent) for name, percent in names.items()}


def w_robust(clean: float, robust: float) -> float:
    """(clean + robust) / 2, the measure of Zhao et al. (MTARD, ECCV 2022)."""
    return (clean + robust) / 2


def nrr(clean: float, robust: float) -> float:
    """Natural-robust ratio: the harmonic mean of clean and robust accuracy."""
    return 2 * clean * robust / (clean + robust) if clean + robust else 0.0


def per_class(right: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """The accuracy on the samples of each class; None where there is no sample."""
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    return [float(h / c) if c else None for h, c in zip(hits.double(), count, strict=True)]


def calibration(confidence: Tensor, right: Tensor, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error in `bins` equal bins of confidence (Guo et al., ICML 2017, eq. 3).

    `confidence (N,)`: the largest probability, in [0, 1]; `right (N,)`. Gives the mean confidence, and of each bin
    from 0 to 1 how many samples it has, their mean confidence and their accuracy.
    """
    confidence, hits = confidence.double(), right.double()
    # Bins (0, 1/15], (1/15, 2/15], ...: a net that is quite sure, at 1.0, is in the last.
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    sure = torch.bincount(place, confidence, minlength=bins)
    good = torch.bincount(place, hits, minlength=bins)
    rows = [
        [int(c), float(s / c), float(g / c)] if c else [0, 0.0, 0.0]
        for c, s, g in zip(count, sure, good, strict=True)
    ]  # fmt: skip
    return {"ece": float((good - sure).abs().sum() / len(right)), "confidence": float(confidence.mean()), "bins": rows}
