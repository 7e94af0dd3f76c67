"""Logits of images of which only a window has changed, from the layers' outputs of before.

A convolution's output changes only where its kernel meets the change: a window of 3 pixels becomes one of 5 behind a
3x3 convolution, and one of 3 or 4 behind a second one of stride 2. So most of what a small net computed for the
images of before still holds. Where a window has grown to the whole plane, or behind a layer that mixes positions
(pooling to a fixed size, a linear layer), everything is computed anew. Same function up to rounding.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..core.attack import Patches
from ..nets.net import micro_batches
from .areas import Kernel, Window, area, cut, looked_at, reached, union
from .reading import shapes_of

SHARE = 0.6
"""A window that costs more than this share of the whole net's multiplications is left to the whole net."""
MOST = 2**30
"""Bytes of outputs to keep at most."""

AREA = 64
"""Outputs of a convolution up to which a matrix product is faster."""

_POINTWISE = (
    nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
_POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d)
_JOINS = (operator.add, operator.iadd, torch.add)
_ACTIVATIONS = (
    F.relu,
    torch.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.hardswish,
    torch.sigmoid,
    torch.tanh,
)


@dataclass
class _Step:
    """One node of the net. `kept`: others need its output beyond the window."""

    node: fx.Node
    kind: Literal["input", "conv", "pointwise", "join", "whole"]
    sources: list[fx.Node]
    shape: tuple[int, ...]
    """Of the output for one image."""
    run: Callable[..., Tensor]
    cost: float = 0.0
    """Multiplications for one image."""
    kept: bool = False
    by_plane: bool = False
    """Of one source, and each plane of it alone."""


class Plan:
    """What a changed window makes a net compute, node by node. Made by `plan`."""

    def __init__(self, net: fx.GraphModule, steps: list[_Step], before: Callable[[Tensor], Tensor]) -> None:
        self.net, self.steps, self.before = net, steps, before
        self.local = [step for step in steps if step.kind != "whole"]
        self.bytes = 4 * sum(math.prod(step.shape) for step in self.local if step.kept)
        """Kept for one image."""
        self._total = sum(step.cost for step in steps)
        self._windows: dict[Window, dict[fx.Node, Window]] = {}

    def windows(self, start: Window) -> dict[fx.Node, Window]:
        """The window of each node that a change of the input at `start` reaches; an empty one has no area."""
        if start in self._windows:
            return self._windows[start]
        found: dict[fx.Node, Window] = {}
        for step in self.local:
            if step.kind == "input":
                found[step.node] = start
            elif step.kind == "conv":
                assert isinstance(step.run, nn.Conv2d)
                found[step.node] = reached(Kernel.of(step.run), found[step.sources[0]], step.shape)
            else:
                found[step.node] = union([found[source] for source in step.sources])
        self._windows[start] = found
        return found

    def share(self, start: Window) -> float:
        """The share of the net's multiplications that a change at `start` costs."""
        where = self.windows(start)
        cost = sum(step.cost for step in self.steps if step.kind == "whole")
        cost += sum(step.cost * area(where[step.node]) / (step.shape[1] * step.shape[2]) for step in self.local)
        return cost / max(self._total, 1.0)


def plan(arch: nn.Module, example: Tensor, before: Callable[[Tensor], Tensor] = lambda x: x) -> Plan | None:
    """How to follow windows through `arch`, or None for a net that cannot be read or gains nothing.

    `arch`: in eval mode; it is copied. `example (B, C, H, W)`: images. `before`: what `arch` gets of images, pixel by
    pixel: normalised, in its layout. What the plan gives has to be compared with the net (`follows` does).
    """
    arch = copy.deepcopy(arch)
    for module in arch.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # what is kept must not be overwritten
    try:
        net = fx.symbolic_trace(arch)
        shapes = {node: tuple(shape or ())[1:] for node, shape in shapes_of(net, before(example[:1])).items()}
    except Exception:  # nets whose way depends on values, and whatever else tracing stumbles over
        return None
    steps: dict[fx.Node, _Step] = {}
    for node in net.graph.nodes:
        steps[node] = _read(net, node, shapes, steps)
    for step in steps.values():
        if step.kind in ("conv", "whole") or len(step.sources) > 1:
            for source in step.sources:
                steps[source].kept = True
        step.kept |= step.kind == "input"
    if sum(step.kind == "input" for step in steps.values()) != 1 or all(s.kind != "conv" for s in steps.values()):
        return None
    return Plan(net, list(steps.values()), before)


