"""Pages that are made from the components and commands themselves.

`python docs/generate.py` writes docs/reference.md, which is kept in git (a test checks it); the build of the site
(`conf.py`) writes the rest: a page for each method, attack and model, and one for the command line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import torch

from rkd.cli import cli
from rkd.cli.commands.lookup.info import defaults_texts, traits_text
from rkd.cli.options import Grouped
from rkd.registry.catalog import Catalog, Entry, attack_traits, load_catalog
from rkd.registry.hooks import KINDS, Family
from rkd.registry.options import describe, plain
from rkd.registry.recipes import read_recipe, recipes

DOCS = Path(__file__).parent
SOURCE = "https://github.com/rkd-toolkit/rkd/blob/main/src"

TITLES = {
    "loss": "Losses",
    "attack": "Attacks",
    "objective": "Objectives",
    "scheduler": "Schedulers",
    "student": "Student conversions",
    "extension": "Extensions",
    "exporter": "Exporters",
    "tracker": "Trackers",
    "model": "Models",
    "dataset": "Data sets",
    "augment": "Augmentations",
    "corruption": "Corruptions",
    "teacher": "Teacher sources",
    "zoo": "Teachers that can be had",
}


catalog: Callable[[], Catalog] = cache(load_catalog)


def entries(kind: str) -> list[Entry]:
    """rkd's own components of a kind; installed plugins have pages of their own."""
    return [each for each in catalog().all() if each.kind == kind and each.plugin.distribution == "rkd-toolkit"]


def reference() -> str:
    """The page, for rkd's own components."""
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
        for entry in entries(kind):
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
    if not isinstance(entry.component, Family):
        return set()
    return set(re.compile(entry.component.pattern).groupindex)


def _default(value: object) -> str:
    if value is None:
        return "none"
    shown = plain(value)
    return inspect.cleandoc(str(shown)) if not isinstance(shown, list) else "[" + ", ".join(map(str, shown)) + "]"


def write_pages(docs: Path) -> None:
    """A folder each for methods, attacks and models, and commands.md."""
    costs = _table(docs / "results" / "methods-cost.md")
    with_loss = _recipes_by_loss()
    _write_folder(
        docs / "methods",
        """# Methods

A method is a loss with the attack, objective and scheduler that it brings; each can be exchanged. The columns count
passes of a batch through the student, and through all teachers, in one training step
([how](../results/methods-cost.md)).
""",
        ("teachers", "student, teachers"),
        {
            entry: (
                [", ".join(entry.facts()["roles"]) or "none", _passes(costs.get(entry.name))],
                _method(entry, costs.get(entry.name), with_loss.get(entry.name, [])),
            )
            for entry in entries("loss")
        },
    )
    queries = _table(docs / "results" / "attacks-cost.md")
    _write_folder(
        docs / "attacks",
        """# Attacks

For training and for evaluation. The column counts passes of each attacked image through a robust student
([how](../results/attacks-cost.md)).
""",
        ("forwards, backwards",),
        {
            entry: ([", ".join(queries.get(entry.name, ["-"])[:2])], _attack(entry, queries.get(entry.name)))
            for entry in entries("attack")
        },
    )
    _write_folder(
        docs / "models",
        """# Models

Students and teachers by name. Sizes are those of colour images of 32 x 32 and ten classes; a multiplication with its
addition is one MAC, counted in convolutions and linear layers.
""",
        ("parameters", "MACs"),
        {entry: (next(iter(_sizes(entry).values())), _model(entry)) for entry in entries("model")},
    )
    (docs / "commands.md").write_text("\n".join(_commands()), encoding="utf-8")


def _recipes_by_loss() -> dict[str, list[str]]:
    """Shipped recipes by the methods that they use."""
    found: dict[str, list[str]] = {}
    for recipe in recipes():
        for loss in read_recipe(recipe).get("loss", {}).get("name", "").split("+"):
            found.setdefault(loss, []).append(recipe)
    return found


