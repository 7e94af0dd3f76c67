"""Who may import whom, which files lie in a circle, where tests stand, what must not import torch, and who may ask
for attributes that may be missing.

Imports inside of functions and for type checkers alone count like any other. What does not hold yet stands in
`structure_exceptions.txt`, one line each; a line that is no longer needed is an error, so the list only shrinks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import rkd

SOURCE = Path(rkd.__file__).parent
TESTS = Path(__file__).parent
EXCEPTIONS = set((TESTS / "structure_exceptions.txt").read_text().split("\n")) - {""}

MAY_IMPORT = {
    "core": {"core"},
    "ops": {"core"},
    "storage": {"core.errors", "core.types", "storage"},
    "distributed": {"core", "distributed"},
    "data": {"core", "distributed", "data"},
    "nets": {"core", "ops", "data", "storage", "nets"},
    "registry": {"core", "storage.text", "registry"},
    "evaluation": {"core", "ops", "nets", "data", "distributed", "storage", "evaluation"},
    "engine": {"core", "nets", "engine"},
    "training": {"core", "nets", "data", "distributed", "storage", "evaluation", "training"},
    "profiling": {"core", "nets", "training", "profiling"},
    "export": {"core", "nets", "data", "evaluation", "storage", "export"},
    "plugins": {"plugin", "plugins"},
    "testing": {
        "core", "ops", "plugin", "nets", "data", "distributed", "storage", "evaluation", "export.formats", "training",
        "registry", "testing",
    },
    "workflow": {
        "core", "nets", "data", "distributed", "storage", "evaluation", "engine", "training", "profiling", "registry",
        "export", "workflow",
    },
    "report": {"core.errors", "core.types", "storage", "report"},
    "cli": {"workflow", "registry", "report", "core.errors", "storage.text", "testing.kit", "plugin", "cli"},
    "api": {"workflow", "registry", "report", "core.errors", "storage.text", "cli.notebook"},
    "__main__": {"cli"},
    "plugin": {
        "core", "ops", "data", "evaluation", "export.formats", "export.onnx", "nets", "registry.hooks",
        "registry.schedules", "registry.zoo", "storage", "training.tracking",
    },
    "__init__": {""},
}  # fmt: skip
"""Room or file in src/rkd -> rooms and modules that it may import."""

FOREIGN = {
    "core": {"click", "rich", "torchvision", "timm", "pydantic", "sklearn", "matplotlib"},
    "registry": {"click", "rich"},
    "workflow": {"click", "rich"},
    "report": {"torch", "click", "rich"},
    "testing": {"pytest", "click", "rich"},
}
"""Room -> packages of others that it must not import."""

TRIANGLE = {"core.interfaces", "core.step", "core.attack"}
"""A step makes the targets that attacks ask, and the contract names both: the one circle there may be."""

MOST_FILES = 12
"""In one folder, `__init__.py` not counted; the catalogues under `plugins` may be larger."""


TRAITS, MOST_PROBES = "core.traits", 10
"""The one file that reads optional attributes of components, and at how many places at most."""

NO_CAPABILITY = {
    "storage.files: getattr(os, 'O_NOFOLLOW', 0)": "a flag that not every system has",
    "storage.files: getattr(os, 'O_NONBLOCK', 0)": "a flag that not every system has",
    "storage.files: getattr(os, 'O_BINARY', 0)": "a flag that not every system has",
    "core.step: hasattr(error, '__notes__')": "Python sets it at the first note",
    "cli.group: getattr(error, '__notes__', [])": "Python sets it at the first note",
    "registry.catalog: getattr(loaded, '__doc__', None)": "of a module, or of None where it is loaded no more",
    "registry.catalog: getattr(loaded, '__file__', None)": "a module that is made and not read has none",
    "testing.data: hasattr(augment, 'variants')": "half of `FiniteAugment` is a mistake that an author is told of",
    "testing.data: getattr(images, 'dtype', images)": "whatever a component gave back, for a message",
    "testing.data: getattr(images, 'shape', ())": "whatever a component gave back, for a message",
    "testing.train: getattr(term, 'shape', ())": "whatever a component gave back, for a message",
    "testing.train: hasattr(mine, 'state_dict')": "half of `Stateful` is a mistake that an author is told of",
    "testing.train: hasattr(mine, 'load_state_dict')": "half of `Stateful` is a mistake that an author is told of",
    "plugins.datasets.torchvision: hasattr(reader, 'train_list')": "torchvision's data sets differ",
    "plugins.datasets.torchvision: hasattr(reader, 'split_list')": "torchvision's data sets differ",
    "plugins.datasets.torchvision: hasattr(reader, 'resources')": "torchvision's data sets differ",
    "plugins.models.torchvision: hasattr(net, 'transform_input')": "torchvision's nets differ",
}
"""Where else an attribute may be missing -> why none of these is a capability that a part of rkd may have."""


def module_of(path: Path) -> str:
    """`core.step` for src/rkd/core/step.py, `core` for src/rkd/core/__init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def imported(path: Path) -> frozenset[str]:
    """Every name that a file imports anywhere, in full: `rkd.ops`, `rkd.core.step.Step`, `torch.nn`."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    package = ["rkd", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def modules_imported(path: Path) -> set[str]:
    """The modules of rkd that a file imports, as in FILES."""
    modules = set()
    for name in imported(path):
        top, *rest = name.split(".")
        if top != "rkd":
            continue
        while rest and ".".join(rest) not in FILES:
            rest.pop()
        modules.add(".".join(rest) or "__init__")
    return modules


def allowed(module: str, other: str) -> bool:
    """Whether MAY_IMPORT lets `module` import `other`."""
    rules = MAY_IMPORT[module.split(".")[0]]
    if other == "__init__":  # the version
        return True
    return any(other == rule or other.startswith(f"{rule}.") for rule in rules)


def circles() -> list[set[str]]:
    """Files that import one another, directly or by way of others."""
    graph = {module: modules_imported(path) & set(FILES) - {module} for module, path in FILES.items()}
    reach = {module: _reached(module, graph) for module in graph}
    groups = [{other for other in reach[module] if module in reach[other]} | {module} for module in graph]
    return [set(group) for group in {frozenset(group) for group in groups} if len(group) > 1]


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - reached:
            reached.add(other)
            waiting.append(other)
    return reached


def violations() -> set[str]:
    """All that the tables above do not allow, one line each."""
    lines = set()
    for module, path in FILES.items():
        for other in modules_imported(path):
            if not allowed(module, other):
                lines.add(f"{module} imports {other}")
        for name in imported(path):
            if name.split(".")[0] in FOREIGN.get(module.split(".")[0], ()):
                lines.add(f"{module} imports {name.split('.')[0]}")
    for circle in circles():
        lines |= {f"{module} lies in a circle" for module in circle if not circle <= TRIANGLE}
    for folder in {path.parent for path in FILES.values()}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        name = folder.relative_to(SOURCE).as_posix()
        if count > MOST_FILES and not name.startswith("plugins"):
            lines.add(f"{name} has more than {MOST_FILES} files")
    return lines | unmirrored()


def unmirrored() -> set[str]:
    """Files of src without a test of their own, and tests of no file.

    A file's tests may be several (`test_pages.py`, `test_pages_in_browser.py`); those of plugins may cover a folder."""
    lines = set()
    for module, path in FILES.items():
        if path.name == "__init__.py" or module.startswith("plugins."):
            continue
        *folders, name = module.split(".")
        if not (TESTS.joinpath(*folders) / f"test_{name.strip('_')}.py").exists():
            lines.add(f"{module} has no test of its own")
    rooms = {module.split(".")[0] for module in FILES if "." in module} - {"plugins"}
    for path in TESTS.rglob("test_*.py"):
        *folders, name = path.relative_to(TESTS).with_suffix("").parts
        own = [file for file in FILES if file.split(".")[:-1] == folders]
        covered = any(f"{name}_".startswith(f"test_{file.split('.')[-1]}_") for file in own)
        if folders and folders[0] in rooms and not covered:
            lines.add(f"tests/{path.relative_to(TESTS).as_posix()} tests no file")
    return lines


