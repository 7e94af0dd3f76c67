"""The engine: attacks run on a frozen copy of the net that computes the same faster.

Which copy is a rule, by device and precision; no clock is asked. On CPUs batch norms are folded and layers fused
(`rkd.engine.onednn`), on GPUs batch norms are folded, and in reduced precision convolutions run channels last. A copy
is compared with its net once, on a few images: if logits or input gradients differ by more than rounding, or if the
copy cannot be made, the net runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.attack import Patches, PlainProbe
from ..core.interfaces import Probe
from ..core.types import QueryKind, View
from ..nets.net import Accelerator, autocast_of
from .backends import CHECKED, FORCED, Backend, FastNet, Logits, copyable, make, rule

NAMES = ("auto", "plain", "bfloat16", *FORCED)
"""`auto`: the rule. `bfloat16`: besides, in evaluations, in reduced precision what attacks can do with. `plain`: each
net as it is. The others force one backend."""


class Engine(Accelerator):
    """Frozen copies of the nets under attack, one for each net, view and image shape, made at the first query.

    `tell` is told which copy a net got, and why it got none.
    """

    def __init__(self, name: str = "auto", tell: Callable[[str], None] = lambda text: None) -> None:
        if name not in NAMES:
            raise ValueError(f"engine is one of {', '.join(NAMES)}; got {name!r}")
        self.name, self.tell = name, tell
        self._copies: dict[tuple[int, View | None, torch.Size, str, Backend], FastNet] = {}
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, object]) -> Accelerator:
        """A student is copied for a trial step: copies of nets are not worth making for that."""
        return Engine("plain")

    @contextmanager
    def probe(self, net: nn.Module, view: View | None, plain: Logits) -> Iterator[Probe]:
        dtype = autocast_of(net)
        if self.name == "plain" or dtype is torch.float16:
            yield PlainProbe(plain)
            return
        probe = EngineProbe(self, net, view, plain)
        try:
            yield probe
        finally:
            probe.release()

    def choices(self) -> list[str]:
        return sorted(self._told)

    def copy_for(self, net: nn.Module, view: View | None, plain: Logits, x: Tensor, low: bool = False) -> FastNet:
        """The copy of `net`, with the weights that it has now, for images like `x`; or the net itself."""
        if not copyable(net):
            return FastNet(net, plain, x.shape[1:])
        backend = rule(self.name, net, x.device, low)
        key = (id(net), view, x.shape[1:], x.device.type, backend)
        known = self._copies.get(key)
        if known is None or not known.current(net):
            known = self._copies[key] = make(backend, net, view, plain, x[:CHECKED], self.tell)
            self._told.add(known.name)
        known.refresh()
        return known


class EngineProbe:
    """A net in one attack. Its copy takes over the weights at the first query and gives its memory back at the end."""

    def __init__(self, engine: Engine, net: nn.Module, view: View | None, plain: Logits, low: bool = False) -> None:
        self._engine, self._net, self._view, self._plain, self._low = engine, net, view, plain, low
        self._fast: FastNet | None = None
        self._seen: Tensor | None = None
        """Of the images that came last, a few."""
        self._lower: EngineProbe | None = None

    def __call__(self, x: Tensor) -> Tensor:
        fast = self._fast
        if fast is None or x.shape[1:] != fast.shape:
            fast = self._take(x)
        return fast.logits(x)

    def reference(self, x: Tensor) -> Tensor:
        self._seen = x[:CHECKED]
        return self._plain(x)

    def low_precision(self, kind: QueryKind) -> Probe:
        """In bfloat16 if the user allows it, once images have been seen, and where the copy is a tape of fused layers:
        elsewhere reduced precision is often slower."""
        if self._lower is None and self._engine.name == "bfloat16" and not self._low and self._seen is not None:
            lower = EngineProbe(self._engine, self._net, self._view, self._plain, low=True)
            self._lower = lower if lower._take(self._seen).tape is not None else self
        return self._lower or self

    def patches(self, x: Tensor) -> Patches:
        if self._fast is None or x.shape[1:] != self._fast.shape:
            self._take(x)
        assert self._fast is not None
        return self._fast.patches(x)

    def release(self) -> None:
        """Give back what only an attack needs: what follows wants the memory."""
        for probe in (self, self._lower):
            if probe is not None and probe._fast is not None:
                probe._fast.release()

    def _take(self, x: Tensor) -> FastNet:
        self._seen = x[:CHECKED]
        self._fast = self._engine.copy_for(self._net, self._view, self._plain, x, self._low)
        return self._fast