def _write_folder(
    folder: Path, about: str, columns: Sequence[str], pages: dict[Entry, tuple[list[str], list[str]]]
) -> None:
    """A page for each entry, and an index of them all with each entry's cells in `columns`."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    index = [about, *_header("name", "", *columns)]
    for entry, (cells, lines) in pages.items():
        index.append(_row(f"[`{entry.name}`]({_slug(entry)}.md)", entry.summary, *cells))
        (folder / f"{_slug(entry)}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    index += ["", "```{toctree}", ":hidden:", ":titlesonly:", "", *map(_slug, pages), "```", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


def _method(entry: Entry, cost: list[str] | None, known: list[str]) -> list[str]:
    facts = entry.facts()
    words = [
        f"Teachers, in the order of `--teacher`: {', '.join(facts['roles'])}." if facts["roles"] else "No teacher."
    ]
    if facts["companions"]:
        texts = [f"{name} ({what})" for name, what in facts["companions"].items()]
        words.append(f"Nets beside the student: {', '.join(texts)}.")
    if facts["defaults"]:
        words.append(f"It brings {', '.join(f'`{text}`' for text in defaults_texts(facts['defaults']))}.")
    lines = [
        *_head(entry, f"rkd run --loss {entry.name}", f"rkd run --dry-run --loss {entry.name}"),
        " ".join(words),
        "",
        *_about(entry),
        *_options(entry, "loss"),
    ]
    if cost:
        lines += [
            "## Cost",
            "",
            "Passes of a whole batch in one training step with its own attack: forwards with a backward to the",
            "weights, with one to the images (the search), and alone. Companions count as students",
            "([how it was counted](../results/methods-cost.md)).",
            "",
            *_header("", "to the weights", "to the images", "alone"),
            _row("student", *cost[0:3]),
            _row("teachers", *cost[3:6]),
            "",
        ]
    if known:
        lines += ["## Recipes", "", "Settings of papers; only those on digits and MNIST were run to the end here.", ""]
        lines += [
            "```",
            *(f"rkd run {name}{'' if 'digits' in name else ' --data-dir DATA'}" for name in known),
            "```",
            "",
        ]
    return lines + _source(entry)


def _attack(entry: Entry, cost: list[str] | None) -> list[str]:
    words = traits_text(attack_traits(entry.factory))
    source = " --set attack.source=runs/b" if entry.name == "transfer" else ""
    lines = [
        *_head(entry, f"rkd eval runs/my-run --attack {entry.name}{source}"),
        *([f"[Declared](../contributing.md#what-an-attack-declares): {words}.", ""] if words else []),
        *_about(entry),
        *_options(entry, "attack"),
    ]
    if cost:
        lines += ["## Cost", ""]
        lines += [
            f"Of each attacked image {cost[0]} forwards and {cost[1]} backwards, with its own settings, through the"
        ]
        lines += ["robust student of [this count](../results/attacks-cost.md)."]
        lines += [""]
    return lines + _source(entry)


def _model(entry: Entry) -> list[str]:
    return [
        *_head(entry, f"rkd run --student {_names(entry)[0]} --loss rslad"),
        *_about(entry),
        *_options(entry, "student"),
        "## Size",
        "",
        "For colour images of 32 x 32 and ten classes, with the options as they are:",
        "",
        *_header("name", "parameters", "MACs"),
        *(_row(f"`{name}`", *sizes) for name, sizes in _sizes(entry).items()),
        "",
        *_source(entry),
    ]


def _head(entry: Entry, *commands: str) -> list[str]:
    return [f"# {entry.name}", "", *entry.description.split("\n"), "", "```", *commands, "```", ""]


def _about(entry: Entry) -> list[str]:
    """The module's own words: formula, terms, where official code differs."""
    text = re.sub(r"\n*(```bibtex\n.*?```|References: [^\n]*)", "", entry.facts()["about"], flags=re.DOTALL)
    # An indented formula right below a line would be part of its paragraph.
    text = re.sub(r"(?m)^(\S.*)\n(?=    \S)", r"\1\n\n", text)
    return ["## What it computes", "", *text.split("\n"), ""]


