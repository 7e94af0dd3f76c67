"""Teachers from weights files: `MODEL@FILE`, such as `wrn34@trades.pt`, or `MODEL@FILE#KEY`.

`.safetensors`, or `.pt`, `.pth`, `.th`, `.t7`, `.tar` read with `weights_only=True`. The file's names must be those
of the architecture, behind whatever prefix; `rkd.nets.fitting` says what else a file may hold. A normalisation that
the file stores (`mean` and `std`, `mu` and `sigma`, or `new_mean` and `new_std`) becomes the teacher's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rkd.plugin import Dataset, Net, TeacherReference, hookimpl, net_from_file


@dataclass
class FileTeacher:
    """MODEL@FILE: an architecture with weights from a .safetensors, .pt, .pth, .th, .t7 or .tar file."""

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> Net | None:
        if not reference.model or not reference.weights:
            return None
        model, options = reference.model, reference.options
        return net_from_file(
            reference.weights, model, lambda classes: build(model, options, classes), len(data.classes),
            reference.strip, bool(reference.classes),
        )  # fmt: skip


@hookimpl
def rkd_teachers():
    return {"file": FileTeacher}
