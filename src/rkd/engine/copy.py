"""A frozen copy of a net that moves: folded, in a layout or precision of its own, and never behind its net.

A search asks a net whose weights do not move until it is over. So the copy is made once, and brought up to date at
the beginning of each search, whoever has moved the weights meanwhile: the optimiser, a loaded file, an average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.types import View
from ..nets.batchnorm import as_seen, norm_of
from ..nets.net import Net
from .fold import fold, foldable, merged


class Twin:
    """A copy of `net` in eval mode as `view` sees it, in `net`, with `pairs` of layers and norms folded into one.

    `original` must keep its modules: `current` says whether it has. Raises whatever a stranger's module raises when it
    is copied.
    """

    def __init__(self, original: nn.Module, example: Tensor, view: View | None = None, folding: bool = True) -> None:
        self.original, self.view = original, view
        self.net = as_seen(original, view).eval().requires_grad_(False)
        if isinstance(self.net, Net):
            self.net.to(memory_format=torch.contiguous_format)
            self.net.channels_last = False
        self.pairs = foldable(self.net, example) if folding else []
        modules = dict(self.net.named_modules())
        folded = {name for pair in self.pairs for name in pair}
        # The copy's own modules, not their names: they may be wrapped later.
        self._merged = [(modules[layer], layer, norm) for layer, norm in self.pairs]
        self._copied: list[tuple[nn.Module, str, str]] = []
        for path, module in modules.items():
            if path not in folded:
                names = [
                    name for kind in (module._parameters, module._buffers) for name, v in kind.items() if v is not None
                ]
                self._copied += [(module, path, name) for name in names]
        fold(self.net, self.pairs)
        self._modules = self._signature()

    def current(self) -> bool:
        """Whether the original consists of the same modules as when it was copied."""
        return self._signature() == self._modules

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the original's weights and statistics."""
        live = dict(self.original.named_modules())
        for layer, layer_name, norm_name in self._merged:
            weight, bias = merged(live[layer_name], norm_of(live[norm_name], self.view))
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        for module, path, name in self._copied:
            getattr(module, name).copy_(getattr(norm_of(live[path], self.view), name))

    def _signature(self) -> list[Any]:
        return [(id(module), type(module)) for module in self.original.modules()]
