"""Difference of logits ratio (DLR): the lead of another class over the right one, measured in the logits' own spread.

    dlr          = (max_{k != y} z_k - z_y) / (z_(1) - z_(3))
    targeted dlr = (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)

z_(1) >= z_(2) >= ... are the logits in order. It is positive exactly where the net is fooled, and neither shifting
the logits nor scaling them changes it: a net that is very sure of itself, whose cross-entropy has no gradient left in
float32, keeps one here.

With few classes some of these logits do not exist. Substituted are

    3 classes    targeted: z_(1) - z_(3) below, without z_(4)
    2 classes    both: the plain lead z_k - z_y, which is not free of scale (the ratio would be 1 or -1 everywhere)

References: croce2020reliable

Deviation: 1e-12 is added below the bar, as in the authors' code. Under soft labels y is the most probable class.
"""

from collections.abc import Callable

from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops

_SMALL = 1e-12


def ratio(logits: Tensor, y: Tensor) -> Tensor:
    """The DLR of logits `(B, K)` for labels `(B,)` or probabilities `(B, K)`: `(B,)`, to be maximised."""
    logits = logits.float()
    lead = -ops.margin(logits, y)
    if logits.shape[1] < 3:
        return lead
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return lead / (first - third + _SMALL)


def targeted_ratio(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """The DLR towards the classes `goal (B,)`: `(B,)`, to be maximised."""
    logits = logits.float()
    lead = (logits.gather(1, goal.unsqueeze(1)) - logits.gather(1, ops.hard(y).unsqueeze(1))).squeeze(1)
    classes = logits.shape[1]
    if classes < 3:
        return lead
    top = logits.topk(min(classes, 4), dim=1).values
    return lead / (top[:, 0] - top[:, 2:].mean(1) + _SMALL)


def dlr(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """Difference of logits ratio: the margin, free of the logits' scale (Croce and Hein 2020)."""
    return ratio(probe(x), step.y)


@hookimpl
def rkd_objectives() -> dict[str, Callable]:
    return {"dlr": dlr}
