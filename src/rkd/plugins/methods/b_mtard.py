"""B-MTARD: MTARD whose two teachers are balanced twice, their temperatures by entropy and their terms' weights by loss.

    L = w_adv KL(softmax(T_robust(x') / T_r) ‖ S(x')) + w_clean KL(softmax(T_clean(x) / T_c) ‖ S(x))

Terms `adv` and `clean`, each `(B,)`, as in `mtard`. The scheduler `entropy-balance` moves T_r and T_c, which divide the
teachers' logits only (the student's temperature is 1, and no T² stands before the terms); `anl` moves the weights. In
each step the weights act at once, the temperatures from the next step on, as in the official code.

The paper's second balance ("normalization loss") writes the weights' update with an average over n teachers and a
clipping at 0; for two teachers it is MTARD's, and so `anl` serves. Of the official repository's scripts one is there,
without two of its own files; MTARD's averages its KL over classes (`reduction="mean"`).

References: zhao2024mitigating
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rkd.plugin import hookimpl

from .mtard import MtardAnl


@dataclass
class BMtard(MtardAnl):
    """B-MTARD (Zhao et al., 2024): MTARD with teachers' temperatures balanced by entropy, and weights by loss."""

    defaults: ClassVar[Mapping[str, Any]] = {**MtardAnl.defaults, "scheduler": ["anl", "entropy-balance"]}


@hookimpl
def rkd_losses():
    return {"b-mtard": BMtard}
