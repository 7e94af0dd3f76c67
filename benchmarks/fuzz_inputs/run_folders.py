"""Run folders, and what stands in them: checkpoints, the journal of an evaluation."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import tomli_w
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save

from rkd.core.errors import RkdError
from rkd.core.types import ThreatModel
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.journal import Journal
from rkd.evaluation.samples import EvalSettings
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import load_state, pack, save_state
from rkd.testing import TinyNet
from rkd.workflow.nets import load_run

from .strange import catalog, mutated, scribbled, special, strange, weights

CARD: dict[str, Any] = {
    "format": 1,
    "model": "small-cnn",
    "options": {"width": 4},
    "shape": [1, 8, 8],
    "classes": [str(n) for n in range(10)],
    "mean": [0.3],
    "std": [0.37],
    "data": "digits",
    "threat": {"norm": "Linf", "eps": 0.15, "step_size": 0.04},
    "loss": "ce",
    "results": {"clean": 0.5},
    "parameters": 100,
    "chosen_epoch": 1,
}
NET: dict[str, Any] = {
    "role": "robust",
    "model": "small-cnn",
    "samples": 100,
    "clean": 0.9,
    "worst_case": 0.4,
    "attacks": {"fgsm": 0.5},
    "w_robust": {"fgsm": 0.7},
    "nrr": {"fgsm": 0.6},
    "interval_95": {"clean": [0.8, 0.95]},
    "seconds": {"fgsm": 1.0},
    "warnings": [{"finding": "x", "meaning": "y", "advice": "z", "check": "c"}],
    "per_class": {"clean": [0.5] * 10},
    "calibration": {"clean": {"ece": 0.1, "confidence": 0.8, "bins": [[10, 0.5, 0.6]]}},
    "searches": {
        "fgsm": {"implementation": "a.B", "options": {"steps": 3}, "norm": "Linf", "eps": 0.1, "notes": ["n"]}
    },
    "curve": {
        "attack": "fgsm",
        "norm": "Linf",
        "eps": [0.1, 0.2],
        "accuracy": [0.5, 0.2],
        "interval_95": [[0, 1], [0, 1]],
    },
    "corruptions": {"source": "own", "accuracy": {"fog": [0.5] * 5}, "mean": 0.5},
    "rounded": {"fgsm": 0.5},
    "examples": [
        {
            "index": 1,
            "label": 2,
            "attack": "fgsm",
            "clean": {"prediction": 2, "confidence": 0.9},
            "adversarial": {"prediction": 3, "confidence": 0.8},
        }
    ],
}
MANIFEST: dict[str, Any] = {
    "started": "2026-01-01T00:00:00",
    "status": "finished",
    "seconds": 3.0,
    "versions": {"torch": "2"},
    "git": None,
    "plugins": {"file/x": "x.py"},
    "hardware": {"device": "cpu"},
    "command": ["rkd", "run"],
    "cost": {"student": {"forwards": 1}},
}
EPOCH: dict[str, Any] = {"epoch": 0, "lr": 0.1, "loss": 2.0, "loss.clean": 2.0, "weight.clean": 1.0, "val.clean": 0.3}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "epochs": 3,
    "loss": {"name": "ce"},
    "student": {"model": "small-cnn", "width": 4},
    "data": {"name": "digits"},
    "evaluate": {"attacks": ["fgsm"], "limit": 20},
    "teachers": [{"reference": "wrn10-2"}],
}


@cache
def _student() -> bytes:
    torch.manual_seed(0)
    return save(catalog().create("model", "small-cnn", {"width": 4})((1, 8, 8), 10).state_dict())


@cache
def gallery() -> bytes:
    return save({"clean": torch.rand(1, 1, 8, 8), "adversarial": torch.rand(1, 1, 8, 8)})


def put(rng: random.Random, path: Path, files: dict[str, bytes], links: bool) -> None:
    """Write `files` into the folder `path`: most of them, at times one that is garbage, with `links` some that lead
    elsewhere."""
    if rng.random() < 0.3:
        name = rng.choice(list(files))
        files[name] = rng.choice(
            (
                scribbled(rng, files[name]),
                b"",
                b"[" * 50_000,
                b"\xff\xfe",
                b'{"a":' * 5000,
                b"1e400",
                b"9" * 5000,
                b"null",
                b"NaN",
            )
        )
    for name, content in files.items():
        if rng.random() < 0.95:
            (path / name).write_bytes(content)
    if rng.random() < 0.1:
        special(rng, path / rng.choice(list(files)))
    if links:
        outside = path.parent / "outside"
        for name in rng.sample(
            [
                *files,
                "report.html",
                "plots",
                "checkpoints",
                ".report.html.1.tmp",
                f".report.html.{os.getpid()}.tmp",
                f".metrics.jsonl.{os.getpid()}.tmp",
            ],
            4,
        ):
            place = path / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)
            target = rng.choice(
                (outside, outside / "secret.toml", outside / "new", "/dev/zero", place, "/proc/self/mem")
            )
            place.symlink_to(target)


def make_run(rng: random.Random, path: Path) -> RunFolder:
    """A run's folder with one to three of its files spoilt: other values, other bytes, or links."""
    lines = [EPOCH | {"epoch": number} for number in range(3)]
    spoilt = rng.sample(
        ("config", "card", "manifest", "evaluation", "metrics", "weights", "examples", "links"), rng.randint(1, 3)
    )

    def tree(name: str, content: Any) -> Any:
        return mutated(rng, content, 5) if name in spoilt else content

    (path / "checkpoints").mkdir(parents=True)
    files: dict[str, bytes] = {
        "config.toml": tomli_w.dumps(tree("config", CONFIG)).encode(errors="replace"),
        "student.json": json.dumps(tree("card", CARD)).encode(),
        "manifest.json": json.dumps(tree("manifest", MANIFEST)).encode(),
        "evaluation.json": json.dumps(tree("evaluation", {"student": NET, "teachers": [NET]})).encode(),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in tree("metrics", lines)).encode(),
        "student.safetensors": _student(),
        "examples.safetensors": gallery(),
    }
    for name in ("student.safetensors", "examples.safetensors"):
        if ("weights" if name.startswith("student") else "examples") in spoilt:
            files[name] = scribbled(rng, files[name])
    put(rng, path, files, links="links" in spoilt)
    return RunFolder(path)