def test_structure() -> None:
    """Nothing beyond the exceptions."""
    assert sorted(violations() - EXCEPTIONS) == []


def test_every_exception_is_needed() -> None:
    """Take the lines out of structure_exceptions.txt that no longer hold."""
    assert sorted(EXCEPTIONS - violations()) == []


def probes() -> list[str]:
    """Every `hasattr` and every `getattr` with a default: the file and what it says."""
    lines = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                asked = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
                lines += [f"{module}: {ast.unparse(node)}"] if asked else []
    return lines


def test_capabilities_are_declared_and_read_in_one_file() -> None:
    outside = {line for line in probes() if not line.startswith(f"{TRAITS}: ")}
    assert sorted(outside - NO_CAPABILITY.keys()) == [], f"declare it in a protocol, or in {TRAITS}"
    assert sorted(NO_CAPABILITY.keys() - outside) == [], "needed no more"
    assert sum(line.startswith(f"{TRAITS}: ") for line in probes()) <= MOST_PROBES


def test_every_room_is_in_the_table() -> None:
    assert {module.split(".")[0] for module in FILES} - {"recipes"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "modules",
    [
        "rkd",
        "rkd.registry.config",
        "rkd.registry.options",
        "rkd.registry.plugins",
        "rkd.registry.catalog",
        "rkd.core.interfaces",
        "rkd.core.traits",
        "rkd.core.hooks",
        "rkd.registry.schedules",
        "rkd.core.errors",
        "rkd.storage.runfolder",
        "rkd.cli",
    ],
)
def test_without_torch(modules: str) -> None:
    """`rkd --help`, completion and the reading of recipes must be quick."""
    heavy = {"torch", "numpy", "sklearn", "torchvision", "timm", "matplotlib"}
    code = f"import sys, {modules}; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_imports_no_compiler() -> None:
    """Triton and dynamo take some 150 MiB and seconds: what needs them imports them when it does."""
    code = "import sys, rkd.api, rkd.workflow.train; print({'triton', 'torch._dynamo'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def test_public_names() -> None:
    for name in rkd.__all__:
        assert getattr(rkd, name) is not None
    assert set(rkd.__all__) <= set(dir(rkd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rkd.nothing
