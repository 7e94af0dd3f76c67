"""Reasons not to trust a robust accuracy, read off the numbers themselves. `selfcheck` asks the net for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from .measures import wilson

if TYPE_CHECKING:
    from .result import Evaluation

ENOUGH = 1000
"""Below so many samples an accuracy is a rough figure."""


@dataclass(frozen=True)
class Doubt:
    """One reason: `check` is its short name, `finding` what was seen, `meaning` what it says, `advice` what to do."""

    check: str
    finding: str
    meaning: str
    advice: str

    def plain(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.finding}: {self.meaning}; {self.advice}"


def doubts(result: Evaluation, slope: float | None = None) -> list[Doubt]:
    """What is odd about these numbers (Athalye et al. 2018, Carlini et al. 2019).

    `slope`: by how much a margin falls per unit of the radius, as `selfcheck.slope` measures it. With it an attack that
    changes nothing is odd only where it should have changed something.
    """
    return [*_not_numbers(result), *_fgsm(result), *_black_box(result), *_no_effect(result, slope), *_few(result)]


def missed_by(result: Evaluation, attacks: Sequence[str], other: str) -> int:
    """How many samples withstood each of these attacks, and not the other."""
    standing = torch.stack([result.attacks[name] for name in attacks]).all(0)
    return int((standing & ~result.attacks[other]).sum())


def _not_numbers(result: Evaluation) -> list[Doubt]:
    broken = {name: int((result.outcomes[name].confidence == 0).sum()) for name in result.attacks}
    name = max(broken, key=lambda n: broken[n], default="")
    if not name or not broken[name]:
        return []
    return [
        Doubt(
            "not-numbers",
            f"for {broken[name]} of the images that {name} made the net's logits are NaN or infinite",
            "they count as wrong, but such a net is broken there rather than fooled, and its gradients may be, too",
            "run the net in float32, and look for what overflows or divides by zero",
        )
    ]


def _fgsm(result: Evaluation) -> list[Doubt]:
    robust = {name: result.accuracy(name) for name in result.attacks if result.counts(name)}
    blind = {"fgsm"} | {name for name in robust if result.outcomes[name].about.get("black_box")}
    iterated = {name: value for name, value in robust.items() if name not in blind and result.measures(name)}
    if "fgsm" not in robust or not iterated or robust["fgsm"] >= min(iterated.values()) - 0.005:
        return []
    return [
        Doubt(
            "fgsm-beats-iterated",
            f"FGSM ({robust['fgsm']:.1%}) beats every iterated attack ({min(iterated.values()):.1%})",
            "gradients are likely masked, or the iterated attacks run too few or too large steps",
            "trust none of these numbers before a stronger attack (autoattack)",
        )
    ]


def _black_box(result: Evaluation) -> list[Doubt]:
    blind = [name for name in result.attacks if result.outcomes[name].about.get("black_box") and result.counts(name)]
    seeing = [name for name in result.attacks if name not in blind and result.counts(name)]
    if not blind or not seeing:
        return []
    missed = {name: missed_by(result, seeing, name) for name in blind}
    name = max(missed, key=lambda n: missed[n])
    if missed[name] <= max(1, 0.01 * result.samples):
        return []
    return [
        Doubt(
            "black-box",
            f"{name}, which sees no gradients, fools the net on {missed[name]} of {result.samples} images that "
            f"no white-box attack ({', '.join(seeing)}) could",
            "the gradients lead nowhere: they are masked",
            "run autoattack; the number of the white-box attacks alone is worth nothing",
        )
    ]


def _no_effect(result: Evaluation, slope: float | None) -> list[Doubt]:
    found = []
    for name in result.attacks:
        outcome, clean = result.outcomes[name], result.accuracy()
        weak = name == "fgsm" or outcome.about.get("black_box") or not result.measures(name)
        silent = result.accuracy(name) > clean - 0.002
        if not weak and clean > 0.2 and silent and not (slope and _too_small(result, name, slope)):
            found.append(
                Doubt(
                    "no-effect",
                    f"{name} changed almost nothing ({result.accuracy(name):.1%} against {clean:.1%} clean)",
                    "the net may have no usable gradient, or eps is too small to mean anything",
                    "run autoattack, and look at the accuracy against eps (--curve)",
                )
            )
    return found


def _too_small(result: Evaluation, name: str, slope: float) -> bool:
    """Whether an attack's radius is so small that its few falls are what a sound net would show.

    Expected are as many falls as images whose margin is below slope x eps; too few to tell them from what was found
    are those of which a Poisson number is as small in one case of twenty (fewer than 3, where nothing fell). And an
    attack that hands out the images it tried must have lowered their margins about as far as the slope says.
    """
    start, end = result.outcomes["clean"].margin, result.outcomes[name].margin
    about, threat = result.outcomes[name].about, result.threat
    if start is None or end is None or about.get("norm", threat.norm) != threat.norm:
        return False
    shift = slope * about.get("eps", threat.eps)
    right, standing = result.clean, result.attacks[name]
    expected = (start[right] <= shift).sum().double()
    fell = (right & ~standing).sum().double()
    lost = (start - end)[standing]
    handed_out = bool((lost != 0).any())
    lowered = not handed_out or float(lost.median()) >= 0.5 * shift
    return lowered and float(torch.special.gammaincc(fell + 1, expected)) > 0.05  # P(Poisson(expected) <= fell)


def _few(result: Evaluation) -> list[Doubt]:
    if result.samples >= ENOUGH or not result.attacks:
        return []
    low, high = wilson(int(result.worst().sum()), result.samples)
    return [
        Doubt(
            "few-samples",
            f"{result.samples} images: the worst case lies between {low:.1%} and {high:.1%} (95 % interval)",
            "differences within that width mean nothing",
            f"use at least {ENOUGH:,} images to claim more",
        )
    ]
