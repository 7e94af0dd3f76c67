"""The student: the net in training, as the Step asks it and attacks see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.interfaces import Probe
from ..core.types import Mode, View
from .batchnorm import Router, drop_auxiliary
from .modes import frozen_parameters, running
from .net import PLAIN, Accelerator


class NetStudent:
    """The net in training. `net` takes images in [0, 1].

    With a `router` the batch norms of `net` are routed by view. `joint` sends several views through one forward;
    it is exact only where no layer mixes samples or every batch norm is routed, which the conversion that sets it
    has to know. `routed` are the views that do not go through the net's own norms. `accelerator` runs it faster while
    it is attacked in eval mode.
    """

    def __init__(
        self, net: nn.Module, router: Router | None = None, joint: bool = False, routed: Sequence[View] = ()
    ) -> None:
        self.net = net
        self.router = router
        self.joint = joint
        self.routed: Sequence[View] = tuple(routed)
        self.accelerator: Accelerator = PLAIN

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> dict[View, Tensor]:
        """`(B, K)` per view, in the order of `images`; gradients flow to the weights."""
        with running(self.net, mode):
            if self.joint and len(images) > 1:
                sizes = [len(x) for x in images.values()]
                logits = self._forward(list(zip(images, sizes, strict=True)), torch.cat(list(images.values())))
                return dict(zip(images, logits.split(sizes), strict=True))
            return {view: self._forward([(view, len(x))], x) for view, x in images.items()}

    @contextmanager
    def attacked(self, view: View, mode: Mode) -> Iterator[Probe]:
        """Inside, the net runs in `mode` with frozen parameters; yields the net as this view sees it."""
        with running(self.net, mode), frozen_parameters(self.net):

            def plain(x: Tensor) -> Tensor:
                return self._forward([(view, len(x))], x)

            accelerator = self.accelerator if mode == "eval" else PLAIN
            with accelerator.probe(self.net, view if view in self.routed else None, plain) as probe:
                yield probe

    def stand_in(self, net: nn.Module) -> NetStudent:
        """Another net in this one's place, while an attack runs on it."""
        return NetStudent(net)

    def deployed(self) -> nn.Module:
        """The net to evaluate and to keep: without auxiliary norms."""
        return drop_auxiliary(self.net) if self.router else self.net

    def _forward(self, parts: list[tuple[View, int]], x: Tensor) -> Tensor:
        if self.router is None:
            return self.net(x)
        with self.router.routing(parts):
            return self.net(x)


@torch.no_grad()
def move_average(average: nn.Module, net: nn.Module, share: float) -> None:
    """average <- (1 - share) * average + share * weights, of two nets of one architecture; buffers are copied."""
    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(weight, share)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)
