"""A net of fused layers run and differentiated as a list of steps, without autograd between its layers.

Autograd records each operation and calls each backward apart, which takes time in small nets; and it must not overwrite
a gradient, since others may hold it. Here each gradient has one owner, so that activations go back in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from ..nets.memory_format import in_channels_last
from .onednn import FusedConv, PadShortcut, PooledHead


@dataclass(frozen=True)
class Step:
    """One layer: of which value, with which one added. Values are numbered from 0, the images, in order."""

    layer: FusedConv | PadShortcut
    source: int
    other: int | None

    def compute(self, values: Sequence[Any]) -> Tensor:
        return self.layer.compute(values[self.source], None if self.other is None else values[self.other])


class Tape(nn.Module):
    """The `steps` one after another, and `head` of the value at `source`."""

    def __init__(self, steps: list[Step], head: PooledHead, source: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([step.layer for step in steps])
        self.steps, self.head, self.source = steps, head, source
        last_use = {source: len(steps)}
        for number, step in enumerate(steps):
            last_use |= {place: number for place in (step.source, step.other) if place is not None and place != source}
        self._unused = [[p for p, use in last_use.items() if use == number] for number in range(len(steps))]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            found: Tensor = _Tape.apply(x, self)
            return found
        return self.finish([in_channels_last(x), *[None] * len(self.steps)], 0)

    def values(self, x: Tensor) -> list[Tensor]:
        """The images and each step's outputs."""
        values = [in_channels_last(x)]
        for step in self.steps:
            other = None if step.other is None else values[step.other]
            values.append(step.layer.compute(values[step.source], other))
        return values

    def finish(self, values: list[Any], begin: int) -> Tensor:
        """The logits, from those of the `values` before step `begin` that are needed from there on.

        The list has a place for each value; those that no later step needs are set to None on the way.
        """
        for number in range(begin, len(self.steps)):
            values[number + 1] = self.steps[number].compute(values)
            for place in self._unused[number]:
                values[place] = None
        return self.head(values[self.source])

    def keep_ends(self, inside: torch.dtype) -> bool:
        """Let the layers that see the images, and the head, compute in float32, for a net that is in `inside`.

        The weights have to be read anew. False, and nothing changed, where others than convolutions see the images.
        """
        first = [step for step in self.steps if 0 in (step.source, step.other)]
        layers = [step.layer for step in first if step.other is None and isinstance(step.layer, FusedConv)]
        if len(layers) < len(first) or self.source == 0:
            return False
        for layer in layers:
            layer.layer.float()
            layer.out_dtype = inside
        self.head.layer.float()
        self.head.in_dtype = inside
        return True


class _Tape(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, tape: Tape) -> Tensor:
        context.values, context.tape = tape.values(x), tape
        return tape.head(context.values[tape.source])

    @staticmethod
    @once_differentiable
    def backward(context: Any, g: Tensor) -> tuple[Tensor, None]:
        tape, values = context.tape, context.values
        gradients: list[Tensor | None] = [None] * len(values)
        gradients[tape.source] = tape.head.input_gradient(g)
        for number in reversed(range(len(tape.steps))):
            step, own = tape.steps[number], gradients[number + 1]
            gradients[number + 1] = None
            if own is None:
                continue
            own = in_channels_last(own)
            if isinstance(step.layer, FusedConv):
                own = step.layer.activation.backward(own, values[number + 1], inplace=True)
            shape = values[step.source].shape
            gradients[step.source] = step.layer.input_gradient(own, shape, gradients[step.source])
            if step.other is not None:
                beside = gradients[step.other]
                gradients[step.other] = own if beside is None else beside.add_(own)
        found = gradients[0]
        assert found is not None
        return found, None


def taped(net: fx.GraphModule) -> Tape | None:
    """A fused graph as a tape; None where there is more in it than fused layers and a head."""
    values: dict[fx.Node, int] = {}
    steps: list[Step] = []
    head: tuple[PooledHead, int] | None = None
    for node in net.graph.nodes:
        layer = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder" and not values:
            values[node] = 0
        elif isinstance(layer, PadShortcut) or (isinstance(layer, FusedConv) and layer.activation.by_output):
            source, *others = (values[each] for each in node.args)
            steps.append(Step(layer, source, others[0] if others else None))
            values[node] = len(steps)
        elif isinstance(layer, PooledHead):
            head = layer, values[node.args[0]]
        elif node.op != "output":
            return None
    return Tape(steps, *head) if head and steps else None
