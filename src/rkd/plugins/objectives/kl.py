"""Divergence of the attacked student from what it should say: itself on the clean image, or a teacher.

All three maximise KL(p ‖ softmax(z_S(x'))); they differ in p:

    kl-student    p = softmax(z_S(x))        TRADES
    kl-teacher    p = softmax(z_T(x))        RSLAD, PeerAiD: the teacher's clean answer, computed once
    kl-adaptive   p = softmax(z_T(x'))       AdaAD: the teacher answers in each step, and its gradient counts

z_S (B, K) runs in the attack's mode, with no temperature, as in all official scripts.

References: zhang2019theoretically, zi2021revisiting, huang2023boosting

Deviations: TRADES' script recomputes z_S(x) in each step (the same value in eval mode, a forward dearer);
here once. The scripts sum or average over the batch; here each sample has its own score: a signed step is
the same.

At x' = x the gradient of `kl-student` is zero (`kl-adaptive`'s, where student and teacher agree), and what
float32 leaves of it is rounding noise, whose sign is a full step nowhere: give the attack a random start
(`gaussian` or `uniform`). FGSM from x itself means nothing under `kl-student`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops


def kl_student(step: Step, probe: Probe, x: Tensor) -> Tensor:
    """Divergence from the student's own clean answer (TRADES)."""
    return ops.kl(probe(x), step.probe_logits("clean"))


@dataclass
class KlTeacher:
    """Divergence from a teacher's answer on the clean image (RSLAD).

    `role`: which teacher; None: the only one, or of several the robust one.
    """

    role: str | None = None

    def __call__(self, step: Step, probe: Probe, x: Tensor) -> Tensor:
        wanted = step.teacher(step.role(self.role), "clean")  # before the student's graph takes its memory
        return ops.kl(probe(x), wanted)


class KlAdaptive(KlTeacher):
    """Divergence from a teacher's answer on the attacked image itself, gradient through both (AdaAD).

    `role`: which teacher; None: the only one, or of several the robust one.
    """

    def __call__(self, step: Step, probe: Probe, x: Tensor) -> Tensor:
        return ops.kl(probe(x), step.ask(step.role(self.role), x))


@hookimpl
def rkd_objectives() -> dict[str, Callable]:
    return {"kl-student": kl_student, "kl-teacher": KlTeacher, "kl-adaptive": KlAdaptive}
