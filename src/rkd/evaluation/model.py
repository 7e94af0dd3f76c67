"""The net as attacks and figures can take it: images and logits in float32, logits that are finite.

A net may rule classes out by logits of -inf: their probability is 0, and cross-entropy is what it is without them. But
differences with such a logit are not finite (DLR, the way to that class's boundary), and an infinite logit elsewhere
means that a net is broken. So where a class is ruled out from the start, its -inf becomes a number that is as good: so
far below the others that no float32 softmax sees it, and without a gradient. The class is never predicted, and an
attack that aims at it succeeds nowhere. Every other infinity, and NaN, stays, and counts as wrong.

The output of a quantised net claims to have a gradient, and torch raises where it is taken: such a net gives its logits
without one, as a net under `no_grad` does, and the self-checks warn of it. A net of which no gradient can be taken
(`.numpy()` in its forward, a reentrant checkpoint) raises Refused with torch's message where one is asked for; attacks
without gradients can run on it. A net that loses the batch dimension of a single image is refused: attacks let images
leave that fool the net, and come to one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.errors import DataError, NotFinite, Refused, RkdError
from ..core.traits import training_flag
from ..nets.modes import frozen_parameters, running
from ..nets.net import check_logits, logits_of

FIRST_IMAGES = 8
"""How many images `prepare_model` looks at."""

BELOW = 1000.0
"""How far a class that is ruled out is put below the others: exp(-1000) is 0 in every precision, and a difference of
logits over 1000 (DLR among less than three classes) is still a good number."""


def prepare_model(net: nn.Module, x: Tensor, name: str = "the net") -> nn.Module:
    """`net`, or a wrapper that takes and gives float32, picks the logits among what the net returns, and, where the net
    rules classes out for all of the first images of `x (B, C, H, W)`, gives finite logits for them. Raises Refused for
    a net that cannot take the images, or not a single one."""
    net = as_float32(net)
    finite = Finite(net)
    _check_single_image(
        checked_forward(finite, x[:FIRST_IMAGES], name), checked_forward(finite, x[:1], name), name
    )  # fmt: skip
    needed = finite.out is not None or finite.picks
    return _with_known_gradient(finite if needed else net, x[:1], name)


def checked_forward(net: nn.Module, x: Tensor, name: str = "the net") -> Tensor:
    """The net's output for images `x`, in eval mode and without gradients.

    Raises Refused where the net cannot take such images: torch's own message would not say whose fault that is. And for
    a net that changes them: it would be attacked on other images than those it is judged by.
    """
    version = None if x.is_inference() else x._version
    try:
        with running(net, "eval"), torch.no_grad():
            output = net(x)
    except (RkdError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a transformer asserts that images have its size, a net may want a second argument
        raise Refused(f"{name} cannot take images {tuple(x.shape[1:])}: {first_line(error)}") from error
    if version is not None and x._version != version:
        raise Refused(
            f"{name} changes the images that it is given, as x.sub_(mean) or x -= mean does: let it compute new ones "
            "(x = x - mean)"
        )
    return output


def check_classes(logits: Tensor, y: Tensor, classes: int | None, name: str = "the net") -> int:
    """The number of classes: `classes`, or where that is None the columns of `logits`.

    Raises Refused unless `logits` is a float tensor `(B, classes)`, DataError for a label in `y (B,)` beyond those.
    """
    if isinstance(logits, Tensor):
        if not logits.is_floating_point():
            raise Refused(f"{name} must return a float tensor of logits, got {logits.dtype}")
        if classes is None and logits.ndim != 2:
            raise Refused(
                f"{name} returned {tuple(logits.shape)} for {len(y)} images; expected ({len(y)}, K), one logit per "
                "class"
            )
        classes = logits.shape[1] if classes is None else classes
    check_logits(logits, len(y), classes or 0, name)
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise DataError(f"a label is {low}; labels are classes from 0")
    if high >= (classes or 0):
        raise DataError(f"a label is {high}, but {name} knows {classes} class{'' if classes == 1 else 'es'}")
    return classes or 0


def check_finite(logits: Tensor) -> None:
    """Raise RkdError for logits of clean images, `(B, K)`, that hold NaN or infinity. The -inf of classes that the net
    rules out for all images is gone by now, see `prepare_model`."""
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
    raise NotFinite("the net's logits for clean images hold NaN or infinity: nothing can be said of such a net")


def as_float32(net: nn.Module) -> nn.Module:
    """`net`, or around one with weights of another type a wrapper that takes and gives float32."""
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()}
    return net if not dtypes or torch.float32 in dtypes else _Float32(net, dtypes.pop())


class _Wrapper(nn.Module):
    """Around `net`, in the same mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = bool(training_flag(net))


