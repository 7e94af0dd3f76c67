"""What continuous integration cannot show, on one GPU in at most eight minutes: docs/gpu.md.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--parts correctness steps ...] [--out runs/gpu]

Needs torch, numpy and what a light install of rkd has; pyautoattack and scikit-learn for the parts that say so. Parts:

    correctness  two steps of every loss and every attack beside the CPU's, in float32 and in bfloat16
    steps        whole RSLAD and MTARD steps with a WRN-34-10 for a teacher: a plain script, rkd in each precision and
                 layout, compiled, with CUDA graphs
    waiting      whether the host waits for the device within a step, and how busy the device is
    epoch        seconds of an epoch of CIFAR-10 (50,000 images of random bytes)
    autoattack   256 images beside pyautoattack
    first-run    `rkd run`

Each part is a process of its own with a share of the time; each of its cases may fail, which is noted, or finds no time
left, which is noted too. Prints one table last; `OUT/gpu.json` has everything, `OUT/gpu.md` the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_checks import correctness, waiting
from gpu_place import SMALL, Cases, Place, Size
from gpu_timings import autoattack, epoch, first_run, steps
from in_turn import machine

import rkd

PARTS: dict[str, Callable[[Place], Cases]] = {
    "correctness": correctness, "steps": steps, "waiting": waiting, "epoch": epoch, "autoattack": autoattack,
    "first-run": first_run,
}  # fmt: skip

SHARES = {"correctness": 100, "steps": 170, "waiting": 30, "epoch": 40, "autoattack": 60, "first-run": 80}
"""Seconds of each part if there are eight minutes."""
SOFT = 0.85
"""The share of a part's time after which no case begins. At its end the part is stopped."""


def do(name: str, place: Place, until: float) -> None:
    """The cases of a part, one line of JSON each into `OUT/PART.jsonl`; none begins after `until` (of `time.time`)."""
    with (place.out / f"{name}.jsonl").open("w") as lines:

        def write(line: Mapping[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        try:
            cases = PARTS[name](place)
        except Exception as error:  # whatever: the other parts are to go on
            write({"case": "all of it", **failure(error)})
            return
        write({"cases": list(cases), "machine": about(place.device)})
        for case, work in cases.items():
            if time.time() > until:
                write({"case": case, "skipped": "no time left"})
                continue
            begun = time.time()
            try:
                found = {"found": dict(work())}
            except Exception as error:  # likewise
                found = failure(error)
            write({"case": case, **found, "took": round(time.time() - begun, 2)})
            print(f"{name}: {case}: {said(found)}", flush=True)


def failure(error: Exception) -> dict[str, str]:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return {"error": f"{type(error).__name__}: {text}", "traceback": traceback.format_exc()}


def about(device: torch.device) -> dict[str, Any]:
    here = machine() | {"platform": platform.platform(), "torch": torch.__version__, "rkd": rkd.__version__,
                        "device": str(device)}  # fmt: skip
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        here |= {
            "gpu": card.name, "memory GiB": card.total_memory / 2**30, "multiprocessors": card.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return here


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a part wrote, with the cases it did not come to; and the machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [line for line in lines if "case" in line]
    head = next((line for line in lines if "cases" in line), {"cases": [], "machine": {}})
    there = {row["case"] for row in rows}
    rows += [{"case": case, "skipped": "the part was stopped"} for case in head["cases"] if case not in there]
    return rows or [{"case": "all of it", "skipped": "the part was stopped before its first case"}], head["machine"]


def said(row: Mapping[str, Any]) -> str:
    """A case's outcome in words."""
    if "found" not in row:
        return f"failed: {row['error']}" if "error" in row else f"skipped: {row['skipped']}"
    found = dict(row["found"])
    fine = {True: "", False: "**no**, "}[found.pop("fine", True)]
    return fine + ", ".join(f"{name} {shown(value)}" for name, value in found.items() if value is not None)


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def table_of(parts: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """One line a case. Losses and attacks that are as they should be share one."""
    lines = ["| part | case | found |", "|---|---|---|"]
    for part, rows in parts.items():
        many = {name: [row for row in rows if row["case"].startswith(name)] for name in ("loss", "attack ")}
        for name, of in many.items():
            good = [row for row in of if row.get("found", {}).get("fine")]
            if of:
                worst = [row["found"][key] for row in good for key in ("off", "equal") if key in row["found"]]
                spread = f", {min(worst):.3g} to {max(worst):.3g}" if worst else ""
                lines.append(f"| {part} | {name.strip()} | {len(good)} of {len(of)} as on the CPU{spread} |"
                             if part == "correctness" else
                             f"| {part} | {name.strip()} | {len(good)} of {len(of)} without a wait |")  # fmt: skip
            rows = [row for row in rows if row not in good]
        lines += [f"| {part} | {row['case']} | {said(row)} |" for row in rows]
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether everything runs, on any machine")
    parser.add_argument("--here", action="store_true", help="all parts in this process; a part is not stopped then")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.until:  # a part's process
        do(arguments.parts[0], place_of(arguments), arguments.until)
        return 0
    end = time.time() + 60 * arguments.minutes
    parts: dict[str, list[dict[str, Any]]] = {}
    here: dict[str, Any] = {}
    for number, part in enumerate(arguments.parts):
        left = end - time.time()
        seconds = left * SHARES[part] / sum(SHARES[name] for name in arguments.parts[number:])
        file = arguments.out / f"{part}.jsonl"
        file.unlink(missing_ok=True)
        if arguments.here:
            do(part, place_of(arguments), time.time() + SOFT * seconds)
        elif left > 0:
            alone(part, arguments, seconds)
        parts[part], machine_then = read(file)
        here = here or machine_then
        (arguments.out / "gpu.json").write_text(json.dumps({"machine": here, "parts": parts}, indent=1))
    lines = [*table_of(parts), "", ", ".join(f"{name} {shown(value)}" for name, value in here.items())]
    (arguments.out / "gpu.md").write_text("\n".join([*lines, ""]))
    print("\n".join(["", *lines]))
    return 0


def place_of(arguments: argparse.Namespace) -> Place:
    return Place(torch.device(arguments.device), arguments.out, SMALL if arguments.small else Size())


def alone(part: str, arguments: argparse.Namespace, seconds: float) -> None:
    """A part in a process of its own, which is stopped when its time is over."""
    command = [sys.executable, __file__, "--parts", part, "--device", arguments.device, "--out", str(arguments.out),
               "--until", str(time.time() + SOFT * seconds), *(["--small"] if arguments.small else [])]  # fmt: skip
    # A cache of its own, so that nothing of an earlier run comes back.
    environment = os.environ | {"RKD_CACHE": str((arguments.out / f"cache-{os.getpid()}").absolute())}
    try:
        done = subprocess.run(command, env=environment, timeout=seconds, check=False)
        if done.returncode:
            print(f"{part}: its process ended with {done.returncode}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
