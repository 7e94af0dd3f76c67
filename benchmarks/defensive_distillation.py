"""Defensive distillation on MNIST (Papernot et al. 2016) and Carlini and Wagner's answer, on the same nets.

    python benchmarks/defensive_distillation.py --data-dir DATA [--out runs/defensive] [--epochs 3] [--seed 0]

For each temperature T an initial net is trained at T on the labels and a second one at T on its probabilities, by the
installed `rkd` command; the initial net of T = 1 is the undistilled one. Each is then measured at T = 1: accuracy,
JSMA, gradients of the softmax, attacks in the Linf ball, distances in L2. Finished runs and measurements are skipped,
so a stopped study goes on where it was. Writes the tables between the markers of --page, and pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from defensive_nets import INITIAL, JSMA, LINF, Numbers, measure, measured, nets, train

from rkd.api import catalog
from rkd.profiling.machine import cpu_name

matplotlib.use("svg")
import matplotlib.pyplot as plt

TEMPERATURES = [1, 2, 5, 10, 20, 50, 100]
PUBLISHED_JSMA = {"none": 95.89, "1": 91.0, "2": 82.23, "5": 24.67, "10": 6.78, "20": 1.34, "50": 1.45, "100": 0.45}
"""Targeted JSMA success in %, Papernot et al.: 100 images x 9 classes."""

AMPLITUDES = [-308, -40, -30, -20, -10, -5, -3, -2]
"""Powers of ten below which the gradients' amplitudes are counted; float64 ends at the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/defensive"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/defensive-distillation.md"))
    parser.add_argument("--temperatures", type=int, nargs="+", default=TEMPERATURES)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the initial nets; the distilled ones have the next")
    parser.add_argument("--jsma", type=int, default=100, help="images, each aimed at 9 classes")
    parser.add_argument("--linf", type=int, default=500, help="images for the attacks in the ball")
    parser.add_argument("--gradients", type=int, default=1000, help="images whose gradients are measured")
    parser.add_argument("--l2", type=int, default=30, help="images for cw-l2")
    parser.add_argument("--page-only", action="store_true", help="train and measure nothing")
    arguments = parser.parse_args()
    if arguments.temperatures[0] != 1:
        parser.error("--temperatures must begin with 1: its initial net is the undistilled one")

    if not arguments.page_only:
        for T in arguments.temperatures:
            train(arguments, T)
        data = catalog().create("dataset", "mnist", {"dir": arguments.data_dir})()
        for name, (run, T) in nets(arguments).items():
            measure(arguments, name, run, T, data)
        for T in arguments.temperatures[1:]:
            measure(arguments, f"initial-{T}", arguments.out / f"initial-T{T}", T, data, INITIAL)
    write(arguments)


# The page


def write(arguments: argparse.Namespace) -> None:
    """The tables between the page's markers, and the pictures beside it, from what has been measured."""
    found = {name: results(arguments, name) for name in nets(arguments)}
    found = {name: parts for name, parts in found.items() if parts}
    if not found:
        raise SystemExit(f"nothing has been measured in {arguments.out} yet")
    tables = {
        "jsma": jsma_table(found),
        "initial": initial_table(arguments, found),
        "features": features_table(found),
        "gradients": gradients_table(found),
        "attacks": attacks_table(found),
        "about": [about(arguments, found)],
    }
    text = arguments.page.read_text() if arguments.page.is_file() else "# Defensive distillation\n"
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if begin not in text:
            text += f"\n{begin}\n{end}\n"
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *lines, end]) + rest.partition(end)[2]
        print("\n".join([*lines, ""]))
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(text)
    draw_jsma(found, picture(arguments, "jsma"))
    draw_attacks(found, picture(arguments, "attacks"))
    draw_gradients(found, picture(arguments, "gradients"))


