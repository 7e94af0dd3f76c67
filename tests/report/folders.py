"""Folders made by hand: what `rkd run` and `rkd eval --save` write, without the training and the attacks."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors.numpy import save_file

from rkd.storage.runfolder import RunFolder

EPS = 38 / 255

CONFIG: dict[str, Any] = {
    "seed": 0,
    "epochs": 3,
    "loss": {"name": "mtard-anl", "scale": 1.0, "weights": {"adv": 0.5, "clean": 0.5}},
    "student": {"model": "small-cnn", "width": 16, "conversions": {}},
    "data": {"name": "digits", "validation": 0.1},
    "teachers": [
        {"reference": "wrn10-2", "role": "robust", "options": {}},
        {"reference": "wrn10-2", "role": "clean", "options": {}},
    ],
    "attack": {"name": "pgd", "steps": 10},
    "objective": {"name": "ce"},
    "schedulers": {"anl": {"rate": 0.025}},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "evaluate": {"attacks": ["fgsm", "pgd-sat"]},
}

MANIFEST: dict[str, Any] = {
    "started": "2026-11-20T10:19:15+00:00",
    "seed": 0,
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "plugins": {"rkd-toolkit/attacks.pgd": "0.1.0", "strange/losses.mine": "2.0"},
    "hardware": {"device": "Abacus 3000", "cpu_threads": 1, "tf32": {"matmul": False}},
    "data": {"name": "digits", "fingerprint": "41334c99"},
    "command": ["/somewhere/bin/rkd", "run", "--epochs", "3", "--name", "my run"],
    "cost": {"student": {"forwards": 12, "backwards": 11}, "robust": {"forwards": 1, "backwards": 0}},
    "status": "finished",
    "seconds": 200.0,
}

SIZES: dict[str, Any] = {
    "student": {"parameters": 25_978, "bytes": 104_832, "macs": 159_232,
                "latency": {"median": 0.25, "quartiles": [0.2, 0.5], "runs": 30}},
    "teachers": {"robust": {"parameters": 259_780, "bytes": 1_048_320, "macs": 45_000_000, "latency": {"median": 7.0}},
                 "clean": {"error": "it does not run on a CPU"}},
}  # fmt: skip

CARD: dict[str, Any] = {
    "model": "small-cnn",
    "classes": [f"digit {number}" for number in range(10)],
    "data": "digits",
    "threat": {"norm": "Linf", "eps": EPS, "step_size": EPS / 4},
    "loss": "mtard-anl",
}


def epoch(number: int) -> dict[str, Any]:
    return {
        "epoch": number, "lr": 0.1 / (number + 1), "loss": 1.5 / (number + 1), "loss.adv": 2.0 / (number + 1),
        "loss.clean": 1.0 / (number + 1), "weight.adv": 0.5 + 0.0625 * number, "weight.clean": 0.5 - 0.0625 * number,
        "T.robust": 1.0 + number, "val.clean": 0.90625 + 0.01 * number, "val.robust": 0.5 + 0.0625 * number,
        "seconds": 10.0 * (number + 1),
    }  # fmt: skip


HISTORY = [{**epoch(number), "epoch": number + 1} for number in range(6)]
"""Six epochs as `metrics.jsonl` has them."""


def search(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "implementation": f"rkd.plugins.attacks.{name}.Attack", "options": {"steps": 20, "eps": None},
        "objective": "ce", "norm": "Linf", "eps": EPS, "in_threat": True, "attacked": 349, "fooled": 90,
        "forwards": 6980, "backwards": 6979, "seconds": 0.8, "notes": ["a note of the attack"],
    } | changes  # fmt: skip


def net(clean: float = 0.978, fgsm: float = 0.763, pgd: float = 0.71) -> dict[str, Any]:
    worst = min(fgsm, pgd) - 0.01

    def around(value: float) -> list[float]:
        return [max(0.0, value - 0.04), min(1.0, value + 0.03)]

    return {
        "samples": 359,
        "clean": clean,
        "attacks": {"fgsm": fgsm, "pgd-sat": pgd},
        "w_robust": {"fgsm": (clean + fgsm) / 2, "pgd-sat": (clean + pgd) / 2},
        "nrr": {"fgsm": 2 * clean * fgsm / (clean + fgsm), "pgd-sat": 2 * clean * pgd / (clean + pgd)},
        "worst_case": worst,
        "interval_95": {
            "clean": around(clean), "fgsm": around(fgsm), "pgd-sat": around(pgd), "worst_case": around(worst)
        },
        "seconds": {"clean": 0.03, "fgsm": 0.12, "pgd-sat": 1.46},
        "warnings": [],
    }  # fmt: skip


def full_net() -> dict[str, Any]:
    """A student's evaluation with every part that there is."""
    bins = [[0, 0.0, 0.0] if place < 5 else [place, (place + 0.5) / 15, place / 15] for place in range(15)]
    return net() | {
        "warnings": [
            {"check": "fgsm-beats-iterated", "finding": "FGSM beats PGD", "meaning": "gradients are masked",
             "advice": "run autoattack"},
            "a plain warning",
        ],
        "per_class": {
            "clean": [0.9 + place / 100 for place in range(10)],
            "worst_case": [0.625 if place == 3 else 0.7 + place / 100 for place in range(9)] + [None],
        },
        "calibration": {
            "clean": {"ece": 0.0625, "confidence": 0.92, "bins": bins},
            "pgd-sat": {"ece": 0.125, "confidence": 0.8, "bins": bins},
        },
        "searches": {"fgsm": search("fgsm"), "pgd-sat": search("pgd", in_threat=False)},
        "curve": {"attack": "pgd-sat", "norm": "Linf", "eps": [0, EPS / 2, EPS, 2 * EPS],
                  "accuracy": [0.978, 0.88, 0.71, 0.1], "interval_95": [[0.9, 1.0], [0.8, 0.9], [0.6, 0.8], [0, 0.2]]},
        "rounded": {"fgsm": 0.75, "pgd-sat": 0.70},
        "corruptions": {"source": "made here", "accuracy": {"fog": [0.9, 0.8, 0.7, 0.6, 0.5]}, "mean": 0.7},
        "examples": [
            {"index": 7, "label": 3, "attack": "pgd-sat", "clean": {"prediction": 3, "confidence": 0.9375},
             "adversarial": {"prediction": 8, "confidence": 0.5625}},
            {"index": 9, "label": 4, "attack": "fgsm", "clean": {"prediction": 4, "confidence": 0.75},
             "adversarial": {"prediction": 4, "confidence": 0.5}},
        ],
    }  # fmt: skip


