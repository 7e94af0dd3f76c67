"""Teachers from weights files: `MODEL@FILE`, such as `wrn34@trades.pt`.

`.safetensors`, or `.pt`, `.pth`, `.th`, `.t7`, `.tar` read with `weights_only=True`. The file's names must be those
of the architecture; see `rkd.nets.weights` for the wrappers and prefixes that are taken off. A normalisation that
the file stores (`mean` and `std`, or `mu` and `sigma`) becomes the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rkd.plugin import (
    Dataset,
    Net,
    TeacherReference,
    built_for,
    expanded,
    hookimpl,
    load_into,
    read_weights,
    take_normalization,
)


@dataclass
class FileTeacher:
    """MODEL@FILE: an architecture with weights from a .safetensors, .pt, .pth, .th, .t7 or .tar file."""

    def __call__(self, reference: TeacherReference, build: Callable[..., nn.Module], data: Dataset) -> nn.Module | None:
        if not reference.model or not reference.weights:
            return None
        path = expanded(reference.weights)
        state = read_weights(path)
        with built_for(state, str(path)):
            net = build(reference.model, reference.options)
        arch = net.arch if isinstance(net, Net) else net
        state, normalization = take_normalization(state, arch)
        load_into(arch, state, f"{path} (for {reference.model})")
        return Net(arch, *normalization) if normalization else net


@hookimpl
def rkd_teachers():
    return {"file": FileTeacher}
