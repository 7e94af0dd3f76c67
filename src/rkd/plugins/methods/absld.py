"""ABSLD: RSLAD with a temperature of the teacher for each class, so that hard classes get sharper soft labels.

    L = alpha KL(softmax(T(x) / T_adv,y) ‖ S(x')) + (1 - alpha) KL(softmax(T(x) / T_clean,y) ‖ S(x))
    x' = argmax KL(softmax(T(x) / T_adv,y) ‖ S(x'))

Terms `adv` and `clean`, each `(B,)`; the teacher sees clean images only, y is the sample's label. alpha = 5/6. The
scheduler `class-temperature` moves the temperatures of the classes; the student's is 1. Under soft labels a sample's
temperature is the mean of the classes' under its label. Without the scheduler this is `rslad`.

What the official script does differently:
- It divides the teacher's logits in place, so that both targets and the attack's are T(x) / (T_adv,y T_clean,y), and
  it compares classes by sums of losses: `--set schedulers.class-temperature.aliased=true` and `...sums=true`.
- Its KL is averaged over classes (`reduction="mean"`), with 1e-5 inside one logarithm, which shifts the value by
  1.0e-5 and no gradient; the search starts outside [0, 1] (see `start_clip` of `pgd`).

References: zhao2024improving, zi2021revisiting
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops

from .rslad import Rslad


@dataclass
class Absld(Rslad):
    """ABSLD (Zhao et al., 2024): RSLAD with a teacher's temperature for each class, lower for hard classes."""

    defaults: ClassVar = {"attack": "pgd", "objective": "kl-class-temperature", "scheduler": "class-temperature"}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        soft_adv, soft_clean = tempered(step, "class_T.adv"), tempered(step, "class_T.clean")
        adv, clean = step.students("adv", "clean")
        return {
            "adv": self.scale * ops.kl(adv, soft_adv, reduction=self.reduction),
            "clean": self.scale * ops.kl(clean, soft_clean, reduction=self.reduction),
        }


def tempered(step: Step, knob: str) -> Tensor:
    """The teacher's clean logits `(B, K)`, each sample's divided by its class's temperature: `knob`, `(K,)`, or 1."""
    logits = step.teacher(step.role())
    temperatures = torch.as_tensor(step.knob(knob, logits.new_ones(logits.shape[1])))
    return logits / ops.per_class(temperatures, step.y).unsqueeze(1)


def kl_class_temperature(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """Divergence from a teacher's clean answer at its class's temperature for attacked images (ABSLD)."""
    wanted = tempered(step, "class_T.adv")  # before the student's graph takes its memory
    return ops.kl(probe(x), wanted)


@hookimpl
def rkd_losses():
    return {"absld": Absld}


@hookimpl
def rkd_objectives():
    return {"kl-class-temperature": kl_class_temperature}
