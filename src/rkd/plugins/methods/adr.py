"""ADR: labels rectified by the student's own average, instead of one-hot labels and without a teacher.

    adr           L = CE(S(x'), r),                          x' = argmax CE(S(x'), r)
    trades-adr    L = CE(S(x), r) + beta KL(S(x) ‖ S(x')),   x' = argmax KL(S(x) ‖ S(x'))

    p = softmax(A(x) / T),    l = clip(lam - (max_k p_k - p_y), 0, 1),    r = l p + (1 - l) onehot(y)

A is the companion `average`, A <- decay A + (1 - decay) S after each step, in eval mode. Where A is wrong about x, r
keeps more of the label. T falls and lam grows by half a cosine over the training. Terms `adv`, or `clean` and `robust`,
each `(B,)`. Blended labels take the place of onehot(y), and p_y is their share of p.

The defaults are those of CIFAR-10 and ResNet-18. The official configurations for others: CIFAR-100 T 1.5 to 1;
Tiny-ImageNet T 2 to 1.5, lam .5 to .9; with AWP on CIFAR-10 T 2.5 to 1.5, lam .7 to .85. Evaluated with averaged
weights (their "WA") it is `--with ema`.

What the official code does, and the choice made here:
- It attacks in train mode, so that every query moves the running statistics: as here (`attack.mode=eval` changes it).
- It averages running statistics, too; here they are copied, as the companion's contract has it.
- For TRADES x and x' go through the net in one forward, normalised together; here each by itself, as in `trades`. Its
  search starts from uniform noise in [0, 0.001], one-sided; here from 0.001 randn.
- What it calls AWP moves all weights, biases and norms by one radius, unlike Wu et al.: `awp` here is theirs.

References: wu2024annealing, zhang2019theoretically
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rkd.plugin import Companion, Schedule, Step, at, check_range, hookimpl, ops, parse_schedule

TEMPERATURE = parse_schedule("cosine(2.5, 2)")
SHARE = parse_schedule("cosine(0.7, 0.95)")


@dataclass
class Adr:
    """ADR (Wu et al., 2024): adversarial training on labels that the student's own average rectifies."""

    T: Schedule = TEMPERATURE
    lam: Schedule = SHARE
    decay: Schedule = 0.995

    roles: ClassVar = ()
    defaults: ClassVar = {
        "attack": "pgd", "attack.mode": "train", "attack.start": "uniform", "objective": "ce-targets",
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_range("T", self.T, 1e-3)
        check_range("lam", self.lam, 0, 1)
        check_range("decay", self.decay, 0, 1)

    @property
    def companions(self) -> dict[str, Companion]:
        return {"average": Companion(follows=self.decay)}

    def targets(self, step: Step) -> Tensor:
        """The rectified labels r, `(B, K)`."""
        p = (step.teacher("average").float() / at(self.T, step.progress)).softmax(1)
        classes = torch.arange(p.shape[1], device=p.device)
        y = step.y if step.y.ndim == 2 else (step.y.unsqueeze(1) == classes).float()  # one_hot waits for the device
        share = (at(self.lam, step.progress) - p.amax(1) + (p * y).sum(1)).clamp(0, 1).unsqueeze(1)
        return share * p + (1 - share) * y

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {"adv": ops.cross_entropy(step.student("adv"), step.targets)}


@dataclass
class TradesAdr(Adr):
    """ADR (Wu et al., 2024) over TRADES: rectified labels on clean images."""

    beta: Schedule = 6.0

    defaults: ClassVar = {"attack": "pgd", "attack.mode": "train", "objective": "kl-student"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("beta", self.beta, 0)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {"robust": self.beta}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        r = step.targets
        step.image("adv")  # the attack comes before the batch moves the running statistics
        clean, adv = step.students("clean", "adv")
        return {"clean": ops.cross_entropy(clean, r), "robust": ops.kl(adv, clean)}


@hookimpl
def rkd_losses():
    return {"adr": Adr, "trades-adr": TradesAdr}