def _options(entry: Entry, setting: str) -> list[str]:
    fixed = _fixed(entry)
    shown = [option for option in describe(entry.factory) if option.name not in fixed]
    if not shown:
        return []
    lines = ["## Options", "", *_header("option", "type", "default")]
    for option in shown:
        default = "required" if option.required else _default(option.default)
        lines.append(_row(f"`--set {setting}.{option.name}=`", option.type, f"`{default}`"))
    return [*lines, ""]


def _source(entry: Entry) -> list[str]:
    module = entry.factory.__module__
    lines = ["## Source", "", f"[`{module}`]({SOURCE}/{module.replace('.', '/')}.py)"]
    for text in entry.citations().values():
        lines += ["", "```bibtex", text, "```"]
    return lines


def _names(entry: Entry) -> list[str]:
    """Names to try: of a family its examples."""
    return list(entry.component.examples) if isinstance(entry.component, Family) else [entry.name]


@cache
def _sizes(entry: Entry) -> dict[str, list[str]]:
    """Parameters and MACs of one image by name. Not of other libraries' nets: not all of them can be counted so."""
    if "name" in _fixed(entry):
        return {name: ["-", "-"] for name in _names(entry)}
    counted = {name: _count(name) for name in _names(entry)}
    return {name: [f"{parameters:,}", f"{macs / 1e6:,.1f} M"] for name, (parameters, macs) in counted.items()}


def _count(model: str) -> tuple[int, int]:
    """Parameters, and multiplications of one image in convolutions and linear layers, seen in a forward."""
    with torch.device("meta"):  # no time for random weights
        net = catalog().create("model", model)((3, 32, 32), 10).eval()
    net.to_empty(device="cpu")
    macs = 0

    def add(layer: torch.nn.Module, inputs: object, out: torch.Tensor) -> None:
        nonlocal macs
        macs += out.numel() * layer.weight[0].numel()

    for layer in net.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    return sum(weight.numel() for weight in net.parameters()), macs


def _passes(cost: list[str] | None) -> str:
    return "-" if cost is None else f"{sum(map(int, cost[0:3]))}, {sum(map(int, cost[3:6]))}"


def _table(page: Path) -> dict[str, list[str]]:
    """The table between a page's marks: its first column to the others."""
    text = page.read_text(encoding="utf-8").partition("<!-- table -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def _header(*columns: str) -> list[str]:
    return [_row(*columns), "|" + "---|" * len(columns)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _slug(entry: Entry) -> str:
    return re.sub(r"[^a-z0-9]+", "-", entry.name.lower())


def _commands() -> Iterator[str]:
    yield "# Command line"
    yield "\nWhat `rkd COMMAND --help` says, on one page."
    yield from _command(cli, "rkd")


def _command(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f"\n## {name}\n\n```\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield from (inspect.cleandoc(text).replace("\b\n", "") + "\n" for text in (command.help, command.epilog) if text)
    records = {p.name: record for p in command.get_params(context) if (record := p.get_help_record(context))}
    groups = command.groups if isinstance(command, Grouped) else {}
    for heading, names in groups.items():
        yield f"**{heading}**\n"
        yield from _definitions([records.pop(each) for each in names.split() if each in records])
    if groups:
        yield "**Everything else**\n"
    yield from _definitions(list(records.values()))
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from _command(command.commands[each], f"{name} {each}")


def _definitions(records: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield from (f"`{option}`\n: {text}\n" for option, text in records if text)


if __name__ == "__main__":
    (DOCS / "reference.md").write_text(reference(), encoding="utf-8")
