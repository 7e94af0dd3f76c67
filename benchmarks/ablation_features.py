"""The features that `ablation.py` switches off, one entry each in FEATURES; a feature that is deleted loses its entry.

A switch changes modules of rkd in the process it is called in, which measures nothing else. Nothing here imports torch
before a switch is called: some settings have to come before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

STEP, ATTACK, FILES, CACHE = "step", "attack", "files", "cache"
"""Kinds of rows: a training step, AutoAttack, a step with images from files, a step with known answers."""


def _replace(owner: Any, name: str, value: Any) -> None:
    """A name that is gone is an error: a switch that changes nothing would look like a feature that brings nothing."""
    getattr(owner, name)
    setattr(owner, name, value)


# The engine


def engine() -> None:
    from rkd.core.attack import PlainProbe
    from rkd.engine.accelerator import Engine

    _replace(Engine, "probe", lambda self, net, view, plain: nullcontext(PlainProbe(plain)))


def folding() -> None:
    from rkd.engine import copy

    _replace(copy, "foldable", lambda net, example: [])


def _forced(name: str) -> None:
    from rkd.engine import accelerator

    original = accelerator.rule
    _replace(accelerator, "rule", lambda _, net, device, low=False: original(name, net, device, low))


def fused_kernels() -> None:
    _forced("channels-last")


def fused_and_layout() -> None:
    _forced("folded")


def fused_for_compile() -> None:
    _forced("compiled")


def packing() -> None:
    """Weights packed without the images' size, as torch packs them that does not know it."""
    import torch

    from rkd.engine.onednn import PrepackedConv, flip

    def pack(self: PrepackedConv, key: tuple[int, ...], shape: torch.Size, padding: tuple[int, ...]) -> torch.Tensor:
        weight = flip(self._weight, self.groups) if self._flipped else self._weight
        last = weight.contiguous(memory_format=torch.channels_last)
        packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            last, list(padding), self.stride, self.dilation, self.groups
        )
        self.packed[key] = packed
        return packed

    _replace(PrepackedConv, "_pack", pack)


def input_gradients() -> None:
    from rkd.engine import onednn

    _replace(
        onednn,
        "input_gradient",
        lambda layer, weight: onednn._by_torch(layer, weight, onednn.padding_of(layer)),
    )


def taps() -> None:
    from rkd.engine import onednn

    _replace(onednn, "NARROW", 0)


def phases() -> None:
    from rkd.engine import onednn

    _replace(onednn, "FEW", 0)


def pad_shortcut() -> None:
    """Without it a ResNet with such shortcuts has no tape."""
    from rkd.engine import fusion

    _replace(fusion, "_pad_shortcut", lambda node: None)


def tape() -> None:
    from rkd.engine import backends

    _replace(backends, "taped", lambda net: None)


def micro_batches() -> None:
    from rkd.engine import backends

    _replace(backends, "MICRO_BATCH", 10**9)


def windows() -> None:
    from rkd.engine.backends import FastCopy, FastNet

    _replace(FastCopy, "patches", FastNet.patches)


# Memory


def checkpointing() -> None:
    from rkd.nets import net

    _replace(net, "checkpointed", lambda net, x: nullcontext())


def keep_freed_memory() -> None:
    from rkd.profiling import allocator

    _replace(allocator, "keep_freed_memory", lambda: False)


def teacher_micro_batches() -> None:
    from rkd.nets import net

    _replace(net, "MICRO_BATCH", 10**9)


def cache() -> None:
    from rkd.training import teacher_cache

    _replace(teacher_cache, "cached_teachers", lambda run, *arguments, **options: nullcontext())


# The data path


def prefetch() -> None:
    """Each batch is read when the step wants it."""
    from torch import Tensor

    from rkd.data.prefetch import Prefetcher

    def batches(self: Prefetcher, indices: Any) -> Iterator[Tensor]:
        yield from (self.images(index) for index in indices)

    _replace(Prefetcher, "batches", batches)


def memory_format() -> None:
    from rkd.workflow import build

    _replace(build, "arrange", lambda net, shape, device: None)


def fused_optimizer() -> None:
    from rkd.workflow import build

    original = build._optimizer

    def looped(config: Any, net: Any) -> Any:
        optimizer = original(config, net)
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer

    _replace(build, "_optimizer", looped)


@dataclass(frozen=True)
class Feature:
    name: str
    """What is on, and switched off by `off`."""
    off: Callable[[], None]
    rows: tuple[str, ...] = (STEP, ATTACK)


FEATURES = {
    "engine": Feature("the whole engine", engine),
    "folding": Feature("folding (without it little can be fused)", folding),
    "fused": Feature("fused kernels", fused_kernels),
    "fused-layout": Feature("fused kernels and channels last in the copy", fused_and_layout),
    "compile": Feature("fused kernels, torch.compile in their place", fused_for_compile),
    "packing": Feature("weights packed for the images' size", packing),
    "gradients": Feature("own input gradients of convolutions", input_gradients),
    "taps": Feature("of these: taps (one input plane)", taps, (ATTACK,)),
    "phases": Feature("of these: phases (stride 2)", phases),
    "shortcut": Feature("parameter-free shortcut on the tape", pad_shortcut, (STEP,)),
    "tape": Feature("tape", tape),
    "pieces": Feature("micro-batches of 32", micro_batches),
    "windows": Feature("changed windows followed on the tape", windows, (ATTACK,)),
    "checkpointing": Feature("blocks computed again", checkpointing, (STEP,)),
    "keep": Feature("keep_freed_memory", keep_freed_memory),
    "teacher-pieces": Feature("teacher asked 32 at a time", teacher_micro_batches, (STEP,)),
    "layout": Feature("channels last of student and teachers", memory_format, (STEP,)),
    "optimizer": Feature("fused optimizer", fused_optimizer, (STEP,)),
    "prefetch": Feature("batches read ahead", prefetch, (FILES,)),
    "cache": Feature("teacher cache, all answers known", cache, (CACHE,)),
}
