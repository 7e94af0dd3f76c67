"""The public door: `rkd.plugin` is all that a plugin needs, and nobody who writes one is shown another way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rkd
from rkd import plugin

ROOT = Path(__file__).parent.parent
PUBLIC = ("rkd", "rkd.plugin", "rkd.testing")
SHOWN = [
    *(ROOT / "examples").rglob("*.py"),
    ROOT / "README.md",
    *ROOT.glob("CONTRIBUTING.md"),
    *(ROOT / "docs").rglob("*.md"),
]


def test_it_holds_what_it_names() -> None:
    """`from rkd.plugin import *` gives what `__all__` says, each once."""
    assert len(plugin.__all__) == len(set(plugin.__all__))
    for name in plugin.__all__:
        assert getattr(plugin, name) is not None


def test_its_names_are_sorted_by_use_and_then_by_letter() -> None:
    """Each comment of `__all__` begins a group in alphabetical order."""
    text = Path(plugin.__file__).read_text()
    groups = text[text.index("__all__ = [") :].split("    # ")[1:]
    for group in groups:
        names = re.findall(r'^    "(\w+)",$', group, re.MULTILINE)
        assert names and names == sorted(names), group.splitlines()[0]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_examples_and_docs_import_public_names_alone(path: Path) -> None:
    for module, name in imported(path):
        assert module in PUBLIC, f"{path.name} imports {module}"
        if module == "rkd.plugin":
            assert name in plugin.__all__, f"{path.name} imports {name} from {module}"
        if module == "rkd":
            assert name in {*rkd.__all__, "plugin", "testing"}, f"{path.name} imports {name} from {module}"


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of rkd in a Python file, or in the Python blocks of a page."""
    text = path.read_text()
    fenced = re.findall(r"^ *(`{3,})python\n(.*?)^ *\1$", text, re.MULTILINE | re.DOTALL)
    blocks = [text] if path.suffix == ".py" else [code for _, code in fenced]
    for block in blocks:
        for node in ast.walk(ast.parse(_unindented(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rkd":
                yield from ((str(node.module), alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names if alias.name.startswith("rkd."))


def _unindented(block: str) -> str:
    lines = block.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)
