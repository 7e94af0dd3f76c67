"""docs/gpu.md lists every branch that only CUDA takes, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import rkd

SOURCE = Path(rkd.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


def branches(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of the functions whose code, not words, speaks of `torch.cuda`, "cuda", NCCL or pinned memory."""
    for node in ast.iter_child_nodes(tree):
        inner = (*names, node.name) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names
        match node:
            case ast.Attribute(value=ast.Name("torch"), attr="cuda") | ast.Attribute(attr="pin_memory"):
                yield ".".join(names)
            case ast.keyword(arg="pin_memory" | "set_cuda_visible_devices"):
                yield ".".join(names)
            case ast.Constant(str(text)) if text == "cuda" or "nccl" in text:
                yield ".".join(names)
        yield from branches(node, inner)


def test_every_branch_that_only_cuda_takes_is_listed() -> None:
    found = {
        f"{path.relative_to(SOURCE).as_posix()}: {name}"
        for path in SOURCE.rglob("*.py")
        for name in branches(ast.parse(path.read_text()))
    }
    listed = {f"{file}: {name}" for file, name in re.findall(r"^\| `([\w/.]+)` `([\w.]+)`", PAGE.read_text(), re.M)}
    assert sorted(found - listed) == [] and sorted(listed - found) == []
