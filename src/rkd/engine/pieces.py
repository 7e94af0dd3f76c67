"""A net that is asked about a few images at a time.

On a CPU the activations of a few images stay in the processor's caches, those of a few hundred do not: they are
written to memory and read again by each layer, and their memory is taken from the system and given back at each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.slope import pieces


class InPieces(nn.Module):
    """`net` asked about at most `piece` images at once, as long as no gradient is wanted.

    Where one is, forward and backward of a piece belong together: whoever asks has to split (`rkd.core.slope.slope`
    and `Target.gradient` do, by the attribute `piece`).
    """

    def __init__(self, net: nn.Module, piece: int) -> None:
        super().__init__()
        self.net, self.piece = net, piece

    def forward(self, x: Tensor) -> Tensor:
        if len(x) <= self.piece or (torch.is_grad_enabled() and x.requires_grad):
            return self.net(x)
        return torch.cat([self.net(x[rows]) for rows in pieces(len(x), self.piece)])
