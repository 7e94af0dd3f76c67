"""Validation after an epoch, on images that are held out from training: it chooses the weights that are kept."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core.errors import NotFinite
from ..core.run import Run
from ..core.step import AttackPlan
from ..data.dataset import Split
from ..distributed.ranks import ALONE, Ranks
from ..evaluation.evaluate import EvalSettings, evaluate
from ..nets.memory_format import restore
from ..nets.net import Net
from ..storage.serialize import to_cpu
from .divergence import diverged


@dataclass(frozen=True, slots=True)
class Validation:
    """Accuracy, clean and under `attack`, on `split` after every `every`-th epoch and the last one.

    `limit`: the first so many images alone. `select`: the score that chooses the weights: `w-robust`, `robust`,
    `clean`, or `last` for the last epoch's.
    """

    split: Split
    attack: AttackPlan | None
    every: int = 1
    limit: int | None = None
    select: str = "w-robust"
    batch_size: int = 128
    ranks: Ranks = ALONE

    def __call__(self, run: Run) -> dict[str, Any]:
        finished = run.state.epoch + 1
        if finished % self.every and finished != run.epochs:
            return {}
        net = run.eval_net()
        settings = EvalSettings(
            threat=run.data.threat,
            classes=len(run.data.classes),
            seed=run.seed,
            batch_size=self.batch_size,
            limit=min(self.limit, len(self.split)) if self.limit else None,
            device=run.device,
            progress=lambda *of_batch: run.checkpoints.while_validating(run),
            ranks=self.ranks,
        )
        try:
            result = evaluate(net, self.split, {"adv": self.attack} if self.attack else {}, settings)
        except NotFinite as error:
            raise diverged(run, str(error)) from None
        score = clean = result.accuracy()
        metrics = {"val.clean": clean}
        if self.attack:
            metrics["val.robust"] = robust = result.accuracy("adv")
            score = {"clean": clean, "robust": robust}.get(self.select, result.w_robust("adv"))
        # Later epochs win ties: with few validation images ties are common, and training still helps.
        if self.select != "last" and (run.state.best is None or score >= run.state.best["score"]):
            run.state.best = {"epoch": run.state.epoch, "score": score}
            run.state.best_weights = to_cpu(net.state_dict())
            run.checkpoints.new_best(run)
        return metrics


def chosen_net(run: Run) -> nn.Module:
    """The net of the chosen epoch, on the run's device: what is evaluated and kept."""
    net = copy.deepcopy(run.eval_net()).eval()
    if isinstance(net, Net):
        restore(net)
    if run.state.best_weights is not None:
        net.load_state_dict(run.state.best_weights)
    return net.requires_grad_(False)
