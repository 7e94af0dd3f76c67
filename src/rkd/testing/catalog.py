"""What a component shows of itself: its summary, its citation, its defaults."""

import inspect
import re
import sys

from rkd.core.errors import RkdError
from rkd.core.traits import LossTraits, declared
from rkd.registry.catalog import Catalog, Entry, bibtex, reference_keys
from rkd.registry.hooks import Family
from rkd.registry.options import describe

from .state import require


def check_entry(entry: Entry) -> None:
    """Raise AssertionError unless `rkd list-plugins` and `rkd info` have something to show for the component:
    `load_catalog().find("attack", "mine")`, say."""
    who = f"{entry.kind} {entry.name!r}"
    require(entry.summary, f"{who}: its docstring must begin with one line that says what it is")
    require(len(entry.summary) <= 120, f"{who}: the first line of its docstring is longer than 120 characters")
    component = entry.component.component if isinstance(entry.component, Family) else entry.component
    for option in describe(component):
        require(not option.name.startswith("_"), f"{who}: the option {option.name!r} must not begin with an underscore")


def check_method(catalog: Catalog, name: str, *, cited: bool = True) -> None:
    """Raise AssertionError unless the loss `name` is a method: cited, and everything its defaults name exists.

    `catalog`: `load_catalog()`, of the installed plugins, or `load_catalog(["my_method.py"])`. `cited`: whether its
    docstring must name its paper.
    """
    entry = catalog.find("loss", name)
    check_entry(entry)
    who = f"the method {name!r}"
    if cited:
        text = (inspect.getdoc(entry.component) or "") + (sys.modules[entry.component.__module__].__doc__ or "")
        citations = bibtex(text) | entry.citations()
        require(citations, f"{who}: its docstring needs a ```bibtex block, or `References: KEY` with a references.bib")
        for key in reference_keys(text):
            require(key in citations, f"{who}: no references.bib beside it or above it holds {key}")
        for block in citations.values():
            for field in ("title", "author", "year"):
                require(re.search(rf"\b{field}\s*=", block), f"{who}: its bibtex has no {field}")
            require(block.count("{") == block.count("}"), f"{who}: the braces of its bibtex do not match")
    defaults = declared(catalog.create("loss", name), LossTraits).defaults
    for kind in ("attack", "objective", "scheduler", "extension"):
        if kind in defaults:
            names = defaults[kind]
            try:
                for each in [names] if isinstance(names, str) else names:
                    catalog.find(kind, each)
            except RkdError as error:
                raise AssertionError(f"{who}: defaults[{kind!r}]: {error}") from None
    options = {key.removeprefix("attack."): v for key, v in defaults.items() if key.startswith("attack.")}
    if options:
        require("attack" in defaults, f"{who} sets options of an attack but names none")
        try:
            catalog.create("attack", defaults["attack"], options)
        except RkdError as error:
            raise AssertionError(f"{who}: defaults of its attack: {error}") from None
    require("objective" not in defaults or "attack" in defaults, f"{who} names an objective but no attack")
