"""Fair-ARD and its like: four methods with class weights, so that no class is left behind in robustness.

    L = sum of the method's terms, each sample's times the weight of its class

The scheduler `fair` moves the class weights once an epoch; it works with any other loss that attacks, too. The terms
are those of `ard`, `iad`, `rslad` and `mtard-anl`.

What the official scripts do differently:
- Fair-MTARD compares S(x) with what the robust teacher says on x'; the clean teacher's answer is computed and never
  used. `fair-mtard` has the clean teacher, as the paper; `--set loss.clean_teacher=false` does as the script.
- There the weights of MTARD's terms follow from terms that the class weights have multiplied; here from the terms
  themselves.
- Fair-ARD, Fair-RSLAD and Fair-MTARD average their KL over classes (`reduction="mean"`); Fair-IAD leaves out the a
  before `kd` (`weigh_teacher=false`), and ARD's and IAD's learning rate falls once although two milestones are named.
- All use Nesterov's momentum, which the methods they build on do not.

References: yue2023revisiting, goldblum2020adversarially, zhu2022reliable, zi2021revisiting, zhao2022enhanced
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rkd.plugin import Step, hookimpl, ops

from .ard import Ard
from .iad import Iad
from .mtard import Mtard, MtardAnl
from .rslad import Rslad


@dataclass
class FairArd(Ard):
    """Fair-ARD (Yue et al., 2023): ARD with more weight for classes that an attack turns wrong sooner."""

    defaults: ClassVar = {**Ard.defaults, "scheduler": "fair"}


@dataclass
class FairIad(Iad):
    """Fair-IAD (Yue et al., 2023): IAD with more weight for classes that an attack turns wrong sooner."""

    defaults: ClassVar = {**Iad.defaults, "scheduler": "fair"}


@dataclass
class FairRslad(Rslad):
    """Fair-RSLAD (Yue et al., 2023): RSLAD with more weight for classes that an attack turns wrong sooner."""

    defaults: ClassVar = {**Rslad.defaults, "scheduler": "fair"}


@dataclass
class FairMtard(MtardAnl):
    """Fair-MTARD (Yue et al., 2023): MTARD with more weight for classes that an attack turns wrong sooner."""

    clean_teacher: bool = True

    defaults: ClassVar[Mapping[str, Any]] = {**Mtard.defaults, "scheduler": ["anl", "fair"]}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        terms = super().__call__(step)
        if not self.clean_teacher:
            robust = step.teacher("robust", "adv") / step.knob("T.robust")
            terms["clean"] = self.scale * ops.kl(step.student(), robust, reduction=self.reduction)
        return terms


@hookimpl
def rkd_losses():
    return {"fair-ard": FairArd, "fair-iad": FairIad, "fair-rslad": FairRslad, "fair-mtard": FairMtard}
