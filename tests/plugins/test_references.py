"""references.bib: every paper that a built-in plugin names is there, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import rkd.plugins
from rkd.registry.catalog import Catalog, bibtex, reference_keys

FOLDER = Path(rkd.plugins.__file__).parent
TEXT = (FOLDER / "references.bib").read_text()
ENTRIES = bibtex(f"```bibtex\n{TEXT}```")


def test_named_and_kept_are_the_same() -> None:
    named = set()
    for path in FOLDER.rglob("*.py"):
        named |= set(reference_keys(ast.get_docstring(ast.parse(path.read_text())) or ""))
    assert named == set(ENTRIES)


def test_entries_are_whole_and_in_order() -> None:
    assert list(ENTRIES) == sorted(ENTRIES)
    for key, entry in ENTRIES.items():
        assert entry.count("{") == entry.count("}"), key
        for field in ("title", "author", "year"):
            assert re.search(rf"\b{field}\s*=", entry), f"{key} has no {field}"


def test_keys_of_a_docstring() -> None:
    assert reference_keys("A.\n\nReferences: one2018first, two2019,\n    three-x:y\n\nMore, text.") == [
        "one2018first", "two2019", "three-x:y",
    ]  # fmt: skip
    assert reference_keys("No references: none.") == []


def test_components_cite_what_their_module_names(catalog: Catalog) -> None:
    assert list(catalog.find("attack", "fgsm").citations()) == ["goodfellow2015explaining"]
    assert list(catalog.find("corruption", "fog").citations()) == ["hendrycks2019benchmarking"]
