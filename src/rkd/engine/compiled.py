"""A net compiled by torch.compile: pointwise operations merged into loops of their own. Takes seconds to a minute."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """`net` compiled for images of one shape `(B, C, H, W)`; on others, such as an epoch's last batch, as it is.

    Compilation happens at the first call and raises RuntimeError where there is no compiler. Weights are read at each
    call, so that they may move.
    """

    def __init__(self, net: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.net, self.shape = net, shape
        self._fast = [torch.compile(net, dynamic=False)]  # in a list: it is the same module, not another one

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.shape:
            return self.net(x)
        with _quiet():
            return self._fast[0](x)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of a machine that has no GPU, and of torch's compiler about compiling again."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
