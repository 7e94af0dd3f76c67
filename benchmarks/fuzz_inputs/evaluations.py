"""Folders that `rkd eval --save` writes."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from rkd.storage.runfolder import RunFolder

from .run_folders import MANIFEST, NET, check_page, gallery, put, run_words
from .strange import mutated, scribbled

THREAT: dict[str, Any] = {"norm": "Linf", "eps": 0.15, "step_size": 0.04}
RESULT: dict[str, Any] = {key: value for key, value in NET.items() if key != "role"} | {
    "net": "runs/mine",
    "model": "small-cnn",
    "parameters": 2182,
    "data": "digits",
    "classes": [str(n) for n in range(10)],
    "threat": THREAT,
    "seed": 0,
    "worst_class": {"clean": 0.4},
    "transfer": {
        "attack": "fgsm",
        "samples": 100,
        "clean": {"runs/mine": 0.9, "runs/other": 0.8},
        "accuracy": {"runs/mine": {"runs/mine": 0.5, "runs/other": 0.6}, "runs/other": {"runs/mine": 0.6}},
    },
    "checks": {"samples": 32, "clean": 1.0, "attacks": {"fgsm": 0.5}},
}
CARD: dict[str, Any] = {
    "format": 1,
    "name": "mine",
    "source": "runs/mine",
    "model": "small-cnn",
    "options": {"width": 4},
    "parameters": 2182,
    "weights": "95b249bb",
    "shape": [1, 8, 8],
    "mean": [0.3],
    "std": [0.37],
    "trained": {"method": "rslad", "epochs": 3, "seed": 0, "data": "digits", "threat": THREAT, "settings": "0123abcd"},
}
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "device": "auto",
    "evaluate": {"attacks": ["fgsm"], "limit": 20, "options": {"fgsm": {"eps": 0.1}}, "transfer": ["runs/other"]},
    "data": {"name": "digits"},
    "threat": THREAT,
}


def make_evaluation(rng: random.Random, path: Path) -> RunFolder:
    """A saved evaluation with one to three of its files spoilt: other values, other bytes, or links."""
    spoilt = rng.sample(("result", "card", "settings", "manifest", "examples", "links"), rng.randint(1, 3))

    def tree(name: str, content: Any) -> Any:
        return mutated(rng, content, 5) if name in spoilt else content

    path.mkdir(parents=True)
    files: dict[str, bytes] = {
        "evaluation.json": json.dumps(tree("result", RESULT)).encode(),
        "net.json": json.dumps(tree("card", CARD)).encode(),
        "evaluation.toml": tomli_w.dumps(tree("settings", SETTINGS)).encode(errors="replace"),
        "manifest.json": json.dumps(tree("manifest", MANIFEST)).encode(),
        "examples.safetensors": scribbled(rng, gallery()) if "examples" in spoilt else gallery(),
    }
    put(rng, path, files, links="links" in spoilt)
    return RunFolder(path)


def evaluation_page(rng: random.Random, folder: Path) -> None:
    """`rkd report` on a saved evaluation: the page is written, holds no script and nothing from outside."""
    from rkd.report.pages import write_report

    check_page(write_report(RunFolder.open_results(make_evaluation(rng, folder / "evaluation").path)))


def evaluation_commands(rng: random.Random, folder: Path) -> None:
    """`rkd report`, `compare` and `cite` on it: exit code 0 or 2, no control characters."""
    one = str(make_evaluation(rng, folder / "evaluation").path)
    other = str(make_evaluation(rng, folder / "other").path) if rng.random() < 0.5 else _sound(folder / "other")
    page = folder / "page.html"
    words = rng.choice(
        (
            ["report", one],
            ["report", one, "--json"],
            ["compare", one],
            ["compare", one, other, "--json"],
            ["compare", one, other, "--attack", "fgsm"],
            ["compare", other, one, "--csv"],
            ["compare", one, other, "--latex"],
            ["compare", one, other, "--html", str(page)],
            ["cite", one],
        )
    )
    run_words(words)
    if page.exists():
        check_page(page)


def _sound(path: Path) -> str:
    path.mkdir()
    for name, content in _files().items():
        (path / name).write_bytes(content)
    return str(path)


@cache
def _files() -> dict[str, bytes]:
    return {
        "evaluation.json": json.dumps(RESULT).encode(),
        "net.json": json.dumps(CARD).encode(),
        "evaluation.toml": tomli_w.dumps(SETTINGS).encode(),
        "manifest.json": json.dumps(MANIFEST).encode(),
        "examples.safetensors": gallery(),
    }
