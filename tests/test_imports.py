"""Who may import whom (docs/architecture.md), and what must not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rkd

SOURCE = Path(rkd.__file__).parent
ROOMS = {
    "core": {"core"},
    "plugins": {"core", "plugins"},
    "registry": {"core", "registry"},
    "report": {"core", "report"},
    "testing": {"core", "registry", "testing"},
    "cli": {"core", "registry", "report", "testing", "cli", "api"},
}
FOREIGN = {
    "core": {"click", "rich", "torchvision", "timm", "pydantic", "sklearn", "matplotlib"},
    "registry": {"click", "rich"},
    "report": {"torch", "click", "rich"},
    "testing": {"pytest", "click", "rich"},
}
FILES = sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, by its full name; what only type checkers see is left out."""
    package = ["rkd", *path.relative_to(SOURCE).parts[:-1]]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_who_imports_whom(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "rkd":
            there = rest[0] if rest else ""
            public = there not in ROOMS and not (SOURCE / there).is_dir()
            assert there in ROOMS[room] or public, f"{room} must not import {name}"
            assert not (room == "plugins" and there == "api"), "plugins know no registry, also not by way of rkd.api"
        assert top not in FOREIGN.get(room, ()), f"{room} must not import {top}"


def test_the_rooms_are_all_there_are() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize(
    "modules",
    [
        "rkd",
        "rkd.registry.config",
        "rkd.registry.options",
        "rkd.registry.manager",
        "rkd.registry.catalog",
        "rkd.core.interfaces",
        "rkd.core.hookspecs",
        "rkd.core.schedules",
        "rkd.core.errors",
        "rkd.core.runfolder",
        "rkd.cli",
    ],
)
def test_without_torch(modules: str) -> None:
    """`rkd --help`, completion and the reading of recipes must be quick."""
    heavy = {"torch", "numpy", "sklearn", "torchvision", "timm", "matplotlib"}
    code = f"import sys, {modules}; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    for name in rkd.__all__:
        assert getattr(rkd, name) is not None
    assert set(rkd.__all__) <= set(dir(rkd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rkd.nothing