def _read(
    net: fx.GraphModule, node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]], known: dict[fx.Node, _Step]
) -> _Step:
    sources, shape = list(node.all_input_nodes), shapes[node]
    if node.op == "placeholder":
        return _Step(node, "input", [], shape, torch.clone)
    module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
    run = module if module is not None else _called(node)
    cost = 0.0
    if isinstance(module, nn.Conv2d | nn.Linear):
        cost = float(math.prod(shape) * module.weight[0].numel())
    near = len(shape) == 3 and bool(sources) and all(known[source].kind != "whole" for source in sources)
    same = near and all(known[source].shape[1:] == shape[1:] for source in sources)
    if near and type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return _Step(node, "conv", sources, shape, module, cost)
    if same and len(sources) == 1 and (type(module) in _POINTWISE or node.target in _ACTIVATIONS):
        return _Step(node, "pointwise", sources, shape, run)
    if same and node.target in _JOINS:
        return _Step(node, "join", sources, shape, run)
    pools = type(module) in _POOLS or node.target in _POOL_FUNCTIONS
    return _Step(node, "whole", sources, shape, run, cost, by_plane=pools and len(sources) == 1)


def _called(node: fx.Node) -> Callable[..., Any]:
    """What a node that is no module computes, of its sources' values in their order."""
    function: Any = operator.add if node.target is operator.iadd else node.target
    options = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    sources = list(node.all_input_nodes)

    def call(*values: Any) -> Any:
        given = dict(zip(sources, values, strict=True))
        arguments = fx.node.map_arg(node.args, lambda source: given[source])
        named = fx.node.map_arg(options, lambda source: given[source])
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        return function(*arguments, **named)

    return call


def _cut_kept(kept: Tensor, window: Window) -> Tensor:
    """The same of what is kept, `(C, H, W, B)`."""
    return kept[:, window[0] : window[1], window[2] : window[3]]


def _images_last(value: Tensor) -> Tensor:
    return value.permute(1, 2, 3, 0)


def _images_first(value: Tensor) -> Tensor:
    return value.permute(3, 0, 1, 2)


