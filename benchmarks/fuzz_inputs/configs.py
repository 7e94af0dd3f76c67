"""Recipes and settings."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from rkd.registry.config import parse
from rkd.registry.recipes import assignments, merge, read_recipe, recipes
from rkd.workflow.resolve import resolve

from .strange import NASTY_TEXT, catalog, mutated, scribbled, special, strange


def recipe(rng: random.Random, folder: Path) -> None:
    """A .toml file, read and resolved into components."""
    file = folder / "mine.toml"
    text = rng.choice(sorted(recipes().values()))
    kind = rng.random()
    if kind < 0.3:
        file.write_bytes(scribbled(rng, text.encode()))
        if kind < 0.03:
            special(rng, file)
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
