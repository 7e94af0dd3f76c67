"""Kills real training processes at random moments and compares where they end with an uninterrupted run.

    python benchmarks/reliability.py [--out runs/reliability] [--kills 60] [--seed 0] [--table docs/results/kills.md]
    python benchmarks/reliability.py --only eval autoattack sweep report compare teacher

For each method one run is left alone. Others are stopped again and again (kill -9; SIGTERM; Ctrl-C; Ctrl-C twice), and
go on with `rkd run --resume` until they are finished. Then the weights' hashes, the metrics of every epoch and the
evaluation are compared with the one left alone. The moments are drawn anew each time: one in six between the start of
an interpreter and a little after its usual end, the others between the moment when the run is begun or continued and a
little after its usual end, in processes forked from one that has imported torch and nothing more, which saves the
seconds of the import. A checkpoint is written every half second. Each kill is a line of OUT/kills.jsonl; the script
itself may be stopped and goes on where it was.

The other commands (COMMANDS) are killed likewise, at any moment from their start on, and typed again as they were until
they are done; then all that they leave is compared, and nothing else may lie there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder

RKD = [sys.executable, "-c", "from rkd.cli import main; main()"]
BOTH = ["--teacher", "robust={robust}", "--teacher", "clean={clean}"]
ROBUST = ["--teacher", "robust={robust}"]
METHODS: dict[str, list[str]] = {
    "rslad": ["--loss", "rslad", *ROBUST],
    "mtard-anl": ["--loss", "mtard-anl", *BOTH, "--with", "ema"],
    "adaad": ["--loss", "adaad", *ROBUST, "--with", "awp", "--set", "optimizer.name=adamw", "--lr", "0.002"],
    "aux-bn": ["--loss", "advprop", "--student", "small-cnn+aux-bn", "--augment", "crop"],
}
"""Between them: weights that adapt, auxiliary norms, an average of weights, other optimisers, augmentations."""
COMMON = [
    "--epochs", "6", "--set", "student.width=16", "--set", "validate.steps=2", "--set", "validate.limit=100",
    "--evaluate", "fgsm,pgd-sat", "--set", "evaluate.batch_size=64", "--set", "checkpoint.minutes=0.01",
    "--device", "cpu",
]  # fmt: skip
SMALL = ["--epochs", "2", "--set", "student.width=16", "--set", "validate.steps=2", "--set", "validate.limit=100",
         "--evaluate", "fgsm", "--set", "checkpoint.minutes=0.01", "--device", "cpu"]  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "eval": ["eval", "{robust}", "--attack", "pgd-sat", "--rounded", "--batch-size", "32", "--save", "{place}/saved"],
    "autoattack": ["eval", "{robust}", "--attack", "autoattack", "--limit", "100", "--batch-size", "25", "--checks",
                   "quick", "--save", "{place}/saved"],
    "sweep": ["sweep", "--grid", "loss=pgd-at,trades", "--set", "epochs=2", "--set", "student.width=16", "--set",
              "validate.steps=2", "--set", "evaluate=fgsm", "--set", "device=cpu", "--set", "checkpoint.minutes=0.01",
              "--out", "{place}", "--name", "sweep"],
    "report": ["report", "{place}/run"],
    "compare": ["compare", "{robust}", "{clean}", "--html", "{place}/compare.html"],
    "teacher": ["run", "--loss", "rslad", "--teacher", "robust=small-cnn", "--teacher-epochs", "2",
                *SMALL, "--out", "{place}", "--name", "run"],
}  # fmt: skip
"""Each writes into a place of its own, with a cache of its own."""
ALL = [*METHODS, *COMMANDS]
CLOCKS_AND_PLACES = ("seconds", "run", "source", "model", "net", "name")
KINDS = {"kill -9": 5, "SIGTERM": 2, "Ctrl-C": 2, "Ctrl-C twice": 1}
"""Ways to stop a process, with how often each is taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--kills", type=int, default=60, help="over all methods; runs that are begun are ended")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds")
    parser.add_argument("--table", type=Path, help="write the table into this file too")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import rkd.api  # noqa: F401 - torch and the registry, for the processes that are forked from this one

    study = Study(arguments.out)
    if not arguments.table_only:
        # A script that was started in the background may have inherited that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        study.prepare(arguments.only)
        each = -(-arguments.kills // len(arguments.only))
        for method in arguments.only:
            kill = study.kill if method in METHODS else study.kill_command
            kill(method, each, random.Random(f"{arguments.seed} {method} {len(study.lines)}"))
    table = study.table()
    print(table)
    if arguments.table:
        arguments.table.write_text(table)


class Study:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.log = out / "kills.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        self.lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def note(self, **line: Any) -> None:
        self.lines.append(line)
        with open(self.log, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def command(self, method: str, name: str) -> list[str]:
        path = self.out / name
        if (path / "config.toml").is_file():
            return ["run", "--resume", str(path)]
        teachers = {role: self.out / f"teacher-{role}" for role in ("robust", "clean")}
        options = [word.format(**teachers) for word in [*METHODS[method], *COMMON]]
        return ["run", *options, "--out", str(self.out), "--name", name]

    def prepare(self, methods: list[str]) -> None:
        """The teachers, and the runs that are left alone."""
        small = ["--epochs", "3", "--set", "student.width=16", "--evaluate", "fgsm", "--no-report", "--device", "cpu"]
        for role, loss in (("robust", "trades"), ("clean", "ce")):
            if not RunFolder(self.out / f"teacher-{role}").finished:
                shutil.rmtree(self.out / f"teacher-{role}", ignore_errors=True)
                words = ["run", "--loss", loss, *small, "--out", str(self.out), "--name", f"teacher-{role}"]
                subprocess.run([*RKD, *words], check=True, capture_output=True, env=environment())
        for method in (method for method in methods if method in METHODS):
            if not any(line["what"] == "whole" and line["method"] == method for line in self.lines):
                shutil.rmtree(self.out / method, ignore_errors=True)
                started = time.monotonic()
                subprocess.run(
                    [*RKD, *self.command(method, method)], check=True, capture_output=True, env=environment()
                )
                seconds = round(time.monotonic() - started, 2)
                folder = RunFolder(self.out / method)
                training = folder.read_json(folder.manifest)["seconds"]
                self.note(what="whole", method=method, seconds=seconds, training=training)

    def kill(self, method: str, wanted: int, chance: random.Random) -> None:
        whole = next(line for line in self.lines if line["what"] == "whole" and line["method"] == method)
        mine = [line for line in self.lines if line["method"] == method]
        number = sum(line["what"] == "end" for line in mine)
        done = sum(line["what"] == "kill" for line in mine)
        while done < wanted or (self.out / f"{method}-{number}").exists():
            name = f"{method}-{number}"
            fresh = chance.random() < 1 / 6
            usual = whole["seconds"] if fresh else whole["training"]
            after = chance.uniform(0.0, 1.1 * usual) if done < wanted else None  # killed often enough: it is let go
            kind = chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
            place = RunFolder(self.out / name).place()
            path = self.out / name
            code, said = stop(self.command(method, name), fresh, after, kind, until=partial(begun, path))
            folder = RunFolder(self.out / name)
            if code is None:  # it was killed
                done += 1
                self.note(
                    what="kill", method=method, run=name, kind=kind, fresh=fresh, after=round(after or 0, 3), code=said,
                    phase=phase(folder), before=place, place=folder.place(),
                )  # fmt: skip
            elif code == 0 and folder.finished:
                self.note(what="end", method=method, run=name, **self.compared(method, name))
                number += 1
            else:
                self.note(what="error", method=method, run=name, code=code, said=said)
                raise SystemExit(f"{name} ended with {code}:\n{said}")
            if code is None and folder.finished:  # killed after all was written
                self.note(what="end", method=method, run=name, **self.compared(method, name))
                number += 1

    def kill_command(self, name: str, wanted: int, chance: random.Random) -> None:
        """Kill a command of COMMANDS until it was killed `wanted` times, and let the last one end."""
        mine = [line for line in self.lines if line["method"] == name]
        done, number = (sum(line["what"] == what for line in mine) for what in ("kill", "end"))
        shutil.rmtree(self.out / name, ignore_errors=True)
        started = time.monotonic()
        place = self._place(name)
        code, said = stop(self._words(place), False, None, "", place / "cache")
        seconds = time.monotonic() - started
        if code:
            raise SystemExit(f"{name} ended with {code}:\n{said}")
        whole = left_by(place)
        while done < wanted or (self.out / f"{name}-{number}").exists():
            place = self._place(f"{name}-{number}")
            words = self._words(place)
            fresh = chance.random() < 1 / 6
            after = chance.uniform(0.0, (1.1 if not fresh else 1.5) * seconds) if done < wanted else None
            kind = chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
            code, said = stop(words, fresh, after, kind, place / "cache")
            if code is None:
                done += 1
                self.note(what="kill", method=name, run=place.name, kind=kind, fresh=fresh, after=round(after or 0, 3),
                          code=said)  # fmt: skip
                continue
            if code == 2 and "exists already" in said and (place / "saved" / "evaluation.json").is_file():
                code, said = stop(["report", str(place / "saved")], False, None, "", place / "cache")
            elif code == 2 and f"{place / 'run'} is finished" in said:  # killed when all was written
                code = 0
            found = left_by(place)
            if code or found != whole:
                odd = sorted(key for key in found.keys() | whole.keys() if found.get(key) != whole.get(key))
                self.note(what="error", method=name, run=place.name, code=code, said=said, differs=odd)
                raise SystemExit(f"{place} ended with {code}, and differs in {odd}:\n{said}")
            self.note(what="end", method=name, run=place.name, weights=True, metrics=True, evaluation=True)
            number += 1

    def _place(self, name: str) -> Path:
        place = self.out / name
        place.mkdir(exist_ok=True)
        if name.startswith("report") and not (place / "run").exists():
            shutil.copytree(self.out / "teacher-robust", place / "run")
        return place

    def _words(self, place: Path) -> list[str]:
        run = RunFolder(place / "run")
        if place.name.startswith("teacher") and run.config.is_file():
            return ["run", "--resume", str(run.path)]
        teachers = {role: self.out / f"teacher-{role}" for role in ("robust", "clean")}
        return [word.format(place=place, **teachers) for word in COMMANDS[place.name.partition("-")[0]]]

    def compared(self, method: str, name: str) -> dict[str, Any]:
        one, other = RunFolder(self.out / method), RunFolder(self.out / name)
        return {
            "weights": digest(one.weights) == digest(other.weights),
            "metrics": timeless(one.history()) == timeless(other.history()),
            "evaluation": timeless(one.read_json(one.evaluation)) == timeless(other.read_json(other.evaluation)),
            "resumed": other.read_json(other.manifest)["resumed"],
            "sha256": digest(other.weights),
        }

    def _of(self, method: str) -> list[list[dict[str, Any]]]:
        """Its kills, and its ends."""
        return [
            [line for line in self.lines if (line["method"], line["what"]) == (method, what)]
            for what in ("kill", "end")
        ]

    def table(self) -> str:
        from importlib.metadata import version

        names = [name for name in ALL if any(line["method"] == name for line in self.lines)]
        head = "| method | kills | before a checkpoint | in training | in the evaluation or after | runs | the same weights | the same metrics | the same evaluation |"  # noqa: E501
        rows = [head, "|---|" + "---:|" * 8]
        for method in (name for name in names if name in METHODS):
            kills, ends = self._of(method)
            phases = Counter(line["phase"] for line in kills)
            same = [sum(line[what] for line in ends) for what in ("weights", "metrics", "evaluation")]
            late = phases["evaluation"] + phases["after"]
            cells = [len(kills), phases["start"], phases["training"], late, len(ends), *same]
            rows.append(f"| {method} | " + " | ".join(map(str, cells)) + " |")
        if commands := [name for name in names if name in COMMANDS]:
            rows = [] if len(rows) == 2 else [*rows, ""]
            rows += ["| command | kills | let go to the end | the same files |", "|---|---:|---:|---:|"]
            for name in commands:
                kills, ends = self._of(name)
                rows.append(f"| {name} | {len(kills)} | {len(ends)} | {len(ends)} |")
        total = Counter(line["kind"] for line in self.lines if line["what"] == "kill")
        kinds = ", ".join(f"{count} by {kind}" for kind, count in total.most_common())
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread a process"
        versions = f"Python {platform.python_version()}, torch {version('torch')}"
        errors = sum(line["what"] == "error" for line in self.lines)
        words = f"Stopped: {kinds}. Runs that ended with an error: {errors}. {machine}; {versions}."
        return "\n".join([*rows, "", words, ""])


def stop(
    words: list[str], fresh: bool, after: float | None, kind: str, cache: Path | None = None,
    until: Callable[[int], bool] = lambda process: True,
) -> tuple[int | None, Any]:  # fmt: skip
    """Run `rkd WORDS` and stop it. (None, exit code) if it was stopped, else (exit code, what it said last).

    `after` seconds from its start (`fresh`: a whole interpreter), or from when `until` its number says so.
    """
    environs = environment() | ({"RKD_CACHE": str(cache)} if cache else {})
    with tempfile.TemporaryFile("w+") as out:
        # Kept until the end: of a process whose object is gone, subprocess takes the exit code for itself.
        process = subprocess.Popen([*RKD, *words], stdout=out, stderr=out, env=environs) if fresh else None
        pid = process.pid if process else forked(words, out, environs)
        code = None
        if after is not None and not fresh:
            code = wait(pid, 300, lambda: until(pid))
        if code is None:
            code = wait(pid, after)
        if code is not None:
            out.seek(0)
            return code, out.read()[-2000:]
        os.kill(pid, {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}.get(kind, signal.SIGINT))
        if kind == "Ctrl-C twice":
            code = wait(pid, 0.05)
            if code is None:
                os.kill(pid, signal.SIGINT)
        if code is None:
            code = wait(pid, 120)
        out.seek(0)
        # A process that was at its very end may not have noticed: that is no kill.
        return (code, out.read()[-2000:]) if code == 0 else (None, code)


def forked(words: list[str], out: IO[str], environs: Mapping[str, str]) -> int:
    """Start `rkd WORDS` in a process that need not import torch any more."""
    from rkd.cli import cli

    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ.update(environs)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.argv = ["rkd", *words]
        cli.main(words, prog_name="rkd")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float | None, until: Callable[[], bool] = lambda: False) -> int | None:
    """The exit code of a child, negative for a signal; None if it runs on after `seconds`, or when `until` says so."""
    end = time.monotonic() + (seconds if seconds is not None else 3600)
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end or until():
            return None
        time.sleep(0.005)


def begun(path: Path, pid: int) -> bool:
    """Whether this very process has begun or continued the run."""
    folder = RunFolder(path)
    try:
        return folder.read_json(folder.manifest)["process"].split()[0] == str(pid)
    except (RkdError, KeyError):
        return False


def phase(folder: RunFolder) -> str:
    """Where a run was when it was stopped, as far as its folder shows."""
    if folder.finished:
        return "after"
    place = folder.place()
    if place is None:
        return "start"
    return "evaluation" if place[0] == 6 else "training"


def left_by(place: Path) -> dict[str, Any]:
    """All that a command has left, by the names of its files, without what clocks and places say. Nothing of killed
    processes is left out: what they were writing has to be gone."""
    found: dict[str, Any] = {}
    for file in sorted(place.rglob("*")):
        name = str(file.relative_to(place))
        if file.is_dir() or "cache/answers" in name or name.endswith((".log", ".lock")):
            continue
        if file.name == "manifest.json":
            found[name] = json.loads(file.read_text())["status"]
        elif file.suffix == ".json":
            found[name] = timeless(json.loads(file.read_text()))
        elif file.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".safetensors" and "checkpoints" not in name:
            found[name] = digest(file)
        else:
            found[name] = None
    return found


def timeless(value: Any) -> Any:
    """Without what clocks and places say."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in CLOCKS_AND_PLACES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
