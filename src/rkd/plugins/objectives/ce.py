"""Cross-entropy with the label: what FGSM, PGD-AT, ARD, IAD, MART and MTARD maximise.

    score = -sum_k y_k log softmax(z(x'))_k          y: a label, or probabilities (mixup, cutmix)

`ce-targets` is the same with the labels that the loss teaches, where these are others than the data's (ADR).

References: madry2018towards

Deviation: official scripts average over the batch (ARD sums); here each sample has its own score. A signed
step is the same.
"""

from collections.abc import Callable

from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops


def ce(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """Cross-entropy with the label (hard or soft)."""
    return ops.cross_entropy(probe(x), step.y)


def ce_targets(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """Cross-entropy with the labels that the loss teaches (ADR); of other losses these are the data's."""
    return ops.cross_entropy(probe(x), step.targets)


@hookimpl
def rkd_objectives() -> dict[str, Callable]:
    return {"ce": ce, "ce-targets": ce_targets}
