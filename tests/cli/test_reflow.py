"""Docstrings on a narrower page: no line is too long that may be broken, and no word is lost."""

from __future__ import annotations

import pytest

from rkd.cli.reflow import broken, reflowed
from rkd.registry.catalog import Catalog


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_component_fits(catalog: Catalog, width: int) -> None:
    for entry in catalog.all():
        facts = entry.facts()
        for text in (facts["description"], facts["about"]):
            found = reflowed(text, width)
            assert found.split() == text.split(), entry.name
            long = [line for line in found.split("\n") if len(line) > width]
            assert all(line.startswith(("|", "    --dataset", "References: ")) for line in long), (entry.name, long)


def test_lists_and_tables_stay() -> None:
    table = "| a | table of five or six words |\n| b | c |"
    text = f"Some words that\nare broken.\n\n- an item that goes\n  on\n- another\n\n{table}"
    assert reflowed(text, 25) == f"Some words that are\nbroken.\n\n- an item that goes on\n- another\n\n{table}"
    assert reflowed(text, 80) == text


def test_items_and_named_options_hang() -> None:
    listed = "It differs:\n- in one thing of some\n  length\n- and another"
    assert reflowed(listed, 15) == "It differs:\n- in one thing\n  of some\n  length\n- and another"
    named = "size: the side of\n    the square\nexif: as it says"
    assert reflowed(named, 16) == "size: the side\n    of the\n    square\nexif: as it says"


@pytest.mark.parametrize(("line", "expected"), [
    # Another equation of the line stands below the first one, what explains it further to the right.
    ("  y = a + b,    z = c", "  y = a + b,\n  z = c"),
    ("  y = a + b,    for all of them", "  y = a + b,\n      for all of\n      them"),
    # Before a plus or minus outside of all brackets; words last.
    ("  y = f(a + b) + g(c)", "  y = f(a + b)\n      + g(c)"),
    ("  y = f(a, b, c, d, e)", "  y = f(a, b, c,\n      d, e)"),
    ("  y = " + 20 * "a", "  y =\n      " + 20 * "a"),
    # Columns stay in their place.
    ("  one   y = f(a) + g(b)", "  one   y = f(a)\n            + g(b)"),
    ("  one   of few words", "  one   of few\n        words"),
    ("                    y = a + b", "      y = a + b"),
    ("  y = a", "  y = a"),
])  # fmt: skip
def test_formulas(line: str, expected: str) -> None:
    assert broken(line, 18) == expected