class Finite(_Wrapper):
    """`net` with finite logits instead of -inf, in the classes that it rules out for all of the first images it sees.

    `out (K,)`: which these are, None if there are none. In an image where the net does not rule such a class out, the
    class keeps its logit.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.out: Tensor | None = None
        self.picks = False  # whether it returns more than its logits
        self._seen = False

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(x)
        logits = output
        if isinstance(output, (Mapping, tuple, list)):
            self.picks, logits = True, logits_of(output, type(self.net).__name__)
        if not self._seen:
            self._seen, self.out = True, _ruled_out(logits)
        if self.out is None:
            return logits
        away = logits.isneginf()
        lowest = logits.detach().where(~away, torch.inf).amin(1, keepdim=True)  # +inf where nothing is left
        return torch.where(away & self.out, lowest - BELOW, logits)


class WithoutGraph(_Wrapper):
    """`net` without the graph of its output, which leads nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.net(x)
        return logits


class NoGradient(WithoutGraph):
    """`net`, of which no gradient by the images can be taken: asking for one raises Refused with `reason`."""

    def __init__(self, net: nn.Module, reason: str) -> None:
        super().__init__(net)
        self.reason = reason

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise Refused(f"{self.reason}. Attacks that need none can do with it: square, noise, transfer")
        return super().forward(x)


class _Float32(_Wrapper):
    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(net)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x.to(self.dtype))
        return logits.float() if isinstance(logits, Tensor) else logits


def _check_single_image(several: Tensor, single: Tensor, name: str) -> None:
    """Raise Refused unless the output for one image has the form of that for several. Outputs of other forms than
    `(B, K)` are left to `check_classes`."""
    if not isinstance(several, Tensor) or several.ndim != 2 or not isinstance(single, Tensor):
        return
    if single.ndim != 2:
        raise Refused(
            f"{name} returned {tuple(single.shape)} for 1 image, but {tuple(several.shape)} for {len(several)}: "
            "a squeeze() takes the batch away; name its dimension, as in squeeze(-1), or write flatten(1)"
        )


def _with_known_gradient(net: nn.Module, x: Tensor, name: str) -> nn.Module:
    """`net`, or a wrapper around one whose gradient by the images `x` does not exist or cannot be taken."""
    x = x.detach().clone().requires_grad_()
    try:
        with running(net, "eval"), frozen_parameters(net), torch.enable_grad():
            logits = net(x)
            if not isinstance(logits, Tensor) or not logits.requires_grad:
                return net
            (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Refused:  # says itself what is wrong, when it is asked
        return net
    except Exception as error:  # a net's own code, in forward and backward
        return NoGradient(net, f"{name} gives no gradient by its images: {first_line(error).rstrip('.')}")
    # Quantised layers claim to have one, and have none.
    return WithoutGraph(net) if gradient is None else net


def _ruled_out(logits: Tensor) -> Tensor | None:
    """The classes that are -inf in all rows, if there are some and others besides."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        return None  # `check_classes` refuses it
    out = logits.isneginf().all(0)
    return out if bool(out.any()) and not bool(out.all()) else None


def first_line(error: Exception) -> str:
    """The first line of what a net raised; torch's own errors need no name before them."""
    first = str(error).split("\n")[0]
    return first if first and isinstance(error, RuntimeError) else f"{type(error).__name__}: {first}".rstrip(": ")