def write_examples(path: Path, count: int = 2, channels: int = 1, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    clean = np.random.default_rng(0).uniform(0.2, 0.8, (count, channels, side, side)).astype(np.float32)
    adversarial = (clean + np.float32(0.1) * np.where(clean > 0.5, 1, -1)).astype(np.float32)
    save_file({"clean": clean, "adversarial": adversarial}, path)
    return clean, adversarial


def make_run(
    path: Path,
    *,
    config: dict[str, Any] | None = None,
    manifest: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
    student: Any = None,
    teachers: Any = None,
    epochs: int = 3,
    finished: bool = True,
    examples: bool = True,
) -> RunFolder:
    """A run's folder; the tables given go on top of the usual ones."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_config(tomli_w.dumps(copy.deepcopy(CONFIG) | (config or {})))
    status = {} if finished else {"status": "interrupted"}
    folder.write_json(folder.manifest, MANIFEST | status | (manifest or {}))
    folder.metrics.write_text("".join(json.dumps(epoch(number)) + "\n" for number in range(epochs)))
    if finished:
        folder.write_json(folder.card, CARD | (card or {}))
        default = [
            {"role": "robust", "model": "wrn10-2", "source": "prepared (/cache/robust)"} | net(0.983, 0.905, 0.869),
            {"role": "clean", "model": "wrn10-2", "source": "prepared (/cache/clean)"} | net(0.986, 0.37, 0.136),
        ]
        content = {"student": full_net() if student is None else student,
                   "teachers": default if teachers is None else teachers}  # fmt: skip
        folder.write_json(folder.evaluation, content)
        if examples:
            write_examples(folder.examples)
    return folder


SETTINGS: dict[str, Any] = {
    "seed": 5,
    "device": "cpu",
    "evaluate": {"attacks": ["fgsm", "pgd-sat"], "limit": 359, "checks": "full", "engine": "auto", "corruptions": "own",
                 "transfer": ["runs/other"]},
    "data": {"name": "digits"},
    "threat": {"norm": "Linf", "eps": EPS, "step_size": EPS / 4},
}  # fmt: skip

NET_CARD: dict[str, Any] = {
    "format": 1, "name": "my-run", "source": "runs/my-run", "model": "small-cnn", "options": {"width": 16},
    "parameters": 25978, "weights": "907b9036", "shape": [1, 8, 8], "mean": [0.25], "std": [0.5],
    "trained": {"method": "mtard-anl", "epochs": 3, "seed": 1, "data": "digits",
                "threat": {"norm": "Linf", "eps": EPS, "step_size": EPS / 4}},
}  # fmt: skip

TRANSFER: dict[str, Any] = {
    "attack": "pgd-sat",
    "samples": 359,
    "clean": {"runs/my-run": 0.978, "runs/other": 0.942},
    "accuracy": {
        "runs/my-run": {"runs/my-run": 0.71, "runs/other": 0.625},
        "runs/other": {"runs/my-run": 0.8125, "runs/other": 0.25},
    },
}


def make_evaluation(
    path: Path, *, found: dict[str, Any] | None = None, bare: bool = False, trained: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> RunFolder:  # fmt: skip
    """What `rkd eval --save` writes; `found` goes on top of the usual result, `trained` and `settings` on top of what
    it says of the training and of itself. `bare`: evaluation.json alone."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    about = {"net": "runs/my-run", "model": "small-cnn", "parameters": 25978, "data": "digits", "seed": 5,
             "classes": CARD["classes"], "threat": CARD["threat"], "transfer": TRANSFER}  # fmt: skip
    folder.write_json(folder.evaluation, about | full_net() | (found or {}))
    if not bare:
        folder.write_text(folder.evaluation_settings, tomli_w.dumps(SETTINGS | (settings or {})))
        card = NET_CARD | {"name": path.name} if trained else NET_CARD
        folder.write_json(folder.net_card, card | {"trained": NET_CARD["trained"] | (trained or {})})
        words = ["--attack", "fgsm,pgd-sat", "--save", "kept", "--transfer", "runs/other"]
        kept = ("started", "versions", "plugins", "hardware", "data", "status", "seconds")
        manifest = {key: MANIFEST[key] for key in kept} | {"command": ["rkd", "eval", "runs/my-run", *words]}
        folder.write_json(folder.manifest, manifest)
        write_examples(folder.examples)
    return folder


VOID = {"meta", "link", "img", "br", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, and the text by the section's id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section = "top"
        self.texts: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes another"
        if tag == "section":
            self.section = "top"

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = f"{self.texts.get(self.section, '')} {data}"

    def text(self, section: str) -> str:
        return " ".join(self.texts.get(section, "").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]
