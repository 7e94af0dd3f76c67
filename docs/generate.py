"""Writes docs/reference.md from the components themselves: python docs/generate.py (a test checks it)."""

from __future__ import annotations

import inspect
from pathlib import Path

from rkd.cli.commands.info import defaults_texts, traits_text
from rkd.registry.catalog import Catalog, Entry, attack_traits
from rkd.registry.hooks import KINDS, Family
from rkd.registry.options import describe, plain
from rkd.registry.plugins import load_plugins

TITLES = {
    "loss": "Losses",
    "attack": "Attacks",
    "objective": "Objectives",
    "scheduler": "Schedulers",
    "student": "Student conversions",
    "extension": "Extensions",
    "model": "Models",
    "dataset": "Data sets",
    "augment": "Augmentations",
    "corruption": "Corruptions",
    "teacher": "Teacher sources",
}


def reference() -> str:
    """The page, for rkd's own components."""
    catalog = Catalog(load_plugins())
    lines = [
        "# Reference",
        "",
        "Every built-in component with its options. Made by `python docs/generate.py`; `rkd info NAME` shows the same",
        "with the method's formula and paper, for installed plugins too. A number may be written `8/255`; where it",
        "says schedule, `ramp(0, 0.3, until=0.4)`, `cosine(1, 0)`, `drops(1, 0.5, 0.75)`, `points(0:0, 0.3:1, 1:0)`",
        "and `onecycle(1, pct_start=0.3)` as well.",
    ]
    assert set(TITLES) == set(KINDS)
    for kind, title in TITLES.items():
        lines += ["", f"## {title}", ""]
        for entry in catalog.all():
            if entry.kind == kind and entry.plugin.distribution == "rkd-toolkit":
                lines += _entry(entry)
    return "\n".join(lines) + "\n"


def _entry(entry: Entry) -> list[str]:
    component = entry.component.component if isinstance(entry.component, Family) else entry.component
    lines = [f"- **`{entry.name}`** {entry.summary}"]
    roles = getattr(component, "roles", ())
    if roles and not isinstance(roles, property):
        lines.append(f"  - teachers: {', '.join(roles)}")
    defaults = getattr(component, "defaults", None)
    if isinstance(defaults, dict) and defaults:
        lines.append(f"  - brings: {', '.join(f'`{text}`' for text in defaults_texts(defaults))}")
    if entry.kind == "attack":
        lines.append(f"  - traits: {traits_text(attack_traits(component))}")
    fixed = _fixed(entry)
    shown = [
        f"`{option.name}` ({option.type}{'' if option.required else f'; {_default(option.default)}'})"
        for option in describe(component)
        if option.name not in fixed
    ]
    if shown:
        lines.append(f"  - options: {', '.join(shown)}")
    return lines


def _fixed(entry: Entry) -> set[str]:
    """Options that the name itself gives."""
    import re

    if not isinstance(entry.component, Family):
        return set()
    return set(re.compile(entry.component.pattern).groupindex)


def _default(value: object) -> str:
    if value is None:
        return "none"
    shown = plain(value)
    return inspect.cleandoc(str(shown)) if not isinstance(shown, list) else "[" + ", ".join(map(str, shown)) + "]"


if __name__ == "__main__":
    Path(__file__).with_name("reference.md").write_text(reference(), encoding="utf-8")
