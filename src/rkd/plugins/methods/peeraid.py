"""PeerAiD: a second net, the peer, is trained on the images that fool the student, and teaches it on the same images.

    L = lambda1 CE(S(x'), y) + lambda2 T² KL(P(x') ‖ S(x')) + lambda3 T² KL(S(x) ‖ S(x'))       the student
      + gamma1 CE(P(x'), y) + gamma2 T_peer² KL(S(x') ‖ P(x'))                                  the peer
    x' = argmax KL(P(x) ‖ S(x'))

KL(p ‖ q) is taken of softmax(logits / T), with T_peer in the peer's term. Terms `ce`, `adv`, `consistency`, `peer_ce`
and `peer_kl`, each `(B,)`. P is the companion `peer`: of the student's architecture (`companions.peer.model` chooses
another one), with weights of its own, in eval mode where the search asks it, and dropped after the training.

As in the official code, one gradient serves both: the student's second term takes P(x') as a constant, but the peer's
term has a gradient by S(x') too, and the third term one by S(x). lambda = (0, 1, 1), T = 5, gamma1 = 1, T_peer = 1;
gamma2 = 0.1 on CIFAR-10 and 1 on CIFAR-100. Tiny-ImageNet: T = 1, gamma2 = 100, lambda = (.035, 35, 20).

What the code does differently: its KL is averaged over classes (`reduction="mean"`); it forwards S(x') twice, for
either net's loss, which gives the same values and moves the running statistics once more; its search starts outside
[0, 1] (see `start_clip` of `pgd`). Its weights are averaged from the first drop on (`--with swa`).

References: jung2024peeraid
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rkd.plugin import Companion, Reduction, Schedule, Step, at, check_range, hookimpl, ops


@dataclass
class PeerAid:
    """PeerAiD (Jung et al., 2024): a peer learns from the student's attacked images, and the student from the peer."""

    lambda1: Schedule = 0.0
    lambda2: Schedule = 1.0
    lambda3: Schedule = 1.0
    gamma1: Schedule = 1.0
    gamma2: Schedule = 0.1
    T: Schedule = 5.0
    T_peer: Schedule = 1.0
    reduction: Reduction = "batchmean"

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-teacher", "objective.role": "peer"}
    companions: ClassVar = {"peer": Companion()}

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            check_range(f"the weight of {name}", weight, 0)
        check_range("T", self.T, 1e-3)
        check_range("T_peer", self.T_peer, 1e-3)

    @property
    def weights(self) -> dict[str, Schedule]:
        return {
            "ce": self.lambda1, "adv": self.lambda2, "consistency": self.lambda3,
            "peer_ce": self.gamma1, "peer_kl": self.gamma2,
        }  # fmt: skip

    def __call__(self, step: Step) -> dict[str, Tensor]:
        T, T_peer = at(self.T, step.progress), at(self.T_peer, step.progress)
        peer = step.companion("peer", "adv")
        adv, clean = step.students("adv", "clean")
        return {
            "ce": ops.cross_entropy(adv, step.y),
            "adv": T**2 * ops.kl(adv, peer.detach(), T, self.reduction),
            "consistency": T**2 * ops.kl(adv, clean, T, self.reduction),
            "peer_ce": ops.cross_entropy(peer, step.y),
            "peer_kl": T_peer**2 * ops.kl(peer, adv, T_peer, self.reduction),
        }


@hookimpl
def rkd_losses():
    return {"peeraid": PeerAid}
