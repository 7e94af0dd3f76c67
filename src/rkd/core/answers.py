"""What a net says to images outside training: asked in eval mode, and checked before anything is made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import DataError, Refused
from .modes import running
from .nets import check_logits


def ask(net: nn.Module, x: Tensor, who: str = "the net") -> Tensor:
    """The net's answer to images `x`, in eval mode and without gradients.

    Raises Refused where the net cannot take such images: torch's own message would not say whose fault that is.
    """
    try:
        with running(net, "eval"), torch.no_grad():
            return net(x)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = str(error).split("\n")[0]
        raise Refused(f"{who} cannot take images {tuple(x.shape[1:])}: {first}") from error


def check_answer(logits: Tensor, y: Tensor, classes: int | None, who: str = "the net") -> int:
    """How many classes the net knows: `classes`, or where that is None as many as `logits` has columns.

    Raises Refused unless `logits` is a float tensor `(B, classes)`, DataError for a label in `y (B,)` beyond those.
    """
    if isinstance(logits, Tensor):
        if not logits.is_floating_point():
            raise Refused(f"{who} must return a float tensor of logits, got {logits.dtype}")
        if classes is None and logits.ndim != 2:
            raise Refused(
                f"{who} returned {tuple(logits.shape)} for {len(y)} images; expected ({len(y)}, K), one logit per class"
            )
        classes = logits.shape[1] if classes is None else classes
    check_logits(logits, len(y), classes or 0, who)
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise DataError(f"a label is {low}; labels are classes from 0")
    if high >= (classes or 0):
        raise DataError(f"a label is {high}, but {who} knows {classes} classes")
    return classes or 0
