"""`rkd info`: all there is to know about a component."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rkd.registry.hooks import KINDS
from rkd.storage.text import command

from ...complete import values
from ...options import App, json_option, pass_app, plugin_option
from ...reflow import reflowed

if TYPE_CHECKING:
    from ...terminal import Terminal


@click.command("info", short_help="Describe a component and its options.")
@click.argument("name", shell_complete=values(*KINDS))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Where several kinds have a component of that name.")
@json_option
@plugin_option
@pass_app
def info(app: App, name: str, kind: str | None) -> None:
    """Show a component's description, options and defaults; of losses side by side (rslad+igdm) what they share."""
    from rkd.registry.losses import create_loss

    with app.terminal.guarded():
        catalog = app.catalog()
        if "+" in name and kind in (None, "loss"):
            components = [create_loss(catalog, name, {}).facts(catalog)]
        else:
            components = [entry.facts() for entry in catalog.find_all(name, kind)]
    if app.json:
        app.terminal.json(components[0] if len(components) == 1 else {"components": components})
        return
    for number, item in enumerate(components):
        if number:
            app.terminal.result()
        if "parts" in item:
            _show_sum(item, app.terminal)
        else:
            show(item, app.terminal)


def show(item: Mapping[str, Any], terminal: Terminal) -> None:
    """What an entry's `facts()` tell."""
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
    _show_needs(item, [item], "the method's defaults", terminal)
    if item["traits"]:
        terminal.result(f"\ntraits: {traits_text(item['traits'])}", wrap=True)
    if item["known"]:
        terminal.result()
        terminal.table(["known of it", ("", "wrap")], [[name, text] for name, text in item["known"].items()])
    else:
        _show_options([(o["name"], o) for o in item["options"]], terminal)


def _show_sum(item: Mapping[str, Any], terminal: Terminal) -> None:
    names = [part["name"] for part in item["parts"]]
    terminal.result(f"loss {item['name']}", "bold")
    terminal.result("losses side by side: a term that an earlier one has, too, is called LOSS.TERM", wrap=True)
    for part in item["parts"]:
        terminal.result(f"\n{reflowed(part['description'].split(chr(10))[0], terminal.out.width)}")
        for formula in (paragraph for paragraph in part["about"].split("\n\n") if paragraph.startswith(" ")):
            terminal.result(f"\n{reflowed(formula, terminal.out.width)}")
    terminal.result(f"\neach by itself: {', '.join(command('info', name) for name in names)}", wrap=True)
    terminal.result(f"\nto cite them: {command('cite', item['name'])}")
    _show_needs(item, item["parts"], "their defaults", terminal)
    for text in item["contradictions"]:
        terminal.result(f"\nto be decided: {text}", wrap=True)
    _show_options([(f"{part['name']}.{o['name']}", o) for part in item["parts"] for o in part["options"]], terminal)


def _show_needs(item: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], defaults: str, terminal: Terminal) -> None:
    """What a method, of one or several losses, needs and brings along."""
    if item["roles"]:
        terminal.result(f"\nteachers, by role: {', '.join(item['roles'])}")
    if item["companions"]:
        texts = [f"{name} ({words})" for name, words in item["companions"].items()]
        terminal.result(f"\nnets beside the student: {', '.join(texts)}", wrap=True)
    for part in parts:
        if part["weights"]:
            texts = [f"{name} {weight_text(values)}" for name, values in part["weights"].items()]
            of = f" of {part['name']}" if len(parts) > 1 else ""
            terminal.result(f"\nweights of the terms{of}, 1 if none is named: {', '.join(texts)}", wrap=True)
    if item["defaults"]:
        terminal.result(f"\n{defaults}: {', '.join(defaults_texts(item['defaults']))}", wrap=True)


def _show_options(options: Sequence[tuple[str, Mapping[str, Any]]], terminal: Terminal) -> None:
    if options:
        terminal.result()
        rows = [[name, _default(option), option["type"]] for name, option in options]
        terminal.table(["option", "default", ("type", "wrap")], rows)
    else:
        terminal.result("\nno options")


def _default(option: Mapping[str, Any]) -> str:
    if "fixed" in option:
        return f"{option['fixed']} (by the name)"
    if option["required"]:
        return "required"
    value = option["default"]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def weight_text(values: Sequence[float]) -> str:
    """`0.8333`, or of a schedule `0 (start) 0.5 (middle) 1 (end)`: a weight at these three times of the training."""
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} (start) {texts[1]} (middle) {texts[2]} (end)"


def defaults_texts(defaults: Mapping[str, Any]) -> list[str]:
    """`attack = pgd`, `scheduler = anl + entropy-balance`: a method's defaults, one by one."""
    texts = {key: " + ".join(value) if isinstance(value, (list, tuple)) else value for key, value in defaults.items()}
    return [f"{key} = {value}" for key, value in texts.items()]


def traits_text(traits: Mapping[str, Any]) -> str:
    """`objective = ce, black_box`: the values that are words, and what holds; `bounded` where it does not."""
    words = [f"{name} = {value}" for name, value in traits.items() if isinstance(value, str)]
    words += [name for name, value in traits.items() if value is True and name != "bounded"]
    return ", ".join([*words, *(["keeps to no ball"] if traits.get("bounded") is False else [])])
