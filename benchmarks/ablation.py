"""What each feature of the engine, of memory and of the data path brings: docs/results/ablation.md.

    python benchmarks/ablation.py [--rows step-resnet20 ...] [--features fused tape ...] [--data-dir DATA]
    python benchmarks/ablation.py --table-only

Each feature is off once, everything else on; FEATURES in `ablation_features.py` has one entry each. A row is a whole
training step (RSLAD, as in `speed.py`), AutoAttack on a net, or a gradient. Each feature has a process of its own, and
up to --group of them take turns with one in which everything is on. Times are a process's own (user and system) in
one thread, which other processes hardly change; in several threads, and where reading ahead is switched off, they are
wall-clock times. Files in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ablation_features import ATTACK, CACHE, FEATURES, FILES, STEP
from in_turn import answer, make_images, measure, timed
from speed import rkd_step

ON = "everything on"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "step-mobilenetv2": (STEP, {"student": "mobilenetv2", "teacher": "resnet56", "batch": 48}),
    "step-resnet20": (STEP, {"student": "resnet20", "teacher": "resnet56", "batch": 64}),
    "step-resnet18": (STEP, {"student": "resnet18", "teacher": "wrn34-10", "batch": 8}),
    "step48-resnet18": (STEP, {"student": "resnet18", "teacher": "wrn34-10", "batch": 48}),
    "attack-cnn": (ATTACK, {"net": "cnn", "count": 64, "share": 5}),
    "attack-mobilenetv2": (ATTACK, {"net": "mobilenetv2", "count": 6, "share": 20}),
    "files-resnet20": (FILES, {"student": "resnet20", "teacher": "resnet56", "batch": 64}),
    "cache-wrn34-10": (CACHE, {"student": "resnet18", "teacher": "wrn34-10", "batch": 8}),
    "cache-wrn70-16": (CACHE, {"student": "resnet18", "teacher": "wrn70-16", "batch": 8}),
}
"""Kind, and what is measured. `share`: of AutoAttack's steps and queries, one in so many."""
TIMM = ("timm:mobilenetv3_small_050", "timm:efficientnet_lite0", "timm:convnext_atto", "timm:vit_tiny_patch16_224")
SIDE, TIMM_BATCH = 96, 32
CROP_AND_FLIP = 162
"""Versions of an image that crop by 4 pixels and flip make."""


# The workers