def _convolved(conv: nn.Conv2d, kept: Tensor, window: Window) -> Tensor:
    """The outputs in `window`, `(O, h, w, B)`, of a convolution of `kept (C, H, W, B)`."""
    seen, beyond = looked_at(Kernel.of(conv), window, kept.shape[1], kept.shape[2])
    patch = _cut_kept(kept, seen)
    if any(beyond):
        patch = F.pad(patch, (0, 0, *beyond))
    if conv.groups > 1 or conv.dilation != (1, 1) or area(window) > AREA:
        images = _images_first(patch).contiguous(memory_format=torch.channels_last)
        found = F.conv2d(images, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        return _images_last(found)
    # One matrix product: a convolution takes longer to begin than such a window to compute.
    for axis in (0, 1):
        patch = patch.unfold(1 + axis, conv.kernel_size[axis], conv.stride[axis])
    shape = (conv.out_channels, *patch.shape[1:4])  # patch: (C, h, w, B, kernel)
    inputs = patch.permute(0, 4, 5, 1, 2, 3).reshape(conv.weight[0].numel(), -1)
    weight = conv.weight.reshape(conv.out_channels, -1)
    found = weight @ inputs if conv.bias is None else torch.addmm(conv.bias.unsqueeze(1), weight, inputs)
    return found.view(shape)


class LocalWindows(Patches):
    """Images whose windows a plan follows. Small windows are computed alone, large ones by the whole net.

    What is kept has the images as its last dimension: the windows of all images then lie in long runs in memory.
    `piece`: how many images the layers behind the followed ones take at once; None: all.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], x: Tensor, how: Plan, piece: int) -> None:
        super().__init__(logits, x)
        self._plan, self._piece = how, piece
        self._kept: dict[fx.Node, Tensor] = {}
        """Outputs for the images as they are; empty where the whole net answered last."""
        self._changed: list[tuple[Tensor, Tensor]] = []

    def settle(self, better: Tensor) -> None:
        super().settle(better)
        for window, old in self._changed:
            torch.where(better, window, old, out=window)
        self._changed = []

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self._kept = {node: output[..., rows] for node, output in self._kept.items()}

    def _answer(self, rows: slice, columns: slice) -> Tensor:
        start = (rows.start, rows.stop, columns.start, columns.stop)
        if len(self.x) * self._plan.bytes > MOST or self._plan.share(start) > SHARE:
            self._kept = {}
            return super()._answer(rows, columns)
        with torch.no_grad():
            if not self._kept:
                new = self._patch.clone()
                self._patch.copy_(self._old)
                self._fill()
                self._patch.copy_(new)
            self._follow(start)
            found = [self._rest(part) for part in micro_batches(len(self.x), self._piece)]
        return torch.cat(found)

    def _fill(self) -> None:
        """Compute what is kept, for the images as they are."""
        for part in micro_batches(len(self.x), self._piece):
            values: dict[fx.Node, Tensor] = {}
            for step in self._plan.local:
                given = [values[source] for source in step.sources]
                value = self._plan.before(self.x[part]) if step.kind == "input" else step.run(*given)
                values[step.node] = value
                if step.kept:
                    if step.node not in self._kept:
                        self._kept[step.node] = value.new_empty(*value.shape[1:], len(self.x))
                    self._kept[step.node][..., part] = _images_last(value)

    def _follow(self, start: Window) -> None:
        """Bring what is kept up to date with a change of the images at `start`."""
        where = self._plan.windows(start)
        values: dict[fx.Node, Tensor] = {}
        for step in self._plan.local:
            window = where[step.node]
            if not area(window):
                continue
            if step.kind == "input":
                value = _images_last(self._plan.before(cut(self.x, window)))
            elif step.kind == "conv":
                assert isinstance(step.run, nn.Conv2d)
                value = _convolved(step.run, self._kept[step.sources[0]], window)
            elif step.kind == "join":
                value = step.run(*(_cut_kept(self._kept[source], window) for source in step.sources))
            else:
                value = _images_last(step.run(_images_first(values[step.sources[0]])))
            values[step.node] = value
            if step.kept:
                kept = _cut_kept(self._kept[step.node], window)
                self._changed.append((kept, kept.clone()))
                kept.copy_(value)

    def _rest(self, rows: slice) -> Tensor:
        """The logits of the images at `rows` from what is kept."""
        values: dict[fx.Node, Any] = {}
        for step in self._plan.steps:
            if step.kind != "whole":
                continue
            if step.by_plane and step.sources[0] in self._kept:
                # Planes are planes, whether images or channels come first: so they need no copy.
                planes = self._kept[step.sources[0]][..., rows].permute(0, 3, 1, 2)
                values[step.node] = step.run(planes).transpose(0, 1)
                continue
            given = [self._value(source, rows, values) for source in step.sources]
            if step.node.op == "output":
                return given[0]
            values[step.node] = step.run(*given)
        raise AssertionError("a net without output")

    def _value(self, source: fx.Node, rows: slice, values: dict[fx.Node, Any]) -> Any:
        return values[source] if source in values else _images_first(self._kept[source][..., rows]).contiguous()
