"""Recipes: nested tables of settings, read from TOML files and from `--set`, merged and written."""

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from rkd.core.errors import ConfigError, RkdError, UnknownName
from rkd.storage.text import DEEPEST, did_you_mean, parse_toml, read_text, shown

Table = dict[str, Any]


def read_recipe(source: str | Path) -> Table:
    """A recipe by file or by the name of a shipped one. Raises ConfigError, UnknownName."""
    path = Path(source)
    if path.suffix == ".toml" or os.path.isfile(path):  # a text may be too long for a file's name
        try:
            text = read_text(path)
        except FileNotFoundError:
            raise RkdError(f"there is no recipe file {path}; `rkd recipes` lists the shipped ones") from None
    else:
        shipped = recipes()
        if str(source) not in shipped:
            raise UnknownName(
                f"there is no recipe {shown(str(source))}.{did_you_mean(str(source), shipped)} "
                f"Shipped: {', '.join(shipped)}; or give the path of a .toml file"
            )
        text = shipped[str(source)]
    try:
        return parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def recipes() -> dict[str, str]:
    """The shipped recipes: name -> text."""
    folder = resources.files("rkd") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def merge(*tables: Mapping[str, Any]) -> Table:
    """Nested tables, the later ones on top.

    A table of a component (one with a `name`) that names another component replaces the earlier table whole:
    the options of one attack mean nothing to another.
    """
    result: Table = {}
    for table in tables:
        for key, value in table.items():
            old = result.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping):
                other = "name" in value and "name" in old and value["name"] != old["name"]
                result[key] = dict(value) if other else merge(old, value)
            elif isinstance(value, Mapping):
                result[key] = merge(value)
            else:
                result[key] = value
    return result


def nested(flat: Mapping[str, Any]) -> Table:
    """`{"validate.select": "clean"}` as nested tables."""
    result: Table = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


def assignments(settings: Iterable[str]) -> Table:
    """`KEY=VALUE` texts of `--set` as a nested table. Raises ConfigError with every problem.

    A value is read as TOML where it is one (`3`, `true`, `[1, 2]`, `"text"`), else it is text (`8/255`, `uniform`).
    """
    result: Table = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if len(parts) > DEEPEST:
            problems.append(f"--set {key[:40]}...: no setting lies more than {DEEPEST} tables deep")
            continue
        if not equals or not all(parts):
            problems.append(f"--set {setting}: expected KEY=VALUE, such as --set loss.T=4 or --set attack.eps=8/255")
            continue
        table = result
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                problems.append(f"--set {setting}: {part!r} was set to a value before and is no table")
                break
        else:
            table[parts[-1]] = _value(text.strip())
    if problems:
        raise ConfigError(problems)
    return result


def _value(text: str) -> Any:
    try:
        table = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if len(table) == 1 else text  # a line break may not smuggle in more than the value


def toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, which has no None: what is None is left out."""
    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
