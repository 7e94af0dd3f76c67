"""A net behind its input normalisation, and a teacher around any `nn.Module`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.attack import PlainProbe
from ..core.errors import Refused
from ..core.interfaces import Probe
from ..core.types import View
from .checkpointing import checkpointed
from .cpu_bfloat16 import OnCpu
from .first_look import InputNormalization

HALF_SCALE = 1024.0
"""What a search's gradients are multiplied with on their way through a net in float16, whose smallest number is 6e-8.
They come out as they were. (The weights' gradients are scaled by the training loop.)"""


class Accelerator:
    """What makes nets run faster while they are attacked. This one runs each net as it is."""

    name = "plain"
    """What it is called among options: an evaluation goes on with the one it began with."""

    @contextmanager
    def probe(self, net: nn.Module, view: View | None, plain: Callable[[Tensor], Tensor]) -> Iterator[Probe]:
        """Inside, `net` as a probe, for as long as its weights do not move.

        `plain`: the net as it runs without this, in eval mode, its routed batch norms as `view` sees them.
        """
        yield PlainProbe(plain)

    def choices(self) -> list[str]:
        """How nets have run so far, in words; `plain` for as they are."""
        return []


PLAIN = Accelerator()


class Net(nn.Module):
    """An architecture behind its input normalisation: images `(B, C, H, W)` in [0, 1] to float32 logits `(B, K)`.

    `mean` and `std` have one number a channel. They are settings, not weights: `net.arch.state_dict()` is what a
    weights file holds, under the architecture's own names.

    How it runs, `autocast` (the dtype of reduced precision, None: float32) and `channels_last` (see
    `rkd.nets.memory_format`), is confined to this forward and no part of the weights.
    """

    mean: Tensor
    std: Tensor

    settled: InputNormalization | None = None
    """How `mean` and `std` of a net from a weights file are known; None: not yet."""
    notes: tuple[str, ...] = ()
    """What the user should know of how it was loaded, a sentence each."""

    def __init__(self, arch: nn.Module, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.arch = arch
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.autocast: torch.dtype | None = None
        self.channels_last = False

    def settle(self, known: InputNormalization) -> None:
        """Normalise with what is `known`."""
        self.mean, self.std = (
            torch.tensor(values, device=self.mean.device).view(1, -1, 1, 1) for values in (known.mean, known.std)
        )
        self.settled = known

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        frozen = self.autocast is torch.float16 and not any(weight.requires_grad for weight in self.parameters())
        if frozen:
            x = _Scaled.apply(x, 1 / HALF_SCALE)
        if self.autocast is None:
            with checkpointed(self, x):
                logits = self.arch(x)
        else:
            # The weight cache would keep casts of frozen weights for a later forward that needs gradients.
            with torch.autocast(x.device.type, self.autocast, cache_enabled=False), OnCpu(), checkpointed(self, x):
                logits = self.arch(x)
        logits = logits_of(logits, type(self.arch).__name__)
        return _Scaled.apply(logits.float(), HALF_SCALE) if frozen else logits.float()


class Outputs(nn.Module):
    """The logits at `places` of those `(B, K)` that come in, in this order: some of a net's classes, or all in another
    order."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self.places = list(places)
        if len(set(self.places)) < len(self.places):
            raise Refused(f"classes: an output is named twice in {self.places}; each answers to one class")

    def extra_repr(self) -> str:
        return str(self.places)

    @staticmethod
    def by_name(own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
        """The outputs for the classes `wanted`: by name where all are among a net's `own`; as they are where there are
        as many; none otherwise."""
        if set(wanted) <= set(own):
            return tuple(own.index(name) for name in wanted)
        return tuple(range(len(own))) if len(own) == len(wanted) else ()

    def forward(self, logits: Tensor) -> Tensor:
        if max(self.places) >= logits.shape[1]:
            raise Refused(f"classes: there is no output {max(self.places)}, the net has {logits.shape[1]}")
        return logits[:, self.places]


class TwoLogits(nn.Module):
    """Logits `(B, 2)` of one `(B, 1)` or `(B,)` whose sigmoid is the probability of class 1."""

    def forward(self, logit: Tensor) -> Tensor:
        logit = logit.reshape(len(logit), 1)
        return torch.cat([torch.zeros_like(logit), logit], 1)


class _Scaled(torch.autograd.Function):
    """The same numbers; the gradient that comes back is multiplied by `factor`."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


@runtime_checkable
class _NamedTuple(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


def logits_of(output: object, name: str) -> Tensor:
    """The logits in what a net returned: a tensor as it is; of a table (as Hugging Face's nets return) or a named tuple
    the one called `logits`; of a tuple the only tensor `(B, K)`. Raises Refused where that is none, or several."""
    if isinstance(output, Tensor):
        return output
    named: Mapping[Any, Any] = output if isinstance(output, Mapping) else {}
    if isinstance(output, _NamedTuple):
        named = output._asdict()
    if isinstance(named.get("logits"), Tensor):
        return named["logits"]
    parts = (
        list(output.values()) if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else []
    )
    matrices = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2 and part.is_floating_point()]
    if len(matrices) == 1:
        return matrices[0]
    found = f"{type(output).__name__} with {', '.join(map(str, named))}" if named else type(output).__name__
    raise Refused(
        f"a net must return a tensor of logits, {name} returned {found}"
        + (
            f" that holds {len(matrices)} tensors (B, K): return the logits alone, or call them `logits`"
            if parts
            else ""
        )
    )


class TensorVersions:
    """The parameters and buffers of a net as they are now."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._then = self._now()

    def unchanged(self, net: nn.Module) -> bool:
        """Whether `net` is still the same, none of them was replaced since, or written to in a way that torch tracks
        (not through `tensor.data`)."""
        now = self._now()
        return (
            net is self._net
            and len(now) == len(self._then)
            and all(
                tensor is before and version == then
                for (tensor, version), (before, then) in zip(now, self._then, strict=True)
            )
        )

    def _now(self) -> list[tuple[Tensor, int]]:
        tensors = chain(self._net.parameters(), self._net.buffers())
        return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


MICRO_BATCH = 32
"""Images that a teacher on a CPU is asked about at once: the activations of more take memory and save no time."""

SAME, NEAR = 1e-4, 0.05
"""By how much two answers of a net to an image may differ, as a share of the largest logit, in float32 and below."""


class NetTeacher:
    """A frozen `nn.Module` that takes images in [0, 1]. `accelerator`, which may be set, runs it faster."""

    accelerator: Accelerator = PLAIN
    _probe: Probe | None = None
    _probed: nn.Module | None = None
    _versions: TensorVersions | None = None
    """The weights that `_probe` was made of."""
    _independent: bool | None = None
    """Whether its answer to an image does not depend on the rest of the batch."""

    def __init__(self, net: nn.Module, role: str) -> None:
        self.role = role
        self.net = net.eval().requires_grad_(False)

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)`; eval mode, weights frozen, differentiable in x."""
        moved = self._versions is not None and not self._versions.unchanged(self.net)
        if (
            self._probe is None or self._probed is not self.net or moved
        ):  # entered once and never left, unless an extension moves the weights
            self._probe = ExitStack().enter_context(self.accelerator.probe(self.net, None, self.net))
            self._probed = self.net
            self._versions = None if self.accelerator is PLAIN else TensorVersions(self.net)
        probe = self._probe
        if len(x) <= MICRO_BATCH or x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            return probe(x)
        if self._independent is None:
            self._independent = is_batch_independent(probe, x[:MICRO_BATCH], autocast_of(self.net))
        if not self._independent:
            return probe(x)
        return torch.cat([probe(x[rows]) for rows in micro_batches(len(x), MICRO_BATCH)])


def micro_batches(count: int, most: int) -> Iterator[slice]:
    """Slices of `count` rows, of nearly equal length and none longer than `most`; at least one."""
    parts = max(-(-count // most), 1)
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def is_batch_independent(net: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `net`, in reduced precision `dtype` or in float32, answers half of the images `x` as it does among all.

    A net that computes statistics of the batch, or draws random numbers, does not.
    """
    half = len(x) // 2
    with torch.no_grad():
        few, full = net(x[:half]), net(x)[:half]
    error = (few - full).abs().max() / full.abs().max().clamp_(min=1e-6)
    return bool(error <= (SAME if dtype is None else NEAR))


def autocast_of(net: nn.Module) -> torch.dtype | None:
    """The reduced precision that a `Net`, or the one in a wrapper, runs in; None: float32."""
    return next((module.autocast for module in net.modules() if isinstance(module, Net)), None)


def check_logits(logits: Tensor, batch: int, classes: int, who: str) -> None:
    """Raise Refused unless `logits` is a float tensor `(batch, classes)`."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"one of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise Refused(f"{who} must return a float tensor of logits, got {got}")
    if tuple(logits.shape) != (batch, classes):
        raise Refused(
            f"{who} returned {tuple(logits.shape)} for {batch} images; "
            f"expected ({batch}, {classes}), one logit per class of the data set"
        )
