"""The tables of docs/results/methods.md, from the runs of a sweep.

    rkd sweep benchmarks/methods-digits.toml --name methods-digits
    python benchmarks/methods.py runs/methods-digits --part digits

Each loss is a row: mean and standard deviation over its seeds, sorted by W-Robust in the worst case. Runs that are not
finished are left out, and the number of seeds is told where it is not that of the others. Each run's numbers are kept
in docs/results/methods-PART.jsonl, so that a study may go on elsewhere: what is there stays in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

ATTACKS = {"pgd-sat": "PGD-SAT", "cw": "CW", "autoattack": "AutoAttack", "worst_case": "worst case"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--part", required=True, help="the table lies between <!-- PART --> and <!-- end PART -->")
    parser.add_argument("--table", type=Path, default=Path("docs/results/methods.md"))
    arguments = parser.parse_args()
    kept = arguments.table.with_name(f"methods-{arguments.part}.jsonl")
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    found = [read(file.parent) for file in sorted(arguments.sweep.glob("*/evaluation.json"))]
    rows = {(run["loss"], run["seed"]): run for run in [*known, *found] if run is not None}
    if not rows:
        raise SystemExit(f"{arguments.sweep} has no finished run, and {kept} none of earlier ones")
    kept.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))
    runs = defaultdict(list)
    for run in rows.values():
        runs[run["loss"]].append(run)
    body = "\n".join(table(runs))
    print(body)
    text = arguments.table.read_text()
    begin, end = f"<!-- {arguments.part} -->", f"<!-- end {arguments.part} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    arguments.table.write_text(f"{before}{begin}\n{body}\n{end}{after}")


def read(folder: Path) -> dict[str, Any] | None:
    """What a row needs of a run; None of one that is not finished."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["status"] != "finished":
        return None
    student = json.loads((folder / "evaluation.json").read_text())["student"]
    accuracy = {**student["attacks"], "worst_case": student["worst_case"], "clean": student["clean"]}
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    config = tomllib.loads((folder / "config.toml").read_text())
    numbers = {
        **accuracy,
        "samples": student["samples"],
        "class": student["worst_class"]["worst_case"],
        "w_robust": (accuracy["clean"] + accuracy["worst_case"]) / 2,
        "minutes": last["seconds"] / 60,
    }
    rounded = {key: round(value, 6) for key, value in numbers.items()}
    return {"loss": config["loss"]["name"], "seed": config["seed"], **rounded, "versions": versions(manifest)}


def versions(manifest: dict[str, Any]) -> str:
    found = manifest["versions"]
    return f"Python {found['python']}, torch {found['torch']}, rkd {found['rkd-toolkit']}"


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    columns = {"clean": "clean", **ATTACKS, "w_robust": "W-Robust", "class": "worst class", "minutes": "minutes"}
    seeds = max(len(rows) for rows in runs.values())
    lines = ["| loss | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for loss, rows in sorted(runs.items(), key=lambda item: -mean(item[1], "w_robust")):
        name = loss if len(rows) == seeds else f"{loss} ({len(rows)} of {seeds} seeds)"
        cells = [spread(rows, key) for key in columns if key != "minutes"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean(rows, 'minutes'):.1f} |")
    one = next(iter(runs.values()))[0]
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    about = f"Accuracy in % on {one['samples']:,} test images, {over}"
    return [*lines, "", f"{about}; minutes of training. {one['versions']}."]


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * row[key] for row in rows]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
