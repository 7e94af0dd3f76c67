"""What several sources of data share beside `rkd.plugin`. No hooks."""

from pathlib import Path

import torch
from torch import Tensor

from rkd.plugin import Noise, expanded, key

HELD_OUT = "validation takes a part of the training images (data.validation)"
"""What a user who has validation images should know: they are not used."""


def locate(path: str, dir: str | None) -> Path:
    """`path` with `~` resolved; a relative one is looked up in `dir` where that is given."""
    return expanded(dir or "") / expanded(path)


def stratified(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Ascending positions (training, test) of a fixed split: `share` of each class goes to the test part.

    The same for every run and machine: it follows from `labels (N,)` alone, by integer arithmetic. A class of two
    samples or more has at least one on either side, a single sample goes to training.
    """
    positions = torch.arange(len(labels))
    order = Noise(key("rkd test split"), positions).uniform(()).argsort(stable=True)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[members[:count]] = True
    return positions[~chosen], positions[chosen]
