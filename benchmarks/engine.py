"""How near the engine's choice is to the best there is: docs/results/engine.md.

    python benchmarks/engine.py [--rows resnet20 ...] [--trials 5] [--rounds 12] [--threads 2]

For each net, batch and precision the engine chooses `--trials` times, as at the first search of a run. Then every way
that it could have chosen, in every number of images at a time, is timed in turn for `--rounds` rounds, and the median
gradient of each choice is set beside the best one's. The last column sets the length of the net's own gradient that is
counted from what it computes (`engine/effort.py`) beside the measured one. A second table times layers that rkd
computes in another way than torch. Images and weights are random. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rkd.profiling.allocator import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
from rkd.engine.choose import PIECES, choose  # noqa: E402
from rkd.engine.effort import GRADIENT, forward_effort  # noqa: E402
from rkd.engine.measure import gradient  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from rkd.api import catalog  # noqa: E402
from rkd.engine.backends import Precision, made, ways  # noqa: E402
from rkd.engine.fused import RELU  # noqa: E402
from rkd.engine.packing import Packed  # noqa: E402
from rkd.engine.slopes import slope_of  # noqa: E402
from rkd.nets.cpu_bfloat16 import packs  # noqa: E402
from rkd.nets.net import Net  # noqa: E402
from rkd.profiling.machine import cpu_name  # noqa: E402

ROWS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], int]] = {
    "small-cnn": ("small-cnn", {}, (1, 28, 28), 128),
    "resnet20": ("resnet20", {}, (3, 32, 32), 128),
    "mobilenetv2": ("mobilenetv2", {}, (3, 32, 32), 128),
    "resnet18": ("resnet18", {}, (3, 32, 32), 64),
}
"""Model, options, images, batch."""
PRECISIONS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/engine.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/engine.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for row in arguments.rows:
        for short, precision in PRECISIONS.items():
            done[f"{row}, {short}"] = measure(*ROWS[row], precision, arguments)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(done, indent=1))
    done["layers"] = layers(arguments.rounds)
    arguments.out.write_text(json.dumps(done, indent=1))
    write(done, arguments)


def measure(
    model: str, options: dict[str, Any], shape: tuple[int, int, int], batch: int, precision: Precision,
    arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(0)
    net = Net(catalog().create("model", model, options)(shape, 10)).eval().requires_grad_(False)
    x = torch.rand(batch, *shape)
    chosen = []
    for _ in range(arguments.trials):
        found = choose(net, x, precision=precision)
        chosen.append((found.way, getattr(found.net, "piece", None)))
    tried: dict[tuple[str, int | None], nn.Module] = {("plain", None): net}
    for way in ways(x.device, precision):
        copied = made(way, net, x).net
        tried |= {(way, size): copied for size in (None, *(size for size in PIECES if size < batch))}
    times: dict[tuple[str, int | None], list[float]] = {place: [] for place in tried}
    for number in range(arguments.rounds + 1):
        for place, copied in tried.items():
            seconds = taken(copied, x, place[1] or batch)
            if number:  # the first round warms up
                times[place].append(seconds)
    medians = {place: statistics.median(values) for place, values in times.items()}
    best = min(medians, key=lambda place: medians[place])
    print(model, precision, best, {named(*place): round(1e6 * value) for place, value in medians.items()}, flush=True)
    return {
        "batch": batch,
        "best": named(*best),
        "plain": medians["plain", None] / medians[best],
        "counted": GRADIENT * forward_effort(net, x) / medians["plain", None],
        "chosen": [(named(*place), medians[place] / medians[best]) for place in chosen],
    }


def layers(rounds: int) -> list[str]:
    """Single layers as torch or oneDNN compute them and as rkd does, in each dtype."""
    lines = ["| layer | dtype | torch's, ms | rkd's, ms |", "|---|---|---:|---:|"]
    for dtype in (torch.float32, torch.bfloat16) if packs() else (torch.float32,):
        for name, (other, own) in layer_pairs(dtype).items():
            times = " | ".join(f"{1e3 * timed(do, rounds):.2f}" for do in (other, own))
            lines.append(f"| {name} | {str(dtype).removeprefix('torch.')} | {times} |")
    return lines


def layer_pairs(dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    def planes(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)

    x, g = planes(128, 144, 32, 32), planes(128, 144, 16, 16)
    deep = nn.Conv2d(144, 144, 3, stride=2, padding=1, groups=144, bias=False).requires_grad_(False)
    weight = deep.weight.to(dtype)
    deep_slope = slope_of(deep, weight)
    pixels, single = planes(32, 64, 8, 8), torch.randn(384, 64, 1, 1).to(dtype)
    small, square = planes(32, 256, 8, 8), planes(256, 256, 3, 3)
    unsized_single, unsized_square = unsized(single, 0), unsized(square, 1)
    packed_single, packed_square = Packed(single), Packed(square)
    y, h = planes(64, 16, 32, 32).relu_(), planes(64, 16, 32, 32)
    return {
        "gradient of a depthwise 3x3 layer, 144 planes of 32x32, stride 2, 128 images": (
            lambda: torch.ops.aten.convolution_backward(
                g, x, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 144, [True, False, False]
            ),
            lambda: deep_slope(g, x.shape, None),
        ),
        "1x1 layer, 64 planes of 8x8 to 384, 32 images": (
            lambda: convolved(pixels, unsized_single, 0),
            lambda: packed_single.convolve(pixels),
        ),
        "3x3 layer, 256 planes of 8x8, 32 images": (
            lambda: convolved(small, unsized_square, 1),
            lambda: packed_square.convolve(small, (1, 1)),
        ),
        "gradient of ReLU, 16 planes of 32x32, 64 images": (
            lambda: torch.ops.aten.threshold_backward.grad_input(h, y, 0, grad_input=h),
            lambda: RELU.backward(h, y, here=True),
        ),
    }


def unsized(weight: Tensor, padding: int) -> Tensor:
    """A weight packed ahead without saying for which inputs."""
    around, one = [padding, padding], [1, 1]
    last = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(last, around, one, one, 1)


def convolved(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    around, one = [padding, padding], [1, 1]
    return torch.ops.mkldnn._convolution_pointwise(x, weight, None, around, one, one, 1, "none", [], "")


def timed(do: Callable[[], object], rounds: int) -> float:
    """Seconds, the median of as many rounds; short work is done several times on end."""
    do()
    started = time.perf_counter()
    do()
    often = max(1, min(100, int(0.01 / (time.perf_counter() - started))))
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(often):
            do()
        found.append((time.perf_counter() - started) / often)
    return statistics.median(found)


def taken(net: nn.Module, x: Tensor, size: int) -> float:
    """Seconds an image, of all images in pieces."""
    started = time.perf_counter()
    for rows in x.split(size):
        gradient(net, rows)
    return (time.perf_counter() - started) / len(x)


def named(way: str, size: int | None) -> str:
    return f"{way}, {size} at a time" if size else way


def write(done: dict[str, Any], arguments: argparse.Namespace) -> None:
    layer = done.pop("layers")
    lines = [
        "| net | batch | best | times as fast as plain | chosen | its time over the best's | counted over measured |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for row, found in done.items():
        for place, ratio in dict(found["chosen"]).items():
            count = sum(name == place for name, _ in found["chosen"])
            cells = [row, str(found["batch"]), found["best"], f"{found['plain']:.2f}",
                     f"{place} ({count} of {len(found['chosen'])})", f"{ratio:.3f}",
                     f"{found['counted']:.1f}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    worst = max(ratio for found in done.values() for _, ratio in found["chosen"])
    lines += [
        "",
        f"The worst choice takes {100 * (worst - 1):.1f} % longer than the best there is. {cpu_name()}, "
        f"{arguments.threads} thread(s), torch {torch.__version__}; medians of {arguments.rounds} rounds.",
        "",
        "Single layers, channels last (torch's, for the 1x1 and 3x3 layers oneDNN's convolution with weights packed "
        "without their inputs' shape):",
        "",
        *layer,
    ]
    text = arguments.table.read_text() if arguments.table.is_file() else "<!-- table -->\n<!-- end -->\n"
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    arguments.table.write_text(before + "\n".join(["<!-- table -->", *lines, "<!-- end -->"]) + after)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
