"""Every reader of rkd against hostile and broken input: docs/reliability.md, "Hostile input".

    python benchmarks/fuzz.py [--inputs 1000] [--seed 0] [--only READER] [--out fuzz.jsonl] [--table fuzz.md]

Each input is made of (seed, reader, number) by `fuzz_inputs`, in a folder of its own; five hundred share a process.
An input passes if it loads or raises RkdError, within 20 seconds and 4 GiB of address space on top of what the process
had; if nothing beside its folder was touched; if no command in it was run; and if no network was asked for. Results of
finished processes are kept in --out and not done again. Exits with 1 if an input failed, and prints its number.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

CHUNK = 500
SHARE = {
    "report": 0.03, "command line": 0.06, "saved evaluation": 0.1, "commands on it": 0.2, "sweep": 0.5,
    "sweep folder": 0.2,
}  # fmt: skip
"""Readers that take a second or two an input get a part of the inputs."""
SECONDS = 20
MEMORY = 4 << 30


class Hangs(BaseException):
    """An input that took longer than SECONDS."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a reader; repeatable")
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--chunk", nargs=3, metavar=("READER", "FIRST", "COUNT"), help="what a child process does")
    options = parser.parse_args()
    if options.chunk:
        reader, first, count = options.chunk
        print(json.dumps(chunk(reader, options.seed, int(first), int(count))))
        return
    from fuzz_inputs import READERS

    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    finished = {(one["reader"], one["seed"], one["first"]) for one in done}
    for first in range(0, options.inputs, CHUNK):
        for reader in options.only or READERS:
            wanted = int(options.inputs * SHARE.get(reader, 1))
            if (reader, options.seed, first) in finished or first >= wanted:
                continue
            one = child(reader, options.seed, first, min(CHUNK, wanted - first))
            done.append(one)
            with open(options.out, "a") as file:
                file.write(json.dumps(one) + "\n")
            for failure in one["failures"]:
                print(f"{reader} {failure['number']}: {failure['why']}", file=sys.stderr, flush=True)
    mine = [one for one in done if one["seed"] == options.seed and one["first"] < options.inputs]
    text = table(mine)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")
    sys.exit(1 if any(one["failures"] for one in mine) else 0)


def child(reader: str, seed: int, first: int, count: int) -> dict[str, Any]:
    """Inputs in a process of their own. One that dies counts as one failure."""
    command = [sys.executable, __file__, "--seed", str(seed), "--chunk", reader, str(first), str(count)]
    said = ""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=count * SECONDS, check=False)
        said = ended.stderr[-2000:]
        return json.loads(ended.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        why = f"the process died or hung: {type(error).__name__} {said}"
        return {"reader": reader, "seed": seed, "first": first, "inputs": count, "loaded": 0, "refused": 0,
                "seconds": 0.0, "mib": 0.0, "failures": [{"number": first, "why": why}]}  # fmt: skip


def chunk(reader: str, seed: int, first: int, count: int) -> dict[str, Any]:
    """Inputs `first` to `first + count - 1` of a reader: how many loaded, were refused, failed, and at what cost."""
    from fuzz_inputs import READERS, catalog

    warnings.simplefilter("ignore")
    catalog()
    found: dict[str, Any] = {"reader": reader, "seed": seed, "first": first, "inputs": count, "loaded": 0, "refused": 0,
                             "seconds": 0.0, "mib": 0.0, "failures": []}  # fmt: skip
    sandbox()
    with contextlib.suppress(BaseException), workplace() as folder:
        READERS[reader](random.Random(-1), folder)  # what is imported or read once belongs to no input
    for number in range(first, first + count):
        outcome, why, seconds, mib = one(READERS[reader], random.Random(f"{seed} {reader} {number}"))
        if outcome == "failed":
            found["failures"].append({"number": number, "why": why})
        else:
            found[outcome] += 1
        found["seconds"], found["mib"] = max(found["seconds"], seconds), max(found["mib"], mib)
    return found


def one(reader: Any, rng: random.Random) -> tuple[str, str, float, float]:
    """`loaded`, `refused` or `failed` with the reason; seconds; MiB of memory at most on top of what there was."""
    from rkd.core.errors import RkdError

    outcome, why = "loaded", ""
    with workplace() as folder:
        before = seen(folder.parent)
        start, memory = time.perf_counter(), settled()
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader(rng, folder)
        except RkdError as error:
            outcome = "refused" if str(error).strip() else "failed"
            why = "" if outcome == "refused" else "an error without a message"
        except Hangs:
            outcome, why = "failed", f"longer than {SECONDS} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = str(error).splitlines()
            outcome = "failed"
            why = f"{type(error).__name__}: {said[0][:300] if said else ''} ({last.filename}:{last.lineno})"
        finally:
            signal.alarm(0)
        seconds, mib = time.perf_counter() - start, (peak() - memory) / 2**20
        if seen(folder.parent) != before:
            outcome, why = "failed", "something beside the input's folder was touched"
    return outcome, why, seconds, max(mib, 0.0)


@contextlib.contextmanager
def workplace() -> Any:
    """A folder for the input, in one with a file that nobody may touch or show."""
    root = Path(tempfile.mkdtemp(prefix="rkd-fuzz-"))
    here = Path.cwd()
    try:
        (root / "outside").mkdir()
        (root / "outside" / "secret.toml").write_text('secret = "not for other eyes"\n')
        (root / "input").mkdir()
        os.chdir(root / "input")
        os.environ["RKD_CACHE"] = str(root / "input" / "cache")
        yield root / "input"
    finally:
        os.chdir(here)
        shutil.rmtree(root, ignore_errors=True)


def seen(root: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files beside the input's folder."""
    files = [path for path in root.rglob("*") if root / "input" not in (path, *path.parents)]
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in files)


def sandbox() -> None:
    """No network, a limit on memory, an alarm that raises."""

    def refused(*arguments: Any) -> None:
        raise AssertionError("the network was asked for")

    def hangs(*arguments: Any) -> None:
        raise Hangs

    socket.socket.connect = refused  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = refused  # type: ignore[assignment]
    signal.signal(signal.SIGALRM, hangs)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def settled() -> int:
    """Bytes in memory now; the peak is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) << 10


def table(found: list[dict[str, Any]]) -> str:
    """The table of docs/reliability.md."""
    import hypothesis
    import numpy
    import PIL
    import safetensors
    import torch
    import torchvision

    rows = []
    for reader in dict.fromkeys(one["reader"] for one in found):
        mine = [one for one in found if one["reader"] == reader]
        counts = [sum(one[key] for one in mine) for key in ("inputs", "loaded", "refused")]
        failed = sum(len(one["failures"]) for one in mine)
        cost = f"{max(one['seconds'] for one in mine):.2f} | {max(one['mib'] for one in mine):.0f}"
        rows.append(f"| {reader} | " + " | ".join(f"{count:,}" for count in counts) + f" | {failed} | {cost} |")
    totals = [sum(one[key] for one in found) for key in ("inputs", "loaded", "refused")]
    failed = sum(len(one["failures"]) for one in found)
    rows.append("| all | " + " | ".join(f"{count:,}" for count in totals) + f" | {failed} | | |")
    modules = (torch, torchvision, numpy, safetensors, PIL, hypothesis)
    versions = ", ".join(f"{module.__name__} {module.__version__.split('+')[0]}" for module in modules)
    return "\n".join([
        "| reader | inputs | loaded | refused | failed | worst time, s | worst memory, MiB |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
