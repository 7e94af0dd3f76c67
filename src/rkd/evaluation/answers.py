"""What a net says to images outside training: asked in eval mode, and checked before anything is made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import DataError, Refused, RkdError
from ..nets.modes import running
from ..nets.net import check_logits


def ask(net: nn.Module, x: Tensor, who: str = "the net") -> Tensor:
    """The net's answer to images `x`, in eval mode and without gradients.

    Raises Refused where the net cannot take such images: torch's own message would not say whose fault that is. And for
    a net that changes them: it would be attacked on other images than those it is judged by.
    """
    changes = None if x.is_inference() else x._version
    try:
        with running(net, "eval"), torch.no_grad():
            answer = net(x)
    except (RkdError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a transformer asserts that images have its size, a net may want a second argument
        raise Refused(f"{who} cannot take images {tuple(x.shape[1:])}: {in_words(error)}") from error
    if changes is not None and x._version != changes:
        raise Refused(
            f"{who} changes the images that it is given, as x.sub_(mean) or x -= mean does: let it compute new ones "
            "(x = x - mean)"
        )
    return answer


def in_words(error: Exception) -> str:
    """The first line of what a net raised; torch's own errors need no name before them."""
    first = str(error).split("\n")[0]
    return first if first and isinstance(error, RuntimeError) else f"{type(error).__name__}: {first}".rstrip(": ")


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
        raise DataError(f"a label is {high}, but {who} knows {classes} class{'' if classes == 1 else 'es'}")
    return classes or 0


def check_numbers(logits: Tensor) -> None:
    """Raise RkdError for logits of clean images, `(B, K)`, that hold NaN or infinity. Classes that a net rules out for
    all images are none of these by now: see `ready`."""
    if bool(logits.isfinite().all()):
        return
    if bool((logits.isfinite() | logits.isneginf()).all()):
        images, some = int(logits.isneginf().any(1).sum()), logits.isneginf().any(0).nonzero().flatten().tolist()
        which = ", ".join([*map(str, some[:5]), *(["..."] if len(some) > 5 else [])])
        raise RkdError(
            f"the net's logits are -inf for {images} of {len(logits)} clean images (class {which}): a net may rule "
            "classes out, but the same ones for all images; elsewhere give them a low finite logit, such as the lowest "
            "other one less 1000"
        )
    raise RkdError("the net's logits for clean images hold NaN or infinity: nothing can be said of such a net")
