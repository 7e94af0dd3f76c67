"""The MNIST study of docs/results/mnist.md: every seed method into one small student, beside its baselines.

    python benchmarks/mnist.py --data-dir DATA [--out runs/mnist] [--seeds 0 1] [--jobs 2] [--autoattack 300]

Trains a robust and a clean teacher once, then each method with each seed, by the installed `rkd` command; finished
runs are skipped, so a stopped study goes on where it was. Then AutoAttack attacks each net on fewer images. Writes
the table to --table (a Markdown file), and draws it beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rkd.profiling.machine import cpu_name

RAMP = ["--set", "attack.eps=ramp(0, 0.3, until=0.5)", "--set", "attack.steps=7"]
BOTH = ["--teacher", "robust={robust}", "--teacher", "clean={clean}"]
ROBUST = ["--teacher", "robust={robust}"]
METHODS: dict[str, list[str]] = {
    "ce": ["--loss", "ce"],
    "pgd-at": ["--loss", "pgd-at", *RAMP],
    "trades": ["--loss", "trades", *RAMP],
    "kd (clean teacher)": ["--loss", "kd", "--teacher", "clean={clean}"],
    "kd (robust teacher)": ["--loss", "kd", *ROBUST],
    "defensive": ["--loss", "defensive"],
    "ard": ["--loss", "ard", *ROBUST, *RAMP],
    "rslad": ["--loss", "rslad", *ROBUST, *RAMP],
    "adaad": ["--loss", "adaad", *ROBUST, *RAMP],
    "mtard": ["--loss", "mtard", *BOTH, *RAMP],
    "mtard-anl": ["--loss", "mtard-anl", *BOTH, *RAMP],
    "mtard-anl + aux-bn": ["--loss", "mtard-anl", "--student", "small-cnn+aux-bn", *BOTH, *RAMP],
}
ATTACKS = {"fgsm": "FGSM", "pgd-sat": "PGD-SAT", "cw": "CW", "pgd": "PGD-40"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/mnist.md"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--autoattack", type=int, default=300, help="images for AutoAttack; 0: without")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="these methods alone")
    parser.add_argument("--table-only", action="store_true", help="train nothing: the table of the runs there are")
    arguments = parser.parse_args()

    common = ["--data-dir", arguments.data_dir, "--out", str(arguments.out)]
    teachers = {"robust": arguments.out / "teacher-robust", "clean": arguments.out / "teacher-clean"}
    if arguments.table_only:
        write(arguments, teachers)
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            pool.submit(rkd, ["mnist-teacher", *common], teachers["robust"]),
            pool.submit(
                rkd,
                ["mnist-small", *common, "--loss", "ce", "--set", "student.width=16", "--epochs", "5"],
                teachers["clean"],
            ),
        ]
        for job in jobs:
            job.result()
        jobs = []
        for seed in arguments.seeds:
            for method in arguments.only or METHODS:
                options = [word.format(**teachers) for word in METHODS[method]]
                command = ["mnist-small", *common, *options, "--seed", str(seed), "--epochs", str(arguments.epochs)]
                jobs.append(pool.submit(rkd, command, arguments.out / folder(method, seed)))
        for job in jobs:
            job.result()
        if arguments.autoattack:
            students = [arguments.out / folder(m, s) for s in arguments.seeds for m in arguments.only or METHODS]
            for run in [*teachers.values(), *students]:
                jobs.append(pool.submit(autoattack, run, arguments))
        for job in jobs:
            job.result()
    write(arguments, teachers)


def rkd(options: list[str], run: Path) -> None:
    """One `rkd run` in a process of its own, unless its folder holds a finished run already."""
    if (run / "evaluation.json").is_file():
        return
    command = [str(Path(sys.executable).with_name("rkd")), "run", *options, "--name", run.name, "-q"]
    if (run / "config.toml").is_file():
        command = [command[0], "run", "--resume", str(run), "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{run.name}: {'done' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")


def autoattack(run: Path, arguments: argparse.Namespace) -> None:
    """`rkd eval` of a finished run with AutoAttack; its answer is kept beside the runs."""
    path = found_by_autoattack(run, arguments)
    if path.is_file():
        return
    command = [str(Path(sys.executable).with_name("rkd")), "eval", str(run), "--attack", "autoattack", "--json"]
    command += ["--limit", str(arguments.autoattack), "--data-dir", arguments.data_dir, "--checks", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{run.name}: {'AutoAttack done' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(done.stdout)


def found_by_autoattack(run: Path, arguments: argparse.Namespace) -> Path:
    return arguments.out / f"autoattack-{arguments.autoattack}" / f"{run.name}.json"


def folder(method: str, seed: int) -> str:
    name = method.replace(" + ", "+").replace(" (", "-").replace(" ", "-").replace(")", "")
    return f"{name}-s{seed}"


def write(arguments: argparse.Namespace, teachers: dict[str, Path]) -> None:
    """The tables, from the runs' own files."""
    columns = ["clean", *ATTACKS.values(), "worst case", "W-Robust (PGD-40)"]
    columns += [f"AutoAttack, {arguments.autoattack} images"] if arguments.autoattack else []
    lines = ["| | " + " | ".join([*columns, "minutes"]) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    for role, path in teachers.items():
        lines.append(row(f"{role} teacher", [path], arguments))
    for method in arguments.only or METHODS:
        lines.append(row(method, [arguments.out / folder(method, seed) for seed in arguments.seeds], arguments))
    manifest = json.loads((teachers["robust"] / "manifest.json").read_text())
    versions = manifest["versions"]
    about = (
        f"Machine: {manifest['hardware']['system']}, {cpu_name()}, {arguments.jobs} runs at a time with one thread "
        f"each. Python {versions['python']}, torch {versions['torch']}, rkd {versions['rkd-toolkit']}. "
        f"Seeds of the students: {', '.join(map(str, arguments.seeds))}; the teachers are the same for all (seed 0). "
        f"{arguments.epochs} epochs."
    )
    text = arguments.table.read_text() if arguments.table.is_file() else "# MNIST\n\n<!-- table -->\n<!-- end -->\n"
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(["<!-- table -->", *lines, "", about, "<!-- end -->"])
    arguments.table.write_text(before + body + after)
    print("\n".join([*lines, "", about]))
    if arguments.autoattack:
        draw(arguments.table)


def draw(page: Path) -> None:
    """The page's table as a picture beside it: what each net keeps, clean, under four attacks and under AutoAttack."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rkd"  # the same table gives the same file
    import matplotlib.pyplot as plt

    body = page.read_text().partition("<!-- table -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
    columns, nets = rows[0], rows[2:]
    shown = {
        "clean": (columns.index("clean"), "white"),
        "worst case of four attacks": (columns.index("worst case"), "#9ecae1"),
        columns[-2]: (len(columns) - 2, "#08519c"),
    }
    nets.sort(key=lambda net: float(net[-2].split(" ± ")[0]))
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for label, (column, colour) in shown.items():
        cells = [[float(part) for part in net[column].split(" ± ")] for net in nets]
        means, halves = [cell[0] for cell in cells], [cell[1] if len(cell) > 1 else 0 for cell in cells]
        axes.errorbar(
            means, range(len(nets)), xerr=halves, fmt="o", markersize=7, color="#08519c", markerfacecolor=colour,
            markeredgewidth=1, elinewidth=1, capsize=2, label=label, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(nets)), [net[0] for net in nets])
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %, mean of two seeds and both of them (bars); teachers: one")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    figure.savefig(page.with_suffix(".svg"), metadata={"Date": None})


def row(name: str, runs: list[Path], arguments: argparse.Namespace) -> str:
    finished = [run for run in runs if (run / "evaluation.json").is_file()]
    if len(finished) < len(runs):
        name += f" ({len(finished)} of {len(runs)} seeds)"
    runs = finished
    if not runs:
        return f"| {name} |"
    results = [json.loads((run / "evaluation.json").read_text())["student"] for run in runs]
    minutes = [json.loads((run / "manifest.json").read_text())["seconds"] / 60 for run in runs]
    columns = [[r["clean"] for r in results]]
    columns += [[r["attacks"][attack] for r in results] for attack in ATTACKS]
    columns += [[r["worst_case"] for r in results], [r["w_robust"]["pgd"] for r in results]]
    cells = [spread([100 * value for value in column]) for column in columns]
    if arguments.autoattack:
        answers = [path for run in runs if (path := found_by_autoattack(run, arguments)).is_file()]
        values = [100 * json.loads(path.read_text())["attacks"]["autoattack"] for path in answers]
        cells.append(spread(values) if len(values) == len(runs) else "")
    return f"| {name} | " + " | ".join([*cells, f"{statistics.mean(minutes):.1f}"]) + " |"


def spread(values: list[float]) -> str:
    """The mean and, of several seeds, half the distance between the extremes."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.2f}"


if __name__ == "__main__":
    main()