def run_folder(rng: random.Random, folder: Path) -> None:
    """The student of a run's folder, as `rkd eval` loads it."""
    load_run(make_run(rng, folder / "run").path, catalog())


class Page(HTMLParser):
    """Raises for anything in a page that could run."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        bad = [
            name for name, value in attrs if name.startswith("on") or (value or "").strip().startswith("javascript:")
        ]
        if tag in ("script", "iframe", "object", "embed", "base", "form") or bad:
            raise AssertionError(f"the page holds <{tag} {attrs}>")
        for name, value in attrs:
            if (
                name in ("src", "href")
                and not (value or "").startswith(("#", "data:image/png;base64,"))
                and value != "data:,"
            ):
                raise AssertionError(f"the page loads {value!r}")


def report_page(rng: random.Random, folder: Path) -> None:
    """`rkd report` on a run's folder: the page is written, holds no script and nothing from outside."""
    from rkd.report.pages import write_report

    check_page(write_report(make_run(rng, folder / "run")))


def check_page(file: Path) -> None:
    """Raise AssertionError for a page with a script, with anything from outside, or with a stranger's file."""
    page = file.read_text()
    Page().feed(page)
    if "not for other eyes" in page:
        raise AssertionError("the page shows a file that lies outside the run's folder")
    if odd := [c for c in page if not c.isprintable() and c not in "\n\t\u00a0"]:
        raise AssertionError(f"the page holds {odd[:5]!r}")


def command_line(rng: random.Random, folder: Path) -> None:
    """`rkd eval`, `cite`, `compare`, `run --resume`, `run --dry-run` on it: exit code 0 or 2, no control characters."""
    run = str(make_run(rng, folder / "run").path)
    words = rng.choice(
        (
            ["cite", run],
            ["compare", run],
            ["compare", run, "--json"],
            ["eval", run, "--attack", "none", "--checks", "off"],
            ["eval", run, "--attack", "none", "--checks", "off", "--set", f"attack={strange(rng, 0)}"],
            ["report", run],
            ["run", f"{run}/config.toml", "--dry-run", "--epochs", "1", "--loss", "ce"],
            ["info", str(strange(rng, 0)) or "x"],
            ["run", "--dry-run", "--loss", str(strange(rng, 0))],
            ["cite", str(strange(rng, 0)) or "x"],
        )
    )
    run_words(words)


def run_words(words: list[str]) -> None:
    """`rkd` with these words: exit code 0 or 2, and no control characters. Raises RkdError for 2."""
    from rkd.cli import cli

    words = [word.replace("\0", "") for word in words]  # no command line holds NUL
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    if result.exit_code not in (0, 2):
        raise AssertionError(f"{words} ended with {result.exit_code}: {result.output[-600:]}")
    if odd := [c for c in result.output if not c.isprintable() and c not in "\n\t\u00a0"]:
        raise AssertionError(f"{words} printed {odd[:5]!r}")
    if result.exit_code == 2:
        raise RkdError(result.output)


def checkpoint(rng: random.Random, folder: Path) -> None:
    """A checkpoint of a run."""
    file = folder / "last.safetensors"
    state: dict[str, Any] = {
        "epoch": 3,
        "student": weights(),
        "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
        "best": None,
    }
    save_state(file, state)
    content = file.read_bytes()
    kind = rng.random()
    if kind < 0.05:
        special(rng, file)
    elif kind < 0.5:
        file.write_bytes(scribbled(rng, content))
    else:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        key = next(key for key in header["__metadata__"] if key == "rkd_state")
        tree = mutated(rng, json.loads(header["__metadata__"][key]), 6)
        header["__metadata__"][key] = rng.choice((json.dumps(tree), "[" * 5000, '{"$dict": ' * 2000, "NaN", "{}"))
        with safe_open(file, framework="pt") as old:
            tensors = {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118 - not a mapping
        # A checksum keeps off accidents, not attackers: they write a right one.
        file.write_bytes(pack(tensors, header["__metadata__"][key]))
    load_state(file)


def journal(rng: random.Random, folder: Path) -> None:
    """What a killed evaluation left behind."""
    from rkd.data.dataset import ArraySplit

    book = Journal(folder / "journal")
    split = ArraySplit(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    torch.manual_seed(0)
    net = TinyNet().eval()
    evaluate(net, split, {}, EvalSettings(threat=ThreatModel(), batch_size=3, journal=book))
    for file in sorted((folder / "journal").rglob("*.safetensors")):
        if rng.random() < 0.5:
            file.write_bytes(scribbled(rng, file.read_bytes()))
        elif rng.random() < 0.7:
            odd = {
                name: torch.full(
                    rng.choice(((3,), (2,), (), (3, 2))),
                    rng.choice((0, 1, -1, 99)),
                    dtype=rng.choice((torch.bool, torch.int64, torch.float32)),
                )
                for name in rng.choice((["right"], ["right", "confidence", "prediction", "seconds"], []))
            }
            file.write_bytes(pack(odd))
    evaluate(net, split, {}, EvalSettings(threat=ThreatModel(), batch_size=3, journal=book))
