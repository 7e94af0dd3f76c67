"""MART: adversarial training with more weight on images that are misclassified while they are clean.

    L = BCE(S(x'), y) + beta (1 - p_y(x)) KL(S(x) ‖ S(x')),    x' = argmax CE(S(x'), y)

    BCE(S(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x'))        p = softmax(S)

Terms `adv` (the BCE; `label_smoothing` acts on its first half) and `robust`, each `(B,)`. The clean answer is detached
nowhere: gradients flow through both sides of the divergence and through its weight 1 - p_y(x).

The official code takes log(1.0001 - max p_k) in the second half of the BCE: it stays below 9.2, and an image in which a
wrong class has all the probability has no gradient there. So here (`offset=1e-4`); `offset=0` is the paper's formula,
whose gradient is then largest, and which is computed from logits and stays finite. Constants of 1e-7 and 1e-12 that the
code adds to probabilities are left out: no digit of float32 depends on them but for a KL beyond 27. Its script for
ResNet-18 sets beta = 5 (the function's default is 6), eps 0.031 and steps of 0.007; the search starts outside [0, 1]:
see `start_clip` of `pgd`.

References: wang2020improving
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import Schedule, Step, check_range, hookimpl, ops


@dataclass
class Mart:
    """MART (Wang et al., 2020): boosted cross-entropy, and consistency weighted by how wrong the clean answer is."""

    beta: Schedule = 5.0
    offset: float = 1e-4
    label_smoothing: float = 0.0

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "objective": "ce"}

    def __post_init__(self) -> None:
        ops.check_label_smoothing(self.label_smoothing)
        check_range("beta", self.beta, 0)
        check_range("offset", self.offset, 0, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"robust": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        y = step.labels.unsqueeze(1)
        clean, adv = step.students("clean", "adv")
        ce = ops.cross_entropy(adv, step.labels, label_smoothing=self.label_smoothing)
        return {
            "adv": ce + self._against_the_nearest(adv, y),
            "robust": (1 - clean.float().softmax(1).gather(1, y).squeeze(1)) * ops.kl(adv, clean),
        }

    def _against_the_nearest(self, logits: Tensor, y: Tensor) -> Tensor:
        """-log(1 - p_k + offset) of the most probable wrong class k, `(B,)`."""
        log_p = logits.float().log_softmax(1)
        nearest = log_p.detach().scatter(1, y, -torch.inf).argmax(1, keepdim=True)
        log_rest = log_p.scatter(1, nearest, -torch.inf).logsumexp(1)
        return -torch.logaddexp(
            log_rest, torch.full_like(log_rest, math.log(self.offset) if self.offset else -math.inf)
        )


@hookimpl
def rkd_losses():
    return {"mart": Mart}
