"""Hostile and broken inputs for every reader of rkd, each a function of a random number generator.

A reader is `(rng, folder) -> None`: it writes one input into the empty folder and reads it as rkd does. It returns
where the input was usable and raises RkdError where it was not; anything else is a defect. `benchmarks/fuzz.py` and
`tests/test_fuzz.py` count.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from rkd.core.checkpoint import load_state, pack, save_state
from rkd.core.corruption import open_corrupted
from rkd.core.errors import DataError, RkdError
from rkd.core.evaluate import evaluate
from rkd.core.journal import Journal
from rkd.core.runfolder import RunFolder
from rkd.core.types import ThreatModel
from rkd.core.weights import load_into, read_weights
from rkd.plugins.datasets import imagefolder, npz
from rkd.plugins.datasets import torchvision as published
from rkd.plugins.datasets._cifar import ArrayUnpickler
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.config import assignments, merge, parse, read_recipe, recipes
from rkd.registry.load import load_run
from rkd.registry.resolve import resolve
from rkd.testing import TinyNet

NASTY_TEXT = (
    "",
    " ",
    "\0",
    "../../x",
    "/etc/passwd",
    "..",
    "~nobody-of-that-name/x",
    "a" * 5000,
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "[bold red]x[/]",
    "{{ 7 * 7 }}",
    "\u202egnp.exe",
    "\u2028",
    "%s%n",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "nan",
    "8/0",
    "1e999",
    "ramp(0, nan)",
    "points(" + "0:0," * 500 + ")",
    "wrn" + "9" * 400 + "-1",
    "timm:../../x",
    "npz:../../x",
    "-1",
    "imagefolder:/proc/self/fd",
    "pgd",
    "digits",
    "small-cnn",
    "mtard-anl",
    "rslad",
    "\ud7ff\uffff",
    "javascript:alert(1)",
)
NASTY_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**53,
    -(2**63),
    2**63 - 1,
    True,
    False,
)


def strange(rng: random.Random, depth: int = 3) -> Any:
    """Any value that TOML can hold."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(NASTY_TEXT)
    if kind < 0.75 or depth == 0:
        return rng.choice(NASTY_NUMBERS)
    if kind < 0.87:
        return [strange(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(NASTY_TEXT) or "x": strange(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def mutated(rng: random.Random, tree: Any, times: int = 3) -> Any:
    """`tree` with some values replaced, taken away, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, times))):
        places = list(_places(tree))
        holder, key = rng.choice(places) if places else (tree, None)
        action = rng.random()
        if key is None or (action < 0.2 and isinstance(holder, dict)):
            if isinstance(holder, dict):
                holder[rng.choice((*NASTY_TEXT, "name", "options", "loss", "data", "student"))] = strange(rng)
        elif action < 0.35:
            del holder[key]
        else:
            holder[key] = strange(rng)
    return tree


def _places(tree: Any) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def scribbled(rng: random.Random, content: bytes) -> bytes:
    """`content` cut off, with bytes changed, repeated, or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        action = rng.random()
        if action < 0.5 and data:
            data[place % len(data)] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif action < 0.65:
            del data[place:]
        elif action < 0.8:
            data[place:place] = rng.choice((b"\xff" * 8, b"\0" * 8, b"[" * 3000, b'"', b"{", struct.pack("<Q", 2**62)))
        elif action < 0.9:
            data[place:place] = data[max(0, place - 64) : place]
        else:
            del data[place : place + rng.randint(1, 64)]
    return bytes(data)


@cache
def catalog() -> Catalog:
    return load_catalog()


@cache
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return TinyNet().state_dict()


# Recipes and settings


def recipe(rng: random.Random, folder: Path) -> None:
    """A .toml file, read and resolved into components."""
    file = folder / "mine.toml"
    text = rng.choice(sorted(recipes().values()))
    kind = rng.random()
    if kind < 0.3:
        file.write_bytes(scribbled(rng, text.encode()))
    elif kind < 0.4:
        depth = rng.choice((10, 40, 1000, 20000))
        file.write_text(
            rng.choice(
                (
                    f"a = {'[' * depth}",
                    "a." * depth + "a = 1",
                    "[" + '"a".' * depth + "b]",
                    "a = " + "{a=" * depth,
                    "a = 0x" + "f" * depth,
                    "a = " + "9" * depth,
                )
            )
        )
    else:
        base = _tables(text) if rng.random() < 0.5 else {}
        base = merge({"data": {"name": "digits"}, "loss": {"name": "rslad"}, "attack": {"name": "pgd"}}, base)
        base["data"] = {"name": "digits"}
        file.write_text(tomli_w.dumps(mutated(rng, base)), encoding="utf-8", errors="replace")
    resolve(read_recipe(file), catalog())


@cache
def _tables(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


KEYS = (
    "loss",
    "loss.T",
    "attack.eps",
    "attack.name",
    "student.width",
    "student",
    "data.dir",
    "threat.eps",
    "epochs",
    "optimizer.lr",
    "optimizer.schedule",
    "evaluate.attacks",
    "schedulers.anl",
    "augments",
    "teachers",
    "seed",
    "a" + ".a" * 5000,
    "name",
    "validate.on",
    "extensions.ema.decay",
    "plugin",
    "plugins",
)


SOUND = (
    "loss.name=ard",
    "epochs=2",
    "attack.eps=8/255",
    "optimizer.schedule=ramp(0, 1, until=0.3)",
    "student.width=8",
    "student.conversions.aux-bn={}",
    "evaluate.attacks=['fgsm', 'cw']",
    "threat.eps=0.1",
    "data.validation=0.2",
    "extensions.ema.decay=0.9",
)
"""Settings as people give them, among which the strange ones stand."""


def settings(rng: random.Random, folder: Path) -> None:
    """`--set KEY=VALUE`, merged and resolved."""
    texts = rng.sample(SOUND, rng.randint(0, 2))
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = strange(rng)
        shown = rng.choice((str(value), json.dumps(value), f"{'[' * 2000}", "0x" + "f" * 500, "1\nname = 2"))
        texts.append(f"{rng.choice((*KEYS, *NASTY_TEXT))}{rng.choice(('=', '', '=='))}{shown}")
    table = assignments(texts)
    config = parse(merge({"loss": {"name": "pgd-at"}, "data": {"name": "digits"}}, table))
    if config.data.name == "digits":
        resolve(merge({"loss": {"name": "pgd-at"}}, table), catalog())


# Weights


def safetensors_file(rng: random.Random, folder: Path) -> None:
    """A .safetensors file for a small net."""
    file = folder / "w.safetensors"
    content = save(weights())
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    kind = rng.random()
    if kind < 0.15:  # numbers of any bits
        place = 8 + size + rng.randrange(len(content) - 8 - size)
        file.write_bytes(content[:place] + rng.randbytes(4) + content[place + 4 :])
    elif kind < 0.4:
        file.write_bytes(scribbled(rng, content))
    elif kind < 0.5:  # a header that says any length
        file.write_bytes(struct.pack("<Q", rng.choice((0, 1, size - 1, 10**8, 2**40, 2**63, 2**64 - 1))) + content[8:])
    elif kind < 0.6:
        file.write_bytes(save({name: _odd_tensor(rng, value) for name, value in weights().items()}))
    else:
        header = mutated(rng, header)
        if isinstance(header, dict) and header and rng.random() < 0.5:
            entry = header[rng.choice(list(header))]
            if isinstance(entry, dict):
                entry["shape"] = rng.choice(([2**62], [-1], [2**32, 2**32], [], [0], [10**30], "x"))
                entry["dtype"] = rng.choice(("F32", "F8_E4M3", "BOOL", "C64", "F4", "U64", "X", 3))
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    load_into(TinyNet(), read_weights(file), str(file))


def _odd_tensor(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    kind = rng.randrange(7)
    if kind == 0:
        return value.double() * float("nan")
    if kind == 1:
        return value.half() * 1e9
    if kind == 2:
        return torch.zeros(0)
    return value.clone()


class Evil:
    """Unpickled, it would run a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.folder.parent}/pwned",)


def torch_file(rng: random.Random, folder: Path) -> None:
    """A .pt file of torch.save, of an older torch, or of an attacker."""
    file = folder / f"w.{rng.choice(('pt', 'pth', 'th', 't7', 'tar', 'ckpt', 'bin'))}"
    odd: list[Any] = [
        weights(),
        {"state_dict": weights()},
        {"w": torch.empty(3, device="meta")},
        {"w": torch.eye(3).to_sparse()},
        {"w": torch.ones(3, dtype=torch.cfloat)},
        {"w": torch.zeros(1).expand(10**6, 10**6)},
        {"w": "text"},
        [1],
        None,
        {name: value.expand(2, *value.shape) for name, value in weights().items()},
        {1: torch.ones(1)},
        {},
        {"model": {"model": {"model": {"model": weights()}}}},
        {name: _odd_tensor(rng, v) for name, v in weights().items()},
        {"w": Evil(folder)},
        {"w": torch.ones(2, requires_grad=True)},
        {"w": torch.nn.Parameter(torch.ones(2))},
    ]
    out = io.BytesIO()
    torch.save(rng.choice(odd), out, _use_new_zipfile_serialization=rng.random() < 0.6)
    content = out.getvalue()
    kind = rng.random()
    if kind < 0.4:
        content = scribbled(rng, content)
    elif kind < 0.5 and zipfile.is_zipfile(io.BytesIO(content)):
        content = _repacked(rng, content)
    elif kind < 0.6:
        content = pickle.dumps(rng.choice(({"w": Evil(folder)}, weights(), {"a": [1]})), protocol=rng.randrange(5))
    elif kind < 0.65:
        content = rng.choice(
            (b"", b"PK\x03\x04", b"\x80\x02", gzip.compress(content), b"(" * 100_000, b"\x80\x02]" * 9999)
        )
    file.write_bytes(content)
    load_into(TinyNet(), read_weights(file), str(file))


def _repacked(rng: random.Random, content: bytes) -> bytes:
    """A torch archive with compressed members, and one that unpacks to 64 MiB."""
    out = io.BytesIO()
    how = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", how) as new:
        for name in old.namelist():
            bomb = name.endswith("/0") and rng.random() < 0.5
            new.writestr(name, bytes(64 << 20) if bomb and how != zipfile.ZIP_STORED else old.read(name))
        if rng.random() < 0.3:
            new.writestr("../../outside/pwned", b"x")
    return out.getvalue()


# Run folders

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
def _gallery() -> bytes:
    return save({"clean": torch.rand(1, 1, 8, 8), "adversarial": torch.rand(1, 1, 8, 8)})


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
        "examples.safetensors": _gallery(),
    }
    for name in ("student.safetensors", "examples.safetensors"):
        if ("weights" if name.startswith("student") else "examples") in spoilt:
            files[name] = scribbled(rng, files[name])
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
    if "links" in spoilt:
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
            if place.is_dir():
                place.rmdir()
            place.unlink(missing_ok=True)
            target = rng.choice(
                (outside, outside / "secret.toml", outside / "new", "/dev/zero", place, "/proc/self/mem")
            )
            place.symlink_to(target)
    return RunFolder(path)


def run_folder(rng: random.Random, folder: Path) -> None:
    """The student of a run's folder, as `rkd eval` loads it."""
    load_run(make_run(rng, folder / "run").path, catalog())


class _Page(HTMLParser):
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
    from rkd.report.run_page import write_report

    page = write_report(make_run(rng, folder / "run")).read_text()
    _Page().feed(page)
    if "not for other eyes" in page:
        raise AssertionError("the page shows a file that lies outside the run's folder")
    if odd := [c for c in page if not c.isprintable() and c not in "\n\t\u00a0"]:
        raise AssertionError(f"the page holds {odd[:5]!r}")


def command_line(rng: random.Random, folder: Path) -> None:
    """`rkd eval`, `cite`, `compare`, `run --resume`, `run --dry-run` on it: exit code 0 or 2, no control characters."""
    from rkd.cli import cli

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
    if rng.random() < 0.5:
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
    from rkd.core.data import ArraySplit

    book = Journal(folder / "journal")
    split = ArraySplit(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    torch.manual_seed(0)
    net = TinyNet().eval()
    evaluate(net, split, {}, threat=ThreatModel(), batch_size=3, journal=book)
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
    evaluate(net, split, {}, threat=ThreatModel(), batch_size=3, journal=book)


# Data


def idx_files(rng: random.Random, folder: Path) -> None:
    """MNIST's four files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        images = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(rng.randrange(256) for _ in range(count * 784))
        labels = struct.pack(">II", 0x801, count) + bytes(rng.randrange(10) for _ in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            kind = rng.random()
            if kind < 0.2:
                content = scribbled(rng, content)
            elif kind < 0.4:
                sizes = [rng.choice((0, 1, count, 28, 2**31, 2**32 - 1)) for _ in range(3)]
                kept = sizes[: rng.randint(0, 3)]
                magic = rng.choice((0x800, 0x900, 0xD00)) + len(kept)
                content = struct.pack(f">{1 + len(kept)}I", magic, *kept) + content[16:]
            (raw / name).write_bytes(content)
    published.Mnist(dir=str(folder))()


def cifar_pickle(rng: random.Random, folder: Path) -> None:
    """A pickle in place of CIFAR's: with its MD5 wrong, and past the MD5, at the unpickler itself."""
    entry: Any = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "filenames": [b"a.png"]}
    kind = rng.random()
    if kind < 0.3:
        entry = rng.choice(
            ({"data": Evil(folder)}, [Evil(folder)], {"data": print}, {"data": np.array([Evil(folder)])})
        )
    content = pickle.dumps(entry, protocol=rng.randrange(6))
    if kind > 0.5:
        content = scribbled(rng, content)
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (base / name).write_bytes(content)
    try:
        published.Cifar10(dir=str(folder))()
        raise AssertionError("files that are not the published ones were read")
    except DataError:
        pass
    try:
        ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # `_dataset` makes one message of all of them
        raise DataError(f"{type(error).__name__}: {error}") from error


def npz_file(rng: random.Random, folder: Path) -> None:
    """A NumPy archive of images."""
    file = folder / "data.npz"
    arrays: dict[str, Any] = {
        "x_train": np.zeros((6, 8, 8), np.uint8),
        "y_train": np.arange(6) % 3,
        "x_test": np.zeros((3, 8, 8), np.uint8),
        "y_test": np.arange(3),
    }
    odd = (
        np.array([Evil(folder)]),
        np.array("x"),
        np.zeros((0, 8, 8)),
        np.full((6, 8, 8), np.nan),
        np.zeros((6, 8, 8, 3)),
        np.array([2**62] * 6),
        np.array([-5] * 6),
        np.zeros(6, complex),
        np.zeros(3, "M8[s]"),
        np.zeros((6, 8, 8), "O"),
        np.zeros((6, 1), np.int8),
        np.zeros((6, 8, 8), [("a", "f4")]),
        np.full((6, 8, 8), np.inf),
    )
    for name in arrays:
        if rng.random() < 0.3:
            arrays[name] = odd[rng.randrange(len(odd))]
    out = io.BytesIO()
    kind = rng.random()
    if kind < 0.8:
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(out, **arrays)  # type: ignore[operator]
    else:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.save(member, array, allow_pickle=True)
                content = member.getvalue()
                if rng.random() < 0.4:
                    shape = rng.choice((b"(99999999999, 8, 8), }", b"(-6, 8, 8), }", b"((6,)*9), }", b"(1e9,), }"))
                    content = content.replace(b"(6, 8, 8), }", shape).replace(b"(6,), }", shape)
                archive.writestr(rng.choice((f"{name}.npy", f"../../{name}.npy", f"/{name}.npy", name)), content)
    content = out.getvalue()
    file.write_bytes(scribbled(rng, content) if rng.random() < 0.4 else content)
    npz.Npz(path=str(file), layout=rng.choice(("auto", "NHWC", "NCHW")))()


def image_folder(rng: random.Random, folder: Path) -> None:
    """A folder of images by class."""
    root = folder / "images"
    for number in range(rng.randint(1, 3)):
        place = root / rng.choice(("a", "b", "<b>", "..x", "\x1b[31m", "ü" * 60, "train", "test"))
        place.mkdir(parents=True, exist_ok=True)
        for name in ("1", "2"):
            kind = rng.choice(
                ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS" if rng.random() < 0.2 else "PNG")
            )
            out = io.BytesIO()
            Image.new(rng.choice(("RGB", "L")), (8, 8 if rng.random() < 0.97 else 9), number).save(out, kind)
            content = out.getvalue()
            if rng.random() < 0.08:
                content = scribbled(rng, content)
            elif rng.random() < 0.2 and kind == "PNG":  # a header that says any size
                width, height = rng.choice(((60_000, 60_000), (9_000, 9_000), (1, 2**31 - 1), (2**31 - 1, 1), (0, 0)))
                content = content[:16] + struct.pack(">II", width, height) + content[24:]
            file = place / f"{name}.{rng.choice(('png', 'jpg', 'tif'))}"
            file.unlink(missing_ok=True)
            if rng.random() < 0.05:
                file.symlink_to(rng.choice(("/dev/zero", str(file), str(folder.parent / "outside" / "secret.toml"))))
            else:
                file.write_bytes(content)
    imagefolder.ImageFolder(path=str(root), size=rng.choice((None, None, 8, 16)))()


def corrupted_files(rng: random.Random, folder: Path) -> None:
    """A folder in the form of CIFAR-10-C."""
    for name, array in (("fog", np.zeros((10, 8, 8, 3), np.uint8)), ("labels", np.array([0, 1] * 5))):
        out = io.BytesIO()
        np.save(
            out,
            rng.choice((array, array, array, array.astype(float), array[:7], np.array([Evil(folder)]))),  # type: ignore[call-overload]
            allow_pickle=True,
        )
        content = out.getvalue()
        kind = rng.random()
        if kind < 0.3:
            content = scribbled(rng, content)
        elif kind < 0.4:
            content = content.replace(b"(10,", rng.choice((b"(99999999999,", b"(-10,", b"(True,")))
        (folder / f"{name}.npy").write_bytes(content)
    files = open_corrupted(folder, ["fog"], rng.choice((None, (3, 8, 8))), rng.choice((None, 2)))
    files.images("fog", rng.randint(1, 5), torch.tensor([0]))


# Plugins

BODIES = (
    "raise RuntimeError('at import')",
    "raise SystemExit(3)",
    "print('spam')",
    "import nowhere_to_be_found",
    "1 +",
    "\0",
    "def rkd_losses():\n    raise KeyError('in the hook')",
    "def rkd_losses():\n    return [1]",
    "def rkd_losses():\n    return None",
    "def rkd_losses():\n    return {'<script>': object}",
    "def rkd_losses():\n    return {3: object}",
    "def rkd_losses():\n    return {'x': 3}",
    "def rkd_losses():\n    return {'a\\x1b[31m': object}",
    "def rkd_losses():\n    return {'../../x': object}",
    "def rkd_losses():\n    return {'a' * 9999: object}",
    "def rkd_losses():\n    print('spam')\n    return {'mine': object}",
    "def rkd_losses(nothing_known):\n    return {}",
    "def rkd_losses():\n    return {'rslad': object}",
    "def rkd_loses():\n    return {}",
    "class B(dict):\n    def items(self):\n        raise ValueError\ndef rkd_losses():\n    return B(x=object)",
    "from rkd.core.interfaces import Family\ndef rkd_models():\n    return {'f': Family('(', object, ())}",
    "class M:\n    __doc__ = 3\ndef rkd_losses():\n    return {'odd': M}",
    "import sys\nsys.exit('gone')",
    "def rkd_losses():\n    import sys\n    sys.exit(1)",
)


def plugin_file(rng: random.Random, folder: Path) -> None:
    """A plugin that raises at import or in its hook, returns the wrong type, registers twice, or prints."""
    files = []
    for number in range(rng.randint(1, 2)):
        body = rng.choice(BODIES)
        if "def rkd" in body:
            body = "from rkd.core.hookspecs import hookimpl\n" + body.replace("def rkd", "@hookimpl\ndef rkd")
        file = folder / rng.choice((f"p{number}.py", "same.py", "<b>.py", "a b.py"))
        content = body.encode()
        file.write_bytes(scribbled(rng, content) if rng.random() < 0.2 else content)
        files.append(file)
    files *= rng.choice((1, 2))
    found = load_catalog(files)
    for entry in found.all():
        entry.summary  # noqa: B018 - `rkd list-plugins` asks for it
    for kind, name in (("loss", "rslad"), ("loss", "mine"), ("model", "wrn10-2"), ("attack", "pgd")):
        try:
            found.find(kind, name)
        except RkdError:
            if name not in ("mine", "rslad"):
                raise AssertionError(f"a strange plugin took {name} away") from None


Reader = Callable[[random.Random, Path], None]

READERS: dict[str, Reader] = {
    "recipe": recipe,
    "settings": settings,
    ".safetensors": safetensors_file,
    ".pt and its like": torch_file,
    "run folder": run_folder,
    "report": report_page,
    "command line": command_line,
    "checkpoint": checkpoint,
    "journal": journal,
    "MNIST idx": idx_files,
    "CIFAR pickle": cifar_pickle,
    "npz": npz_file,
    "imagefolder": image_folder,
    "CIFAR-10-C": corrupted_files,
    "plugin file": plugin_file,
}
