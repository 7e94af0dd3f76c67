"""A net as CUDA graphs: its forward is one launch instead of hundreds, and so is its backward by the images.

For small batches and many short kernels, where a GPU waits for the host. Never run on a GPU so far: what a GPU's engine
does with it is compared with the net itself before it is used, like everything here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Graphed(nn.Module):
    """`net`, frozen and on a GPU, captured for images of one shape `(B, C, H, W)`; on others it runs as it is.

    Captured when it is made; raises RuntimeError where that fails, such as for a net that asks the host something.
    Weights are read where they lie at each call, so that they may move, but not be replaced.
    """

    def __init__(self, net: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.net, self.shape = net, shape
        device = next(net.parameters()).device
        sample = torch.zeros(shape, device=device, requires_grad=True)

        def ask(x: Tensor) -> Tensor:  # a function: of a module, make_graphed_callables would replace the forward
            found: Tensor = net(x)
            return found

        with torch.enable_grad():
            self._fast = torch.cuda.make_graphed_callables(ask, (sample,))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.shape:
            return self.net(x)
        # A graph writes outputs and gradient to the same place at each call: the caller gets copies.
        found: Tensor = _Copied.apply(self._fast(_Copied.apply(x)))
        return found


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()
