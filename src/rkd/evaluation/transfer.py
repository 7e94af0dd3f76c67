"""Which net falls to images made on which other: a matrix of accuracies.

    accuracy[a][b] = share of samples that net b gets right both clean and as net a's search changed them

The diagonal is the white-box attack, and the very number that `evaluate` finds: same samples, same random numbers.
Robust accuracy that stands against its own attack and falls to another net's images is no robustness.

```bibtex
@article{papernot2016transferability,
  title   = {Transferability in Machine Learning: from Phenomena to Black-Box Attacks using Adversarial Samples},
  author  = {Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian},
  journal = {arXiv preprint arXiv:1605.07277},
  year    = {2016}
}
```

Studies of transfer often take only samples that every net gets right. Here each column has the samples and the count
of that net's own evaluation, so that the numbers of one column, and its clean accuracy, can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ops
from ..core.errors import RkdError
from ..core.random import key
from ..core.step import AttackPlan
from ..core.types import ThreatModel
from ..data.dataset import Split, check_images, fetch
from .answers import ask, check_answer
from .counting import search
from .evaluate import Progress, choose
from .journal import fingerprint
from .model import FEW, ready
from .threat import check_inside, reach


@torch.inference_mode(False)
def transfer_matrix(
    nets: Mapping[str, nn.Module],
    split: Split,
    plan: AttackPlan,
    *,
    threat: ThreatModel,
    name: str = "pgd-sat",
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy of each net on what the plan's search makes of the images on each net; samples as in `evaluate`.

    `{"attack": name, "samples": count, "clean": {net: fraction}, "accuracy": {source: {net: fraction}}}`. The nets take
    images in [0, 1], on `device`, and are left as they were. `name`: the attack's in the evaluation, whose random
    numbers go by it; with the same seed the diagonal is the evaluation's. `classes`: None for as many as the first net
    has. Costs a search a net and sample that any net gets right clean. Raises Refused for a net that cannot take the
    images or has another number of classes.
    """
    if not nets:
        raise RkdError("there is no net to make images on")
    positions = choose(len(split), limit)
    report = progress or (lambda what, done, total: None)
    first = fetch(split, positions[:FEW], device).x
    nets = {who: ready(net, first, f"the net {who!r}") for who, net in nets.items()}
    clean: dict[str, list[Tensor]] = {who: [] for who in nets}
    for rows in positions.split(batch_size):
        batch = fetch(split, rows, device)
        check_images(batch.x)
        for who, net in nets.items():
            logits = ask(net, batch.x, f"the net {who!r}")
            classes = check_answer(logits, batch.y, classes, f"the net {who!r}")
            clean[who].append(ops.correct(logits, batch.y).cpu())
    right = {who: torch.cat(parts) for who, parts in clean.items()}
    # An image that no net gets right need not be attacked.
    standing = torch.stack(list(right.values())).any(0).nonzero().squeeze(1)
    accuracy: dict[str, dict[str, float]] = {}
    for source, net in nets.items():
        survived = {who: values.clone() for who, values in right.items()}
        done = len(positions) - len(standing)
        report(source, done, len(positions))
        for places in standing.split(batch_size) if len(standing) else ():  # an empty tensor splits into one part
            batch = fetch(split, positions[places], device)
            x_adv = search(net, batch, plan, threat, key(seed, name))
            check_inside(batch.x, x_adv, reach(plan, threat), name)
            for who, values in survived.items():
                values[places] &= ops.correct(ask(nets[who], x_adv), batch.y).cpu()
            done += len(places)
            report(source, done, len(positions))
        accuracy[source] = {who: float(values.double().mean()) for who, values in survived.items()}
    return {
        "attack": name,
        "samples": len(positions),
        "clean": {who: float(values.double().mean()) for who, values in right.items()},
        "accuracy": accuracy,
    }


def identity(net: nn.Module) -> str:
    """Eight hexadecimal digits that follow from a net's weights and buffers."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return fingerprint(*(part for item in tensors.items() for part in item))[:8]