def picture(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.page.with_name(f"{arguments.page.stem}-{name}.svg")


def results(arguments: argparse.Namespace, name: str, only: Sequence[str] = ()) -> dict[str, Numbers]:
    """The measurements of a net, by part; {} where one is missing."""
    parts = ["clean", "gradients", "l2", *(f"jsma-{way.replace('/', '-')}" for way in JSMA)]
    parts += [f"linf-{attack}" for attack, _ in LINF.values()]
    files = {part: measured(arguments, name, part) for part in only or parts}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {part: json.loads(file.read_text()) for part, file in files.items()}


def jsma_table(found: dict[str, dict[str, Numbers]]) -> list[str]:
    head = ["T", "accuracy", "confidence", "size of the logits", "published"]
    head += ["as printed", "softmax", "softmax of z / T", "logits"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, parts in found.items():
        seen = parts["clean"]
        published = f"{PUBLISHED_JSMA[name]:.2f}" if name in PUBLISHED_JSMA else ""
        cells = [title(name), percent(seen["accuracy"]), percent(seen["confidence"])]
        cells += [f"{seen['logits']:,.0f} ± {seen['logits_sd']:,.0f}", published]
        cells += [percent(success(parts, way), 1) for way in JSMA]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def initial_table(arguments: argparse.Namespace, found: dict[str, dict[str, Numbers]]) -> list[str]:
    """The initial nets beside the distilled ones."""
    head = ["T", "accuracy: initial", "distilled", "lead of the logits: initial", "distilled"]
    head += ["JSMA as printed: initial", "distilled", "JSMA softmax: initial", "distilled"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for T in arguments.temperatures:
        initial = found["none"] if T == 1 else results(arguments, f"initial-{T}", INITIAL)
        if not initial or str(T) not in found:
            continue
        both = (initial, found[str(T)])
        cells = [str(T), *(percent(parts["clean"]["accuracy"]) for parts in both)]
        cells += [f"{parts['clean']['lead']:,.0f}" for parts in both]
        cells += [percent(success(parts, way), 1) for way in ("printed", "softmax") for parts in both]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def features_table(found: dict[str, dict[str, Numbers]]) -> list[str]:
    lines = [
        "| T | published | softmax: nearest class | all classes | reached | softmax of z / T: nearest class "
        "| all classes | reached |",
        "|---|" + "---:|" * 7,
    ]
    published = {"none": "1.55", "100": "14.08"}
    for name, parts in found.items():
        cells = [title(name), published.get(name, "")]
        for way in ("jsma-softmax", "jsma-softmax-T"):
            seen = parts[way]
            cells += [percent(seen["features_nearest"]), percent(seen["features"])]
            cells.append(percent(seen["features_reached"]) if seen["features_reached"] is not None else "none")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gradients_table(found: dict[str, dict[str, Numbers]]) -> list[str]:
    below = " | ".join(f"< 1e{power}" for power in AMPLITUDES)
    lines = [
        f"| T | computed | {below} | median |",
        "|---|---|" + "---:|" * (len(AMPLITUDES) + 1),
    ]
    for name, parts in found.items():
        for way, words in (("own", "exactly"), ("float32", "in float32")):
            values = amplitudes(parts, way)
            cells = [title(name) if way == "own" else "", words]
            cells += [percent(sum(v < power for v in values) / len(values), 1) for power in AMPLITUDES]
            middle = sorted(values)[len(values) // 2]
            cells.append("0" if middle == -math.inf else f"1e{middle:.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def attacks_table(found: dict[str, dict[str, Numbers]]) -> list[str]:
    head = ["T", "clean", *LINF, "JSMA softmax", "JSMA softmax of z / T", "CW-L2 fooled", "mean L2 distance"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, parts in found.items():
        cells = [title(name), percent(parts["linf-fgsm"]["clean"], 1)]
        cells += [percent(parts[f"linf-{attack}"]["accuracy"], 1) for attack, _ in LINF.values()]
        for way in ("jsma-softmax", "jsma-softmax-T"):
            seen = parts[way]
            cells.append(percent((seen["images"] - seen["any"]) / seen["asked"]["samples"], 1))
        near = parts["l2"]
        cells.append(f"{near['fooled']} of {near['images']}")
        cells.append("" if near["distance"] is None else f"{near['distance']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def about(arguments: argparse.Namespace, found: dict[str, dict[str, Numbers]]) -> str:
    runs = [arguments.out / f"{kind}-T{T}" for T in arguments.temperatures for kind in ("initial", "distilled")]
    manifest = json.loads((runs[0] / "manifest.json").read_text())
    versions = manifest["versions"]
    trained = [json.loads((run / "took.json").read_text()) for run in runs if (run / "took.json").is_file()]
    attacked = [json.loads(file.read_text())["took"] for file in (arguments.out / "measured").glob("*.json")]
    some = next(iter(found.values()))
    pairs = [parts["jsma-softmax"]["pairs"] for parts in found.values()]
    return (
        f"Machine: {manifest['hardware']['system']}, {cpu_name()}, one thread on a machine that did other work as "
        f"well. Python {versions['python']}, torch {versions['torch']}, rkd {versions['rkd-toolkit']}. "
        f"{arguments.epochs} epochs of 60,000 images for each of the {len(runs)} nets; one seed: {arguments.seed} for "
        f"the initial nets, {arguments.seed + 1} for the distilled ones. Training took {minutes(trained, 'cpu')} "
        f"minutes of the processor ({minutes(trained, 'wall')} of the clock), the measurements "
        f"{minutes(attacked, 'cpu')} ({minutes(attacked, 'wall')}). Accuracy and confidence: 10,000 test images. "
        f"JSMA: those of {some['jsma-softmax']['asked']['samples']} test images that the net gets right, each aimed "
        f"at 9 classes ({min(pairs)} to {max(pairs)} pairs; the 95 % interval of a success near 50 % is "
        f"± {98 / math.sqrt(min(pairs)):.1f} points if pairs are taken as independent). Gradients: "
        f"{len(some['gradients']['own']):,} test images. Attacks in the ball: "
        f"{some['linf-fgsm']['asked']['samples']} test images. CW-L2: those of {some['l2']['asked']['samples']} test "
        f"images that the net gets right."
    )


def title(name: str) -> str:
    return "undistilled" if name == "none" else name


def percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f}"


def success(parts: dict[str, Numbers], way: str) -> float:
    seen = parts[f"jsma-{way.replace('/', '-')}"]
    return seen["reached"] / seen["pairs"]


def amplitudes(parts: dict[str, Numbers], way: str) -> list[float]:
    return [-math.inf if value is None else value for value in parts["gradients"][way]]


def minutes(took: list[Numbers], clock: str) -> str:
    return f"{sum(part[clock] for part in took) / 60:.0f}"


# The pictures

INK, PALE = "#333333", "#999999"
COLOURS = ["#c5221f", "#b06000", "#3367d6", "#188038"]


def axes(names: list[str], label: str) -> tuple[Any, Any]:
    """A figure whose horizontal axis are the nets, and whose vertical one is a share in %."""
    figure, place = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    place.set_xticks(range(len(names)), ["undistilled" if name == "none" else f"T = {name}" for name in names])
    place.set_ylim(-3, 103)
    place.set_ylabel(label)
    plain(place)
    return figure, place


def plain(place: Any) -> None:
    place.spines[["top", "right"]].set_visible(False)
    place.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    place.set_axisbelow(True)
    place.tick_params(colors=INK, labelsize=9)


def save(figure: Any, file: Path) -> None:
    plt.rcParams["svg.hashsalt"] = file.stem  # the same picture gives the same file
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def draw_jsma(found: dict[str, dict[str, Numbers]], file: Path) -> None:
    names = list(found)
    figure, place = axes(names, "targeted attacks that succeed, %")
    known = [i for i, name in enumerate(names) if name in PUBLISHED_JSMA]
    place.plot(
        known, [PUBLISHED_JSMA[names[i]] for i in known],
        "s--", color=PALE, label="published (Papernot et al. 2016)", markersize=5, linewidth=1.2,
    )  # fmt: skip
    labels = {
        "printed": "softmax, products in float32 as printed",
        "softmax": "softmax, derivatives scaled first",
        "softmax/T": "softmax of z / T (Carlini and Wagner 2016)",
        "logits": "logits z",
    }
    for (way, label), colour in zip(labels.items(), COLOURS, strict=True):
        place.plot(
            range(len(names)), [100 * success(found[name], way) for name in names],
            "o-", color=colour, label=label, markersize=5, linewidth=1.6,
        )  # fmt: skip
    place.set_title("JSMA on distilled nets: which output it differentiates", fontsize=11, loc="left", color=INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    save(figure, file)


def draw_attacks(found: dict[str, dict[str, Numbers]], file: Path) -> None:
    names = list(found)
    figure, place = axes(names, "accuracy, %")
    lines = {"clean": [found[name]["linf-fgsm"]["clean"] for name in names]}
    for label, (attack, _) in LINF.items():
        lines[label] = [found[name][f"linf-{attack}"]["accuracy"] for name in names]
    for (label, values), colour, mark in zip(lines.items(), [PALE, *COLOURS], "sovd^", strict=True):
        place.plot(
            range(len(names)), [100 * value for value in values],
            f"{mark}-", color=colour, label=label, markersize=5, linewidth=1.6,
        )  # fmt: skip
    place.set_title("The same nets in the ball Linf 0.3", fontsize=11, loc="left", color=INK)
    place.legend(frameon=False, fontsize=8.5, ncols=2)
    save(figure, file)


def draw_gradients(found: dict[str, dict[str, Numbers]], file: Path) -> None:
    """How many images have a mean amplitude below a number, and where float32 ends."""
    figure, place = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    left = max(-800.0, min(min(amplitudes(parts, "own")) for parts in found.values()))
    colours = plt.get_cmap("viridis")
    for i, (name, parts) in enumerate(found.items()):
        values = sorted(amplitudes(parts, "own"))
        step = max(len(values) // 200, 1)
        share = [100 * (k + 1) / len(values) for k in range(len(values))]
        place.plot(
            values[::step], share[::step], color=INK if name == "none" else colours(0.95 - 0.95 * i / len(found)),
            linestyle="--" if name == "none" else "-", linewidth=1.6,
            label="undistilled" if name == "none" else f"T = {name}",
        )  # fmt: skip
    place.axvspan(left, -45, color="#f1f3f4", zorder=0)
    place.axvspan(left, -324, color="#e3e5e8", zorder=0)
    place.text(-240, 5, "0 in float32", ha="center", fontsize=9, color=INK)
    place.text(-340, 94, "0 in float64 as well", ha="right", fontsize=9, color=INK)
    place.set_xlim(left, 2)
    place.set_ylim(0, 101)
    place.set_xlabel("log10 of the mean amplitude of the softmax's derivatives by the pixels", fontsize=9)
    place.set_ylabel("test images below it, %", fontsize=9)
    plain(place)
    place.set_title("How large the gradients are, computed without underflow", fontsize=11, loc="left", color=INK)
    place.legend(frameon=False, fontsize=8.5)
    save(figure, file)


if __name__ == "__main__":
    main()