def attack_step(job: dict[str, Any]) -> Any:
    """AutoAttack on a net as `rkd eval` does it; returns how many images stand."""
    import torch

    from rkd.api import attack_plan, catalog
    from rkd.core.types import ThreatModel
    from rkd.data.dataset import ArraySplit
    from rkd.engine.accelerator import Engine
    from rkd.evaluation.evaluate import evaluate
    from rkd.evaluation.samples import EvalSettings
    from rkd.nets.net import Net

    torch.manual_seed(0)
    engine = Engine("bfloat16" if job["kind"] == "bf16" else "auto")
    if job["net"] == "cnn":
        from autoattack import loaded

        subject, data = loaded(Path(job["run"]), job["data_dir"])
        net, split = subject.net, data.test
        settings = EvalSettings(subject.card.threat, limit=job["count"], accelerator=engine)
    else:
        net = Net(catalog().create("model", job["net"])((3, 32, 32), 10)).eval().requires_grad_(False)
        images = torch.rand(job["count"], 3, 32, 32)
        with torch.no_grad():
            split = ArraySplit(images, net(images).argmax(1))
        settings = EvalSettings(ThreatModel("Linf", 1 / 255, 0.25 / 255), accelerator=engine)
    share = job.get("share", 1)
    plan = attack_plan("autoattack", steps=100 // share, queries=5000 // share)

    def step() -> float:
        result = evaluate(net, split, {"autoattack": plan}, settings)
        return float(result.outcomes["autoattack"].right.sum())

    return step


def work(job: dict[str, Any]) -> None:
    if job["off"]:
        FEATURES[job["off"]].off()
    from rkd.profiling import allocator

    allocator.keep_freed_memory()
    import torch

    torch.set_num_threads(job["threads"])
    answer(attack_step(job) if job["row"] == ATTACK else rkd_step(job))


# The parent


def jobs_of(row: str, names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the processes of a row do, by the feature that is off."""
    kind, what = ROWS[row]
    images = arguments.out / ("few.npz" if kind == CACHE else "random.npz")
    job: dict[str, Any] = {"row": kind, "kind": arguments.precision, "threads": arguments.threads}
    if kind == ATTACK:
        job |= {"run": str(arguments.run.absolute()), "data_dir": arguments.data_dir}
    else:
        job |= {"method": "rslad", "steps": 10, "engine": "auto"}
    if kind == FILES:
        job["settings"] = {
            "data": {"name": f"imagefolder:{(arguments.out / 'jpeg').absolute()}", "memory_mib": 0, "size": 32}
        }
    if kind == CACHE:
        job |= {"cache": True, "settings": {"augments": {"crop": False, "flip": False}}}
    job = {"images": str(images.absolute())} | job | what
    return {name or ON: job | {"off": name} for name in ("", *names)}


def prepare(arguments: argparse.Namespace) -> None:
    """Images, and a CNN on MNIST of which some images stand."""
    import numpy as np
    from PIL import Image

    make_images(arguments.out / "random.npz")
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 10
    np.savez(arguments.out / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for number in range(512):
        place = arguments.out / "jpeg" / ("train" if number < 500 else "test") / str(number % 10) / f"{number}.jpg"
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(place)
    if any(row != "timm" and ROWS[row][1].get("net") == "cnn" for row in arguments.rows) and not arguments.run.is_dir():
        if not arguments.data_dir:
            raise SystemExit("attack-cnn needs --data-dir, where MNIST lies, or --run with a trained net")
        command = ["run", "mnist-small", "--loss", "pgd-at", "--set", "attack.eps=ramp(0, 0.3, until=0.5)"]
        command += ["--set", "attack.steps=7", "--epochs", "2", "--data-dir", arguments.data_dir, "--no-report"]
        command += ["--evaluate", "fgsm", "--set", "evaluate.limit=200", "--out", str(arguments.run.parent)]
        subprocess.run([sys.executable, "-m", "rkd", *command, "--name", arguments.run.name], check=True)


def timm_nets(arguments: argparse.Namespace) -> None:
    """Gradients of nets of timm: plain, each copy, and the one that the rule takes."""
    import torch
    from overhead import used

    from rkd.api import catalog
    from rkd.engine.backends import FORCED, gradient, make, rule
    from rkd.nets.modes import frozen_parameters
    from rkd.nets.net import Net

    torch.set_num_threads(arguments.threads)
    done: dict[str, Any] = {}
    for name in TIMM:
        torch.manual_seed(0)
        net = Net(catalog().create("model", name)((3, SIDE, SIDE), 10)).eval()
        net.autocast = torch.bfloat16 if arguments.precision == "bf16" else None
        x = torch.rand(TIMM_BATCH, 3, SIDE, SIDE)
        with frozen_parameters(net):
            backends = {rule(way, net, x.device) for way in ("auto", *FORCED) if way != "compiled"}
            copies = {copy.name: copy for copy in (make(b, net, None, net, x[:8], lambda text: None) for b in backends)}
            tried = {"plain": net} | {copy.name: copy.logits for copy in copies.values()}
            chosen = make(rule("auto", net, x.device), net, None, net, x[:8], print).name
            found: dict[str, list[float]] = {way: [] for way in tried}
            for number in range(arguments.rounds + 1):
                for way, logits in tried.items():
                    before = used()[0]
                    gradient(logits, x)
                    if number:
                        found[way].append((used()[0] - before) / len(x))
        done[name] = {"seconds": found, "chosen": chosen, "torch": torch.__version__}
        print(name, {way: round(1e3 * statistics.median(values), 2) for way, values in found.items()}, flush=True)
    (arguments.out / "timm.json").write_text(json.dumps(done, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "timm"], default=[*ROWS, "timm"])
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--group", type=int, default=6, help="processes beside the one with everything on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not counted")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", help="where MNIST lies")
    parser.add_argument("--run", type=Path, default=Path("runs/cnn"), help="the CNN's run; trained if there is none")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/ablation.md"))
    parser.add_argument("--table-only", action="store_true", help="measure nothing: the tables of what there is")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(json.loads(arguments.worker))
        return
    if not arguments.table_only:
        prepare(arguments)
        for row in arguments.rows:
            if row == "timm":
                timm_nets(arguments)
                continue
            names = [name for name in arguments.features if ROWS[row][0] in FEATURES[name].rows]
            for group in (names[i : i + arguments.group] for i in range(0, len(names), arguments.group)):
                jobs = jobs_of(row, group, arguments)
                file = f"{row},{arguments.precision},{group[0]}"
                measure(file, jobs, arguments.rounds, arguments.out, __file__, arguments.warm_up)
    write(arguments)


# The page


def write(arguments: argparse.Namespace) -> None:
    """All tables, into the page, between its marks."""
    measured = [json.loads(path.read_text()) | {"file": path.stem} for path in sorted(arguments.out.glob("*,*.json"))]
    columns: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for content in measured:
        row, precision, _ = content["file"].split(",")
        for name in content["jobs"].keys() - {ON}:
            columns.setdefault((row, precision), {})[name] = content
    lines = feature_table({key: found for key, found in columns.items() if ROWS[key[0]][0] != CACHE})
    if measured:
        lines += ["", machine_line(measured[0])]
    cache = {key: found["cache"] for key, found in columns.items() if ROWS[key[0]][0] == CACHE}
    if cache:
        lines += ["", *cache_table(cache)]
    if (timm := arguments.out / "timm.json").is_file():
        lines += ["", *timm_table(json.loads(timm.read_text()))]
    page = arguments.table
    text = page.read_text() if page.is_file() else "# What each feature brings\n\n<!-- table -->\n<!-- end -->\n"
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(before + "\n".join(["<!-- table -->", *lines, "<!-- end -->"]) + after)
    print("\n".join(lines))


def times(content: dict[str, Any], name: str) -> list[float]:
    job = content["jobs"][name]
    return timed(content, name, "cpu" if job["threads"] == 1 and job["row"] != FILES else "seconds")


def ratios(content: dict[str, Any], name: str) -> list[float]:
    """Time without the feature over time with it, round by round, in order of size."""
    pairs = zip(times(content, name), times(content, ON), strict=True)
    return sorted(off / on for off, on in pairs)


def memory_ratio(content: dict[str, Any], name: str) -> float:
    off, on = (content["steps"][kind][-1]["mib"] for kind in (name, ON))
    return float(off / on)


def feature_table(columns: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> list[str]:
    """Feature by row: time and peak memory without it, as a share of everything on."""
    order = [(row, precision) for row in ROWS for precision in ("fp32", "bf16") if (row, precision) in columns]
    heads = [f"{row}, {precision}" for row, precision in order]
    lines = [f"| off | {' | '.join(heads)} | most |", "|---" + "|---:" * (len(order) + 1) + "|"]
    for name, feature in FEATURES.items():
        cells, most = [], 0.0
        for key in order:
            content = columns[key].get(name)
            if content is None:
                cells.append("-")
                continue
            spread, memory = ratios(content, name), memory_ratio(content, name)
            middle = statistics.median(spread)
            cells.append(f"{middle:.2f} ({spread[0]:.2f} - {spread[-1]:.2f}); {memory:.2f}")
            most = max(most, middle, memory)
        if most:
            lines.append(f"| {feature.name} | {' | '.join(cells)} | {100 * (most - 1):.0f} % |")
    seconds = [
        f"{statistics.median([t for content in columns[key].values() for t in times(content, ON)]):.2f} s"
        for key in order
    ]
    return [*lines, f"| *everything on* | {' | '.join(seconds)} | |"]


def machine_line(content: dict[str, Any]) -> str:
    here, job = content["machine"], content["jobs"][ON]
    version, count = content["steps"][ON][0]["torch"], len(timed(content, ON))
    return (
        f"{here['cpu']}, {job['threads']} of {here['cores']} cores, torch {version}, Python {here['python']}; medians "
        f"of {count} rounds after {content['warm-up']} of warm-up, with their least and greatest; peak memory's ratio."
    )


def cache_table(rows: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What the teacher cache saves of a training, counted from steps with all answers asked and all known."""
    from rkd.data.augment import expected_repeats

    lines = [
        "| teacher | asked, s | known, s | times as fast | versions of an image | known in 100 epochs | saved | known in 300 | saved |",  # noqa: E501
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for (row, _), content in rows.items():
        asked, known = (statistics.median(times(content, kind)) for kind in ("cache", ON))
        fast = ratios(content, "cache")
        for versions, words in ((1, "1, none"), (2, "2, flip"), (CROP_AND_FLIP, f"{CROP_AND_FLIP}, crop and flip")):
            cells = [row.removeprefix("cache-"), f"{asked:.2f}", f"{known:.2f}"]
            cells += [f"{statistics.median(fast):.2f} ({fast[0]:.2f} - {fast[-1]:.2f})", words]
            for epochs in (100, 300):
                share = expected_repeats(versions, epochs)
                cells += [f"{100 * share:.0f} %", f"{100 * share * (1 - known / asked):.0f} %"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def timm_table(done: dict[str, Any]) -> list[str]:
    """Times as fast as plain, of each copy and of the choice."""
    lines = [
        "| net | plain, ms an image | copy | times as fast as plain | chosen |",
        "|---|---:|---|---:|---|",
    ]
    for name, found in done.items():
        plain = found["seconds"]["plain"]
        for way, seconds in found["seconds"].items():
            if way != "plain":
                fast = sorted(a / b for a, b in zip(plain, seconds, strict=True))
                spread = f"{statistics.median(fast):.2f} ({fast[0]:.2f} - {fast[-1]:.2f})"
                last = found["chosen"] if way == "chosen" else ""
                lines.append(f"| {name} | {1e3 * statistics.median(plain):.1f} | {way} | {spread} | {last} |")
    return lines


if __name__ == "__main__":
    main()
