"""Which net is fooled by images made on which other: a matrix of accuracies.

    accuracy[a][b] = share of samples that net b gets right both clean and as the attack on net a changed them

The diagonal is the white-box attack, and equals the result of `evaluate`: same samples, same random numbers.
A net that withstands the attack on itself and is fooled by another net's images is not robust.

(Papernot, McDaniel and Goodfellow, Transferability in Machine Learning: from Phenomena to Black-Box Attacks using
Adversarial Samples, arXiv:1605.07277, 2016.)

Studies of transfer often take only samples that every net gets right. Here each column has the samples and the count
of that net's own evaluation, so that the numbers of one column, and its clean accuracy, can be compared.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..core.errors import RkdError
from ..core.random import key
from ..core.step import AttackPlan
from ..data.dataset import Split, check_images, fetch
from .counting import attack_batch
from .journal import fingerprint
from .model import FIRST_IMAGES, check_classes, checked_forward, prepare_model
from .samples import EvalSettings, Record, run_batches
from .threat import ball_of, check_inside


@torch.inference_mode(False)
def transfer_matrix(
    nets: Mapping[str, nn.Module], split: Split, plan: AttackPlan, settings: EvalSettings | None = None,
    *, name: str = "pgd-sat",
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of each net on the adversarial images that the attack makes on each net; samples as in `evaluate`.

    `{"attack": name, "samples": count, "clean": {net: fraction}, "accuracy": {source: {net: fraction}}}`. The nets take
    images in [0, 1], on `settings.device`, and are left as they were. `name`: the attack's in the evaluation, on which
    its random numbers depend; with the same seed the diagonal is the evaluation's. Costs an attack for each net and
    sample that any net gets right clean. Raises Refused for a net that cannot take the images or has another number of
    classes.
    """
    settings = (settings or EvalSettings()).plain()
    if not nets:
        raise RkdError("there is no net to make images on")
    positions, device, classes = settings.samples(split), settings.device, settings.classes
    first = fetch(split, positions[:FIRST_IMAGES], device).x
    nets = {net_name: prepare_model(net, first, f"the net {net_name!r}") for net_name, net in nets.items()}

    def clean(rows: Tensor) -> Record:
        nonlocal classes
        batch = fetch(split, positions[rows], device)
        check_images(batch.x)
        columns = []
        for net_name, net in nets.items():
            logits = checked_forward(net, batch.x, f"the net {net_name!r}")
            classes = check_classes(logits, batch.y, classes, f"the net {net_name!r}")
            columns.append(ops.correct(logits, batch.y).cpu())
        return {"right": torch.stack(columns, dim=1)}

    rows, count = torch.arange(len(positions)), len(positions)
    records = run_batches("clean", rows.split(settings.batch_size), clean, count, replace(settings, progress=None))
    right = torch.cat([record["right"] for record in records])
    attacked = right.any(1).nonzero().squeeze(1)  # an image that no net gets right need not be attacked
    batches = attacked.split(settings.batch_size) if len(attacked) else ()  # an empty tensor splits into one part
    ball = ball_of(plan, settings.threat)
    accuracy = {}
    for source, net in nets.items():

        def survive(rows: Tensor, net: nn.Module = net) -> Record:
            batch = fetch(split, positions[rows], device)
            x_adv = attack_batch(net, batch, plan, settings.threat, key(settings.seed, name))
            check_inside(batch.x, x_adv, ball, name)
            columns = [ops.correct(checked_forward(other, x_adv), batch.y).cpu() for other in nets.values()]
            return {"right": torch.stack(columns, dim=1)}

        robust = right.clone()
        for rows, record in zip(batches, run_batches(source, batches, survive, count, settings), strict=True):
            robust[rows] &= record["right"]
        accuracy[source] = _accuracies(robust, nets)
    return {"attack": name, "samples": count, "clean": _accuracies(right, nets), "accuracy": accuracy}


def _accuracies(right: Tensor, nets: Mapping[str, nn.Module]) -> dict[str, float]:
    """Of `right (N, nets)` the share of each net."""
    return dict(zip(nets, right.double().mean(0).tolist(), strict=True))


def identity(net: nn.Module) -> str:
    """Eight hexadecimal digits that follow from a net's weights and buffers."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return fingerprint(*(part for item in tensors.items() for part in item))[:8]
