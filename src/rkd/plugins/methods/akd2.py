"""AKD2 and KD+SWA: two teachers of the student's own architecture, both asked about attacked images, smooth its labels.

    L = (1 - a_r - a_c) CE(S(x'), y) + a_r KD(T_robust) + a_c KD(T_clean),    x' = argmax CE(S(x'), y)
    KD(F) = T² KL(softmax(F(x') / T) ‖ softmax(S(x') / T))

Terms `ce`, `robust` and `clean`, each `(B,)`; the student sees attacked images only. Missing teachers are prepared:
the student's architecture, trained with `pgd-at` and with `ce`.

`kd-swa` is the method of Chen et al. (2021) against robust overfitting: a_r = 0.6, a_c = 0.1, T = 2, and weights
averaged by the extension `swa`, which it brings along. `akd2` is what Zhu et al. (2022) call by that name, compare with
and build `iad2` upon: a_r = 0.5, a_c = 0.25, T = 1.

Both codes attack in train mode from a uniform start, so here (`--set attack.mode=eval` changes it). For T² KL, Chen et
al. write T² times the cross-entropy with the teacher's probabilities: larger by the teacher's entropy, of one gradient.

References: chen2021robust, zhu2022reliable
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rkd.plugin import Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class Akd2:
    """AKD2 (Chen et al., 2021; Zhu et al., 2022): a robust and a clean self-teacher on x', and labels."""

    robust: Schedule = 0.5
    clean: Schedule = 0.25
    T: Schedule = 1.0
    reduction: Reduction = "batchmean"
    label_smoothing: float = 0.0

    roles: ClassVar = ("robust", "clean")
    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "attack.start": "uniform", "objective": "ce"}
    prepare: ClassVar[Mapping[str, Any]] = {
        "robust": {"student": "same", "loss": {"name": "pgd-at"}},
        "clean": {"student": "same", "loss": {"name": "ce"}},
    }

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)
        check_range("T", self.T, 1e-3)
        check_range("robust", self.robust, 0, 1)
        check_range("clean", self.clean, 0, 1)
        check_range("robust + clean", lambda progress: round(1 - self._labels(progress), 9), 0, 1)

    def _labels(self, progress: float) -> float:
        """The weight that is left for the labels."""
        return 1 - at(self.robust, progress) - at(self.clean, progress)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"ce": self._labels, "robust": self.robust, "clean": self.clean}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        T = at(self.T, step.progress)
        robust, clean = step.teacher("robust", "adv"), step.teacher("clean", "adv")  # before the student's graph
        adv = step.student("adv")
        return {
            "ce": ops.cross_entropy(adv, step.y, label_smoothing=self.label_smoothing),
            "robust": T**2 * ops.kl(adv, robust, T, self.reduction),
            "clean": T**2 * ops.kl(adv, clean, T, self.reduction),
        }


@dataclass
class KdSwa(Akd2):
    """KD+SWA (Chen et al., 2021): AKD2 with the weights and temperature of its paper, and averaged weights."""

    robust: Schedule = 0.6
    clean: Schedule = 0.1
    T: Schedule = 2.0

    defaults: ClassVar = {**Akd2.defaults, "extension": "swa"}


@hookimpl
def rkd_losses():
    return {"akd2": Akd2, "kd-swa": KdSwa}
