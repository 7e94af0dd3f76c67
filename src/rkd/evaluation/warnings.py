"""Reasons not to trust a robust accuracy that its numbers themselves show; `selfcheck` runs the net for more."""

from collections.abc import Iterator, Sequence

import torch

from .result import Evaluation, EvaluationWarning, wilson

ENOUGH = 1000
"""Below so many samples an accuracy is a rough figure."""


def find_warnings(result: Evaluation, slope: float | None = None) -> list[EvaluationWarning]:
    """What is odd about these numbers (Athalye et al. 2018, Carlini et al. 2019).

    `slope`: by how much a margin falls per unit of the radius, see `selfcheck.margin_slope`. With it an attack that
    changes nothing is odd only where it should have changed something.
    """
    return [
        *_not_finite(result), *_fgsm(result), *_black_box(result), *_no_effect(result, slope), *_few_samples(result),
    ]  # fmt: skip


def missed_by(result: Evaluation, attacks: Sequence[str], other: str) -> int:
    """How many samples are robust to each of these attacks, and not to the other."""
    robust = torch.stack([result.attacks[name] for name in attacks]).all(0)
    return int((robust & ~result.attacks[other]).sum())


def _not_finite(result: Evaluation) -> Iterator[EvaluationWarning]:
    broken = {name: int((result.outcomes[name].confidence == 0).sum()) for name in result.attacks}
    name = max(broken, key=lambda n: broken[n], default="")
    if not name or not broken[name]:
        return
    yield EvaluationWarning(
        "not-numbers",
        f"for {broken[name]} of the images that {name} made the net's logits are NaN or infinite",
        "they count as wrong, but such a net is broken there rather than fooled, and its gradients may be, too",
        "run the net in float32, and look for what overflows or divides by zero",
    )


def _fgsm(result: Evaluation) -> Iterator[EvaluationWarning]:
    robust = {name: result.accuracy(name) for name in result.attacks if result.counts(name)}
    blind = {"fgsm"} | {name for name in robust if result.outcomes[name].about.get("black_box")}
    iterated = {name: value for name, value in robust.items() if name not in blind and result.measures(name)}
    if "fgsm" not in robust or not iterated or robust["fgsm"] >= min(iterated.values()) - 0.005:
        return
    yield EvaluationWarning(
        "fgsm-beats-iterated",
        f"FGSM ({robust['fgsm']:.1%}) beats every iterated attack ({min(iterated.values()):.1%})",
        "gradients are likely masked, or the iterated attacks run too few or too large steps",
        "trust none of these numbers before a stronger attack (autoattack)",
    )


def _black_box(result: Evaluation) -> Iterator[EvaluationWarning]:
    blind = [name for name in result.attacks if result.outcomes[name].about.get("black_box") and result.counts(name)]
    seeing = [name for name in result.attacks if name not in blind and result.counts(name)]
    if not blind or not seeing:
        return
    missed = {name: missed_by(result, seeing, name) for name in blind}
    name = max(missed, key=lambda n: missed[n])
    if missed[name] <= max(1, 0.01 * result.samples):
        return
    yield EvaluationWarning(
        "black-box",
        f"{name}, which sees no gradients, fools the net on {missed[name]} of {result.samples} images that "
        f"no white-box attack ({', '.join(seeing)}) could",
        "the gradients lead nowhere: they are masked",
        "run autoattack; the number of the white-box attacks alone is worth nothing",
    )


def _no_effect(result: Evaluation, slope: float | None) -> Iterator[EvaluationWarning]:
    for name in result.attacks:
        outcome, clean = result.outcomes[name], result.accuracy()
        weak = name == "fgsm" or outcome.about.get("black_box") or not result.measures(name)
        silent = result.accuracy(name) > clean - 0.002
        if not weak and clean > 0.2 and silent and not (slope and _too_small(result, name, slope)):
            yield EvaluationWarning(
                "no-effect",
                f"{name} changed almost nothing ({result.accuracy(name):.1%} against {clean:.1%} clean)",
                "the net may have no usable gradient, or eps is too small to mean anything",
                "run autoattack, and look at the accuracy against eps (--curve)",
            )


def _too_small(result: Evaluation, name: str, slope: float) -> bool:
    """Whether an attack's radius is so small that the few images it fools are what a sound net would show.

    Expected to be fooled are the images whose margin is below slope x eps. The attack fooled too few if a Poisson
    variable of that mean is as small in fewer than one case of twenty (3 expected, where none was fooled). And an
    attack that returns the images it tried must have lowered their margins about as far as the slope says.
    """
    start, end = result.outcomes["clean"].margin, result.outcomes[name].margin
    about, threat = result.outcomes[name].about, result.threat
    if start is None or end is None or about.get("norm", threat.norm) != threat.norm:
        return False
    shift = slope * about.get("eps", threat.eps)
    right, robust = result.clean, result.attacks[name]
    expected = (start[right] <= shift).sum().double()
    fooled = (right & ~robust).sum().double()
    lost = (start - end)[robust]
    returned = bool((lost != 0).any())
    lowered = not returned or float(lost.median()) >= 0.5 * shift
    return lowered and float(torch.special.gammaincc(fooled + 1, expected)) > 0.05  # P(Poisson(expected) <= fooled)


def _few_samples(result: Evaluation) -> Iterator[EvaluationWarning]:
    if result.samples >= ENOUGH or not result.attacks:
        return
    low, high = wilson(int(result.worst().sum()), result.samples)
    yield EvaluationWarning(
        "few-samples",
        f"{result.samples} images: the worst case lies between {low:.1%} and {high:.1%} (95 % interval)",
        "differences within that width mean nothing",
        f"use at least {ENOUGH:,} images to claim more",
    )
