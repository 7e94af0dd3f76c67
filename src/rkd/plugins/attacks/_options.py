"""Options that attacks share: checks of their values, and the ball that follows from them."""

from dataclasses import replace
from typing import get_args

from rkd.plugin import Mode, Norm, Refused, Schedule, Target, ThreatModel, at, fraction, ops

MOST_STEPS = 10_000
"""Gradients in a row. AutoAttack takes 100."""
MOST_QUERIES = 100_000


BOXES: tuple[Norm, ...] = ("Linf", "L2")
CONVEX: tuple[Norm, ...] = ("Linf", "L2", "L1")
ALL: tuple[Norm, ...] = get_args(Norm)


def attacker(
    target: Target, eps: Schedule | None = None, norm: Norm | None = None, *, knows: tuple[Norm, ...] = ALL
) -> ThreatModel:
    """The target's attacker, with another norm and radius where they are given; the step keeps its share. Raises
    Refused for a norm that the attack does not know, and a radius that does not go with it."""
    threat = target.threat
    if norm is not None and norm != threat.norm:
        if eps is None:
            raise Refused(
                f"the data set's eps {fraction(threat.eps)} is a radius in {threat.norm}, not in {norm}: "
                f"give the attack its own eps"
            )
        threat = replace(threat, norm=norm)
    if eps is not None:
        threat = threat.with_eps(at(eps, target.progress))
    if threat.norm not in knows:
        other = "pgd" if threat.norm in ops.COUNTS else "autoattack"
        raise Refused(f"it knows the balls of {', '.join(knows)} alone; in {threat.norm} there is {other}")
    if threat.norm == "Linf":
        check_pixels(threat.eps, Refused)
    if not threat.eps >= 0:
        raise Refused(f"eps is {threat.eps:g} at progress {target.progress:g}: it must not go below 0")
    return threat


def check_positive(name: str, value: Schedule | None) -> None:
    """A constant must be greater than 0; a schedule may begin there."""
    if value is not None and not callable(value) and not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value:g}")


def check_pixels(eps: Schedule | None, error: type[Exception]) -> None:
    """A constant Linf radius above 1 allows any image at all: somebody forgot `/255`."""
    if eps is not None and not callable(eps) and eps > 1:
        raise error(f"eps is in units of [0, 1] images, at most 1 in Linf, got {eps:g}: write {eps:g}/255?")


def check_word(name: str, value: str | None, *words: str | None) -> None:
    """A misspelt word would otherwise mean something else in silence."""
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(map(str, words))}, got {value!r}")


def check_search(
    eps: Schedule | None, norm: Norm | None, mode: Mode, *, knows: tuple[Norm, ...] = ALL, **counts: int
) -> None:
    """Raise ValueError for nonsense among the options that these searches share, or a norm that it does not know."""
    check_positive("eps", eps)
    if norm == "Linf":
        check_pixels(eps, ValueError)
    if norm in ops.COUNTS and eps is not None and not callable(eps) and (eps < 1 or eps != round(eps)):
        raise ValueError(f"in {norm} eps is a number of pixels or values, 1 or more, got {eps:g}")
    check_word("norm", norm, None, *knows)
    check_word("mode", mode, *get_args(Mode))
    for name, value in counts.items():
        most = MOST_STEPS if name == "steps" else MOST_QUERIES
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most:,}, got {value}")
