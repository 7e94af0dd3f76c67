"""PeerAiD: a peer learns from the images that fool the student, and teaches it on the same images.

    L = T² KL(P(x') ‖ S(x')) + T² KL(S(x) ‖ S(x'))     the student, which takes P(x') as a constant
      + CE(P(x'), y) + gamma KL(S(x') ‖ P(x'))         the peer
    x' = argmax KL(P(x) ‖ S(x'))

Terms `adv`, `consistency`, `peer_ce` and `peer_kl`, each `(B,)`. The companion `peer` is dropped after the training.

References: jung2024peeraid
"""

from dataclasses import dataclass
from typing import ClassVar

from rkd.plugin import Companion, Schedule, hookimpl, ops


@dataclass
class PeerAid:
    """PeerAiD (Jung et al., 2024): student and peer learn from one another on attacked images."""

    T: float = 5.0
    gamma: Schedule = 0.1

    roles: ClassVar = ()
    defaults: ClassVar = {"attack": "pgd", "objective": "kl-teacher", "objective.role": "peer"}
    companions: ClassVar = {"peer": Companion()}

    @property
    def weights(self):
        return {"adv": self.T**2, "consistency": self.T**2, "peer_kl": self.gamma}

    def __call__(self, step):
        peer = step.companion("peer", "adv")
        adv, clean = step.students("adv", "clean")
        return {
            "adv": ops.kl(adv, peer.detach(), self.T),
            "consistency": ops.kl(adv, clean, self.T),
            "peer_ce": ops.cross_entropy(peer, step.y),
            "peer_kl": ops.kl(peer, adv),
        }


@hookimpl
def rkd_losses():
    return {"field-peeraid": PeerAid}
