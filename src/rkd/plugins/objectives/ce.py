"""Cross-entropy with the label: what FGSM, PGD-AT, ARD, IAD, MART and MTARD maximise.

    score = -sum_k y_k log softmax(z(x'))_k          y: a label, or probabilities (mixup, cutmix)

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


@hookimpl
def rkd_objectives() -> dict[str, Callable]:
    return {"ce": ce}
