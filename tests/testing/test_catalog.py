"""check_entry and check_method: what a component shows of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from rkd.registry.catalog import Catalog
from rkd.testing import check_entry, check_method

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
