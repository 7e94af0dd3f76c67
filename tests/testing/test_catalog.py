"""check_entry and check_method: what a component shows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import pytest

from rkd import plugin, testing
from rkd.registry.catalog import Catalog
from rkd.testing import TinyParts, check_entry, check_method, load_catalog

from .conftest import says


@dataclass
class Quiet:
    _hidden: int = 0


@dataclass
class Wordy:
    __doc__ = "A summary that goes on and on. " * 5


@dataclass
class Hidden:
    """An option that nobody can type."""

    _hidden: int = 0


@pytest.mark.parametrize(
    ("component", "word"),
    [(Quiet, "its docstring must begin with one line"), (Wordy, "longer than 120"), (Hidden, "underscore")],
)
def test_entries_that_show_nothing(component: Any, word: str, catalog: Catalog) -> None:
    entry = replace(catalog.find("loss", "rslad"), component=component, name="mine")
    says(lambda: check_entry(entry), word)


def test_built_in_methods_pass(catalog: Catalog) -> None:
    check_method(catalog, "rslad")
    check_method(catalog, "ce", cited=False)


PLUGIN = '''"""Two methods of one's own.

```bibtex
@misc{author2026title, title = {A}, author = {B}, year = {2026}}
```
"""

from dataclasses import dataclass

from rkd.plugin import hookimpl, ops


@dataclass
class Mine:
    """A method without defaults."""

    def __call__(self, step):
        return {"clean": ops.cross_entropy(step.student(), step.y)}


@dataclass
class Other(Mine):
    """A method whose extension is not there."""

    defaults = {"extension": "nothing"}


@hookimpl
def rkd_losses():
    return {"mine": Mine, "other": Other}
'''


def test_a_strangers_method_by_what_is_public(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    found = load_catalog([path])
    check_method(found, "mine")
    check_entry(found.find("loss", "mine"))
    assert TinyParts(found).attack("fgsm")
    says(lambda: check_method(found, "other"), "defaults['extension']")


def test_the_kits_parameters_are_of_public_types() -> None:
    public = {id(getattr(module, name)) for module in (plugin, testing) for name in module.__all__}
    for name in testing.__all__:
        kit = getattr(testing, name)
        own = kit.__module__.startswith("rkd.testing")
        for function in [kit.__init__ if isinstance(kit, type) else kit] if own else []:
            hints = {key: hint for key, hint in get_type_hints(function).items() if key != "return"}
            for key, hint in hints.items():
                private = [one for one in parts_of(hint) if one.__module__.startswith("rkd.") and id(one) not in public]
                assert not private, f"{name}({key}): {private}"


def parts_of(hint: Any) -> Iterator[type]:
    """The classes in an annotation."""
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for inner in get_args(hint):
        yield from parts_of(inner) if not isinstance(inner, list) else chain.from_iterable(map(parts_of, inner))


class Bare:
    """No citation at all."""

    roles: ClassVar = ()
    weights: ClassVar = {}
    defaults: ClassVar = {"attack": "no-such-attack"}

    def __call__(self, step: Any) -> Any:
        raise NotImplementedError


def test_methods_that_cannot_be_cited_or_run(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(catalog.find("loss", "rslad"), component=Bare, name="bare")
    monkeypatch.setattr(
        catalog, "find", lambda kind, name, find=catalog.find: entry if name == "bare" else find(kind, name)
    )
    monkeypatch.setattr(catalog, "create", lambda kind, name, options=None: Bare())
    says(lambda: check_method(catalog, "bare"), "bibtex block")
    says(lambda: check_method(catalog, "bare", cited=False), "defaults['attack']")
