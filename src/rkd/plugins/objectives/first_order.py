"""SAAD's search: divergence of the attacked student from the teacher's clean answer, which follows the image to first
order in its true class's logit alone.

    KL(softmax z ‖ S(x')),    z = T(x) + scale e_y <grad T_y(x), x' - x>

The teacher is asked for T(x) and the gradient of its true class's logit once a search, not in its steps: at about the
price of `kl-teacher` this stands for `kl-adaptive`, whose teacher answers and is differentiated in each step. Where an
attack lets fallen samples leave, it is once for each group that stays. The gradient by x' runs through z too.
Labels are classes: blended ones have no true one.

References: lee2026samplewise
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rkd.plugin import Probe, Step, hookimpl, ops


@dataclass
class KlFirstOrder:
    """Divergence from a teacher's answer, its true class's logit corrected to first order (SAAD).

    `role`: which teacher; None: the only one, or of several the robust one. `scale`: of the correction.
    """

    role: str | None = None
    scale: float = 1.0

    # Clean images and labels of the search in hand, the teacher's logits on them and the gradient of its true class's.
    _search: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __call__(self, step: Step, probe: Probe, x: Tensor) -> Tensor:
        clean, y, logits, gradient = self._expansion(step)
        change = ((x - clean) * gradient).flatten(1).sum(1, keepdim=True)
        true = y.unsqueeze(1) == torch.arange(logits.shape[1], device=y.device)
        return ops.kl(probe(x), logits + self.scale * change * true)

    def _expansion(self, step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clean, y = step.image("clean"), step.labels
        if self._search is None or self._search[0] is not clean or self._search[1] is not y:
            with torch.enable_grad():
                x = clean.detach().requires_grad_()
                logits = step.ask(step.role(self.role), x).float()
                true = logits.gather(1, y.unsqueeze(1)).sum()
                gradient = torch.autograd.grad(true, x)[0] if true.requires_grad else torch.zeros_like(x)
            self._search = (clean, y, logits.detach(), gradient)
        return self._search


@hookimpl
def rkd_objectives():
    return {"kl-first-order": KlFirstOrder}
