"""A net as searches and figures can take it: images and logits in float32, and logits that are numbers.

A net may rule classes out by logits of -inf: their probability is 0, and cross-entropy is what it is without them.
But differences with such a logit are not numbers (DLR, the way to that class's boundary, the difference of two
answers), and an infinite logit elsewhere means that a net is broken. So where a class is ruled out from the start, its
-inf becomes a number that is as good: so far below the others that no float32 softmax sees it, and without a gradient.
The class is never predicted, and a search that aims at it finds nothing. Every other infinity, and NaN, stays what it
is, and counts as wrong.

The answer of a quantised net looks as if it had a gradient, and torch raises where one is taken: such a net gives its
logits without one, as a net does that computes under `no_grad`, and the self-checks tell what that means. A net of
which no gradient can be taken (`.numpy()` in its forward, a reentrant checkpoint) is refused to who asks for one, with
what torch says about it; attacks without gradients can do with it. A net that loses its batch where that is a single
image is refused: searches let go of images that have fallen, and come to one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import Refused
from ..nets.modes import frozen_parameters, running
from .answers import ask, in_words

FEW = 8
"""Images on which to see whether a net rules classes out."""

BELOW = 1000.0
"""How far a class that is ruled out is put below the others: exp(-1000) is 0 in every precision, and a difference of
logits over 1000 (DLR among less than three classes) is still a good number."""


def ready(net: nn.Module, x: Tensor, who: str = "the net") -> nn.Module:
    """`net`, or something around it that takes and gives float32 and, where the net rules classes out for all of the
    first images of `x (B, C, H, W)`, gives numbers for them. Raises Refused for a net that cannot take the images, or
    not a single one."""
    net = in_float32(net)
    finite = Finite(net)
    _check_alone(ask(finite, x[:FEW], who), ask(finite, x[:1], who), who)
    return _as_it_differentiates(net if finite.out is None else finite, x[:1], who)


def in_float32(net: nn.Module) -> nn.Module:
    """`net`, or around one with weights of another type something that takes and gives float32."""
    kinds = {p.dtype for p in net.parameters() if p.is_floating_point()}
    return net if not kinds or torch.float32 in kinds else _InFloat32(net, kinds.pop())


class Finite(nn.Module):
    """`net` with numbers instead of -inf, in the classes that it rules out for all images it is asked about first.

    `out (K,)`: which these are, None if there are none. In an image where the net does not rule such a class out, the
    class keeps its logit.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.out: Tensor | None = None
        self.training = getattr(net, "training", False)
        self.autocast = getattr(net, "autocast", None)  # an engine asks
        self._settled = False

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if not self._settled:
            self._settled, self.out = True, _ruled_out(logits)
        if self.out is None:
            return logits
        away = logits.isneginf()
        lowest = logits.detach().where(~away, torch.inf).amin(1, keepdim=True)  # +inf where nothing is left
        return torch.where(away & self.out, lowest - BELOW, logits)


class Blind(nn.Module):
    """`net` without the graph of its answers, which leads nowhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.net(x)
        return logits


class NoGradient(nn.Module):
    """`net`, of which no gradient by the images can be taken: who asks for one is told `why`, as Refused."""

    def __init__(self, net: nn.Module, why: str) -> None:
        super().__init__()
        self.net, self.why = net, why
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise Refused(f"{self.why}. Attacks that need none can do with it: square, noise, transfer")
        with torch.no_grad():
            logits: Tensor = self.net(x)
        return logits


def _check_alone(several: Tensor, one: Tensor, who: str) -> None:
    """Raise Refused unless the answer to one image has the form of that to several. Of other forms than `(B, K)`
    whoever evaluates the net says something."""
    if not isinstance(several, Tensor) or several.ndim != 2 or not isinstance(one, Tensor):
        return
    if one.ndim != 2:
        raise Refused(
            f"{who} returned {tuple(one.shape)} for 1 image, but {tuple(several.shape)} for {len(several)}: "
            "a squeeze() takes the batch away; name its dimension, as in squeeze(-1), or write flatten(1)"
        )


def _as_it_differentiates(net: nn.Module, x: Tensor, who: str) -> nn.Module:
    """`net`, or around one whose gradient by the images `x` cannot be had what says so."""
    x = x.detach().clone().requires_grad_()
    try:
        with running(net, "eval"), frozen_parameters(net), torch.enable_grad():
            logits = net(x)
            if not isinstance(logits, Tensor) or not logits.requires_grad:
                return net
            (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Refused:  # says itself what is wrong, to who asks
        return net
    except Exception as error:  # a net's own code, in forward and backward
        return NoGradient(net, f"{who} gives no gradient by its images: {in_words(error).rstrip('.')}")
    # Quantised layers say that they have one, and have none.
    return Blind(net) if gradient is None else net


def _ruled_out(logits: Tensor) -> Tensor | None:
    """The classes that are -inf in all rows, if there are some and others besides."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        return None  # whoever evaluates such a net says so
    out = logits.isneginf().all(0)
    return out if bool(out.any()) and not bool(out.all()) else None


class _InFloat32(nn.Module):
    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x.to(self.dtype))
        return logits.float() if isinstance(logits, Tensor) else logits
