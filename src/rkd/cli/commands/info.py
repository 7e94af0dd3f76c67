"""`rkd info`: all there is to know about a component."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rkd.registry.hooks import KINDS
from rkd.storage.text import command

from ..complete import values
from ..options import App, json_option, pass_app, plugin_option

if TYPE_CHECKING:
    from ..terminal import Terminal


ITEM = r"(?:[-*]|\d+\.) "
"""How an item of a list begins."""


@click.command("info", short_help="Describe a component and its options.")
@click.argument("name", shell_complete=values(*KINDS))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Where several kinds have a component of that name.")
@json_option
@plugin_option
@pass_app
def info(app: App, name: str, kind: str | None) -> None:
    """Show a component's description, options and defaults."""
    with app.terminal.guarded():
        components = [entry.facts() for entry in app.catalog().find_all(name, kind)]
    if app.json:
        app.terminal.json(components[0] if len(components) == 1 else {"components": components})
        return
    for number, item in enumerate(components):
        if number:
            app.terminal.result()
        _show(item, app.terminal)


def _show(item: Mapping[str, Any], terminal: Terminal) -> None:
    terminal.result(f"{item['kind']} {item['name']}", "bold")
    terminal.result(f"from {item['distribution']} {item['version']} ({item['module']})", "dim")
    if item["examples"]:
        terminal.result(f"such as {', '.join(item['examples'])}")
    # BibTeX is for `rkd cite`.
    about = re.sub(r"\n*(```bibtex\n.*?```|References: [^\n]*)", "", item["about"], flags=re.DOTALL)
    for text in (item["description"], about):
        if text:
            terminal.result(f"\n{reflowed(text, terminal.out.width)}")
    if about != item["about"]:
        terminal.result(f"\nto cite it: {command('cite', item['name'])}")
    if item["roles"]:
        terminal.result(f"\nteachers, by role: {', '.join(item['roles'])}")
    if item["companions"]:
        texts = [f"{name} ({words})" for name, words in item["companions"].items()]
        terminal.result(f"\nnets beside the student: {', '.join(texts)}", wrap=True)
    if item["defaults"]:
        terminal.result(f"\nthe method's defaults: {', '.join(defaults_texts(item['defaults']))}", wrap=True)
    if item["traits"]:
        terminal.result(f"\ntraits: {traits_text(item['traits'])}", wrap=True)
    if item["options"]:
        terminal.result()
        rows = [[o["name"], _default(o), o["type"]] for o in item["options"]]
        terminal.table(["option", "default", ("type", "wrap")], rows)
    else:
        terminal.result("\nno options")


def reflowed(text: str, width: int) -> str:
    """Text whose lines were broken for a wider page, broken anew at `width`: by paragraph and item of a list. Indented
    and tabular paragraphs, and text that fits, stay as they are."""
    if max(map(len, text.split("\n"))) <= width:
        return text
    return "\n\n".join(_reflowed(paragraph, width) for paragraph in text.split("\n\n"))


def _reflowed(paragraph: str, width: int) -> str:
    if not re.match(ITEM, paragraph) and re.search(r"^(?: |\||#|```)", paragraph, re.MULTILINE):
        return paragraph
    return "\n".join(
        textwrap.fill(" ".join(item.split()), width, break_long_words=False, break_on_hyphens=False)
        for item in re.split(rf"\n(?={ITEM})", paragraph)
    )


def _default(option: Mapping[str, Any]) -> str:
    if "fixed" in option:
        return f"{option['fixed']} (by the name)"
    if option["required"]:
        return "required"
    value = option["default"]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def defaults_texts(defaults: Mapping[str, Any]) -> list[str]:
    """`attack = pgd`, `scheduler = anl + entropy-balance`: a method's defaults, one by one."""
    texts = {key: " + ".join(value) if isinstance(value, (list, tuple)) else value for key, value in defaults.items()}
    return [f"{key} = {value}" for key, value in texts.items()]


def traits_text(traits: Mapping[str, Any]) -> str:
    """`objective = ce, black_box`: the values that are words, and what holds; `bounded` where it does not."""
    words = [f"{name} = {value}" for name, value in traits.items() if isinstance(value, str)]
    words += [name for name, value in traits.items() if value is True and name != "bounded"]
    return ", ".join([*words, *(["keeps to no ball"] if traits.get("bounded") is False else [])])
