"""A net of fused layers run and gone back through by itself, without autograd between its layers.

Autograd keeps a record of each operation and calls each backward apart, which takes time in small nets; and it must
not overwrite a gradient, since somebody else may hold it. Here each gradient has one owner, so that activations go back
in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from ..nets.memory_format import in_channels_last
from .ending import Ending
from .fused import Fused
from .thinned import Thinned


@dataclass(frozen=True)
class Step:
    """One layer: of which value, with which one added. Values are numbered from 0, the images, in order."""

    layer: Fused | Thinned
    source: int
    other: int | None


class Tape(nn.Module):
    """The `steps` one after another, and `end` of the value at `source`."""

    def __init__(self, steps: list[Step], end: Ending, source: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([step.layer for step in steps])
        self.steps, self.end, self.source = steps, end, source
        last_use = {source: len(steps)}
        for number, step in enumerate(steps):
            last_use |= {place: number for place in (step.source, step.other) if place is not None and place != source}
        self._unused = [[p for p, use in last_use.items() if use == number] for number in range(len(steps))]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            found: Tensor = _Run.apply(x, self)
            return found
        return self.finish([in_channels_last(x), *[None] * len(self.steps)], 0)

    def values(self, x: Tensor) -> list[Tensor]:
        """The images and each step's outputs."""
        values: list[Any] = [in_channels_last(x)]
        for step in self.steps:
            values.append(computed(step, values))
        return values

    def keep_ends(self, inside: torch.dtype) -> bool:
        """Let what sees the images, and what gives the logits, compute in float32, for a net that is in `inside`.

        The weights have to be read anew. False, and nothing changed, where others than single layers see the images.
        """
        layers = self._first()
        if layers is None:
            return False
        for layer in layers:
            layer.layer.float()
            layer.gives = inside
        self.end.layer.float()
        self.end.takes = inside
        return True

    def _first(self) -> list[Fused] | None:
        """The layers that see the images, unless others than single layers do."""
        first = [step for step in self.steps if 0 in (step.source, step.other)]
        layers = [step.layer for step in first if step.other is None and isinstance(step.layer, Fused)]
        return None if len(layers) < len(first) or self.source == 0 else layers

    def finish(self, values: list[Any], begin: int) -> Tensor:
        """The logits, from those of the `values` before step `begin` that are needed from there on.

        The list has a place for each value; those that no later step needs are set to None on the way.
        """
        for number in range(begin, len(self.steps)):
            values[number + 1] = computed(self.steps[number], values)
            for place in self._unused[number]:
                values[place] = None
        return self.end(values[self.source])


def computed(step: Step, values: Sequence[Any]) -> Tensor:
    """What a step puts out."""
    given = [values[place] for place in (step.source, step.other) if place is not None]
    return step.layer.compute(*given)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, tape: Tape) -> Tensor:
        context.values, context.tape = tape.values(x), tape
        return tape.end(context.values[tape.source])

    @staticmethod
    @once_differentiable
    def backward(context: Any, g: Tensor) -> tuple[Tensor, None]:
        tape, values = context.tape, context.values
        gradients: list[Tensor | None] = [None] * len(values)
        gradients[tape.source] = tape.end.slope(g)
        for number in reversed(range(len(tape.steps))):
            step, here = tape.steps[number], gradients[number + 1]
            gradients[number + 1] = None
            if here is None:
                continue
            here = in_channels_last(here)
            if isinstance(step.layer, Fused):
                here = step.layer.activation.backward(here, values[number + 1], here=True)
            before = step.layer.slope(here, values[step.source].shape, gradients[step.source])
            gradients[step.source] = before
            if step.other is not None:
                beside = gradients[step.other]
                gradients[step.other] = here if beside is None else beside.add_(here)
        found = gradients[0]
        assert found is not None
        return found, None


def taped(net: fx.GraphModule) -> Tape | None:
    """`net`, as `fuse` gives it, as a tape; None if there is more in it than fused layers and an end."""
    values: dict[fx.Node, int] = {}
    steps: list[Step] = []
    end: tuple[Ending, int] | None = None
    for node in net.graph.nodes:
        layer = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder" and not values:
            values[node] = 0
        elif isinstance(layer, (Fused, Thinned)) and end is None:
            source, *others = (values[each] for each in node.args)
            steps.append(Step(layer, source, others[0] if others else None))
            values[node] = len(steps)
        elif isinstance(layer, Ending) and end is None:
            end = layer, values[node.args[0]]
        elif node.op != "output":
            return None
    return Tape(steps, *end) if end and steps else None
