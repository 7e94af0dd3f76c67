"""The attacks behind the columns of the robust-distillation tables (RSLAD, MTARD, B-MTARD, CIARD, ...).

They are PGD with the settings of the published evaluation scripts. eps is the data set's unless it is
given; a step size that is not given keeps the script's share of eps, so that the presets mean the same for
any radius.

| name | objective | start | steps | step size at eps 8/255 | share of eps |
|---|---|---|---|---|---|
| `fgsm` | ce | x | 1 | 8/255 | 1 |
| `pgd-sat` | ce | uniform in the ball, clamped | 20 | 2/255 | 1/4 |
| `pgd-trades` | ce | uniform in the ball, clamped | 20 | 0.003 | 0.0956 |
| `cw-30` | margin, kappa 50 | x | 30 | 2/255 | 1/4 |

Each official script, as read:

- CIARD, `attack_eval.py`: all four, eps 8/255, batches of 128, eval mode, every image attacked.
  `attack_pgd` clamps to [0, 1] and then projects (the same in Linf). `attack_cw_inf` keeps the perturbation
  in the ball alone and clamps once, after the last step: the net sees pixels outside [0, 1] on the way
  (`clip = "end"`).
- RSLAD and MTARD, training scripts: `pgd-trades` (20 steps of 0.003, eps 8/255) is their validation attack,
  the same `attack_pgd`. Neither repository holds the script of the other columns.
- TRADES, `pgd_attack_cifar10.py`: 20 steps of 0.003, eps 0.031 (not 8/255 = 0.0314), uniform start that is
  not clamped before the first gradient (one version of the file has none). Cross-entropy: not the KL of
  TRADES' training.
- Fair-ARD, `eval.py`: FGSM from 0.001 * randn; PGD and CW both 20 steps of 2/255 from an unclamped uniform
  start.
- IAD, `basic_eval.py`: FGSM, PGD (20 steps of 2/255) and CW (30 steps of 2/255), all from a uniform start
  that is clamped, as every step is.

Deviations: none in `pgd-sat`, `pgd-trades` and `cw-30` against CIARD's script but for its random numbers;
rkd's evaluation runs no attack on an image that the net already gets wrong, and counts it as wrong.

References: madry2018towards, zhang2019theoretically, carlini2017towards
"""

from dataclasses import dataclass
from typing import ClassVar

from rkd.plugin import AttackTraits, hookimpl

from .pgd import Clip, Pgd, Start


@dataclass
class PgdSat(Pgd):
    """PGD_SAT of the distillation papers: 20 steps of eps/4 from a uniform start."""

    steps: int = 20
    start: Start = "uniform"

    share: ClassVar[float | None] = 1 / 4


@dataclass
class PgdTrades(Pgd):
    """PGD_TRADES of the distillation papers: 20 steps of 0.003 at eps 8/255, uniform start, cross-entropy."""

    steps: int = 20
    start: Start = "uniform"

    share: ClassVar[float | None] = 0.003 / (8 / 255)


@dataclass
class Cw30(Pgd):
    """CW_inf of the distillation papers: 30 margin steps of eps/4 from x itself, clamped at the end."""

    steps: int = 30
    start: Start = "none"
    clip: Clip = "end"

    traits: ClassVar = AttackTraits(objective="margin")
    share: ClassVar[float | None] = 1 / 4


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"pgd-sat": PgdSat, "pgd-trades": PgdTrades, "cw-30": Cw30}
