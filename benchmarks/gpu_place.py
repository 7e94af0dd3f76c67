"""Where and how much benchmarks/gpu.py measures, and what its parts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from in_turn import IMAGES, make_images
from speed import CLEAN_TEACHER

KINDS: dict[str, dict[str, Any]] = {
    "plain script": {"kind": "plain", "tf32": True},  # torch's own default for convolutions
    "fp32": {"kind": "fp32"},
    "TF32": {"kind": "fp32", "tf32": True},
    "TF32, channels last": {"kind": "fp32", "tf32": True, "layout": True, "engine": "channels-last"},
    "bf16, usual layout": {"kind": "bf16", "layout": False, "engine": "folded"},
    "bf16, nets as they are": {"kind": "bf16", "engine": "plain"},
    "bf16": {"kind": "bf16"},
    "bf16, compiled": {"kind": "bf16", "engine": "compiled"},
    "bf16, CUDA graphs": {"kind": "bf16", "engine": "compiled", "mode": "reduce-overhead"},
}
"""How a step runs. `layout`: channels last or not, instead of the rule; `mode`: of torch.compile."""


@dataclass(frozen=True)
class Size:
    """How much is measured. On a machine without a GPU the small size tries that everything runs."""

    losses: tuple[str, ...] | None = None  # all
    attacks: tuple[str, ...] | None = None
    images: int = 64
    students: tuple[str, ...] = ("resnet18", "mobilenetv2")
    teacher: str = "wrn34-10"
    clean: str = CLEAN_TEACHER
    steps: int = 10
    batches: tuple[int, ...] = (512, 128)
    kinds: tuple[str, ...] = tuple(KINDS)
    rounds: int = 3
    each: int = 4
    epoch: int = 50_000
    seconds: float = 5.0
    attacked: int = 256
    epochs: int = 6
    first_run: tuple[str, ...] = ()


SMALL = Size(
    losses=("ce", "rslad"), attacks=("pgd", "n-fgsm"), images=4, students=("small-cnn",), teacher="small-cnn",
    clean="small-cnn", steps=2, batches=(4,), kinds=("plain script", "TF32, channels last", "bf16"), rounds=1, each=1,
    epoch=16, seconds=0, attacked=4, epochs=1,
    first_run=("--epochs", "1", "--teacher-epochs", "1", "--limit-train", "20", "--set", "validate.limit=10",
               "--set", "evaluate.limit=10", "--teacher", "small-cnn", "--teacher", "small-cnn", "--baseline", "none",
               "--evaluate", "fgsm", "--set", "attack.steps=2"),
)  # fmt: skip


@dataclass
class Place:
    """Where a part runs, and how much of it."""

    device: torch.device
    out: Path
    size: Size
    peak: float | None = None
    """Operations a second in bfloat16 that the device was seen to reach."""


Found = Mapping[str, Any]
Cases = dict[str, Callable[[], Found]]
"""What a part does, by name."""


def job_of(place: Place, method: str, student: str, batch: int, **more: Any) -> dict[str, Any]:
    """As benchmarks/speed.py understands it."""
    images = place.out / "random.npz"
    if not images.is_file():
        make_images(images, max(IMAGES, 4 * max(place.size.batches)))
    return {
        "images": str(images.absolute()), "device": str(place.device), "method": method, "student": student,
        "teacher": place.size.teacher, "clean": place.size.clean, "batch": batch, "steps": place.size.steps,
        "engine": "auto", "kind": "bf16", **more,
    }  # fmt: skip


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 is multiplied with ten bits of mantissa inside, by convolutions and matrix products."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
