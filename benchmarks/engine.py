"""What each of the engine's backends brings, net by net: docs/results/engine.md.

    python benchmarks/engine.py [--rows resnet20 ...] [--rounds 12] [--threads 2]

For each net, batch and precision the gradient by the images is timed on the net as it is and on a copy by each
backend, in turn, for `--rounds` rounds; the table has the medians' ratios, and which backend the rule takes. A second
table times layers that rkd computes in another way than torch. Images and weights are random. Run it on an idle
machine: nothing in rkd depends on these times.
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
from torch import Tensor, nn  # noqa: E402

from rkd.api import catalog  # noqa: E402
from rkd.engine.backends import FORCED, Backend, gradient, make, rule  # noqa: E402
from rkd.engine.onednn import RELU, PrepackedConv, input_gradient  # noqa: E402
from rkd.nets.cpu_bfloat16 import packs  # noqa: E402
from rkd.nets.memory_format import arrange  # noqa: E402
from rkd.nets.net import Net  # noqa: E402
from rkd.profiling.machine import cpu_name  # noqa: E402

ROWS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], int]] = {
    "small-cnn": ("small-cnn", {}, (1, 28, 28), 128),
    "resnet20": ("resnet20", {}, (3, 32, 32), 128),
    "mobilenetv2": ("mobilenetv2", {}, (3, 32, 32), 128),
    "resnet18": ("resnet18", {}, (3, 32, 32), 64),
    "mobilenetv3": ("timm:mobilenetv3_small_050", {}, (3, 96, 96), 32),
    "efficientnet": ("timm:efficientnet_b0", {}, (3, 96, 96), 16),
    "convnext": ("timm:convnext_atto", {}, (3, 96, 96), 16),
    "vit": ("timm:vit_tiny_patch16_224", {}, (3, 96, 96), 16),
}
"""Model, options, images, batch."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
BACKENDS = ("folded", "channels-last", "fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/engine.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/engine.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for row in arguments.rows:
        for short, autocast in PRECISIONS.items():
            done[f"{row}, {short}"] = measure(*ROWS[row], autocast, arguments)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(done, indent=1))
    done["layers"] = layers(arguments.rounds)
    arguments.out.write_text(json.dumps(done, indent=1))
    write(done, arguments)


def measure(
    model: str, options: dict[str, Any], shape: tuple[int, int, int], batch: int, autocast: torch.dtype | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(0)
    net = Net(catalog().create("model", model, options)(shape, 10)).eval().requires_grad_(False)
    net.autocast = autocast
    arrange(net, shape, torch.device("cpu"))
    x = torch.rand(batch, *shape)
    backends: dict[str, Backend] = {name: rule(name, net, x.device) for name in ("auto", *BACKENDS)}
    copies = {name: make(backend, net, None, net, x[:16], print) for name, backend in backends.items()}
    nets: dict[str, Callable[[Tensor], Tensor]] = {"plain": net}
    nets |= {name: copies[name].logits for name in FORCED if name in copies and copies[name].name != "plain"}
    times: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(arguments.rounds + 1):
        for name, ask in nets.items():
            started = time.perf_counter()
            gradient(ask, x)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - started) / batch)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(model, autocast, {name: round(1e6 * value) for name, value in medians.items()}, flush=True)
    return {
        "batch": batch,
        "plain": medians["plain"],
        "faster": {name: medians["plain"] / value for name, value in medians.items() if name != "plain"},
        "rule": copies["auto"].name,
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
    deep_gradient = input_gradient(deep, weight)
    pixels, single = planes(32, 64, 8, 8), torch.randn(384, 64, 1, 1).to(dtype)
    small, square = planes(32, 256, 8, 8), planes(256, 256, 3, 3)
    unsized_single, unsized_square = unsized(single, 0), unsized(square, 1)
    packed_single, packed_square = PrepackedConv(single), PrepackedConv(square)
    y, h = planes(64, 16, 32, 32).relu_(), planes(64, 16, 32, 32)
    return {
        "gradient of a depthwise 3x3 layer, 144 planes of 32x32, stride 2, 128 images": (
            lambda: torch.ops.aten.convolution_backward(
                g, x, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 144, [True, False, False]
            ),
            lambda: deep_gradient(g, x.shape, None),
        ),
        "1x1 layer, 64 planes of 8x8 to 384, 32 images": (
            lambda: convolved(pixels, unsized_single, 0),
            lambda: packed_single(pixels),
        ),
        "3x3 layer, 256 planes of 8x8, 32 images": (
            lambda: convolved(small, unsized_square, 1),
            lambda: packed_square(small, (1, 1)),
        ),
        "gradient of ReLU, 16 planes of 32x32, 64 images": (
            lambda: torch.ops.aten.threshold_backward.grad_input(h, y, 0, grad_input=h),
            lambda: RELU.backward(h, y, inplace=True),
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


def write(done: dict[str, Any], arguments: argparse.Namespace) -> None:
    layer = done.pop("layers")
    lines = [
        "| net | batch | plain, us an image | folded | channels last | fused | the rule takes |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row, found in done.items():
        ratios = [f"{found['faster'][name]:.2f}" if name in found["faster"] else "-" for name in BACKENDS]
        cells = [row, str(found["batch"]), f"{1e6 * found['plain']:.0f}", *ratios, found["rule"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Times as fast as plain. {cpu_name()}, {arguments.threads} thread(s), torch {torch.__version__}; medians of "
        f"{arguments.rounds} rounds.",
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
