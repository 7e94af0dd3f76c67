"""A transcript for each kind: the package is written, its test is green, its component is what rkd asks for."""

from __future__ import annotations

import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import RkdError
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.hooks import KINDS
from rkd.testing import check_component
from rkd.workflow.authoring.new import USES, new_plugin

SLOW = {"extension"}
"""A check of some seconds."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One package a kind."""
    place = tmp_path_factory.mktemp("packages")
    return {kind: new_plugin(f"my-own-{kind}", kind, place) for kind in USES}


@pytest.fixture(scope="module")
def written(packages: dict[str, Path]) -> Catalog:
    """A catalog with the plugins of all packages, as `--plugin` loads them."""
    return load_catalog([next(folder.glob("*.py")) for folder in packages.values()])


def kinds() -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in USES]


def test_every_kind_has_a_template() -> None:
    assert set(USES) == set(KINDS)


@pytest.mark.parametrize("kind", kinds())
def test_its_own_test_is_green(kind: str, packages: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    folder = packages[kind]
    monkeypatch.syspath_prepend(str(folder))
    tests = runpy.run_path(str(folder / "tests" / f"test_rkd_my_own_{kind}.py"))
    run = [test for name, test in tests.items() if name.startswith("test_")]
    assert run
    for test in run:
        test(*([tmp_path] if inspect.signature(test).parameters else []))


@pytest.mark.parametrize("kind", kinds())
def test_what_it_provides(kind: str, written: Catalog) -> None:
    assert not written.plugins.broken, [(plugin.name, plugin.error) for plugin in written.plugins.broken]
    (entry,) = [e for e in written.all() if e.plugin.distribution == "file" and e.kind == kind]
    assert entry.name == ("my-own-zoo-resnet18" if kind == "zoo" else f"my-own-{kind}")
    if kind not in SLOW:  # its own test has done so
        check_component(written, entry)


def test_the_package_is_whole(packages: dict[str, Path]) -> None:
    folder = packages["loss"]
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"__pycache__"}
    assert {".github/workflows/test.yml", ".gitignore", "README.md", "pyproject.toml", "rkd_my_own_loss.py"} <= files
    table = tomllib.loads((folder / "pyproject.toml").read_text())
    assert table["project"]["entry-points"]["rkd"] == {"my-own-loss": "rkd_my_own_loss"}
    assert (table["project"]["name"], table["project"]["license"]) == ("rkd-my-own-loss", "MIT")
    for each in packages.values():
        for file in each.rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                assert not re.search("__[A-Z]+__", file.read_text()), f"{file} has a word that is not filled in"


@pytest.mark.parametrize(
    ("name", "kind", "licence", "problem"),
    [
        ("Mine", "loss", "MIT", "'Mine' is no name for a plugin: small letters, digits and hyphens, such as my-loss"),
        ("../mine", "loss", "MIT", "is no name for a plugin"),
        ("mine", "los", "MIT", r"no template for the kind 'los'\. Did you mean loss"),
        ("mine", "loss", 'M"IT', "expected an SPDX name"),
    ],
)
def test_what_is_refused(name: str, kind: str, licence: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RkdError, match=problem):
        new_plugin(name, kind, tmp_path, licence)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    new_plugin("rkd-mine", "loss", tmp_path)
    with pytest.raises(RkdError, match="rkd-mine exists already"):
        new_plugin("mine", "attack", tmp_path)
    with pytest.raises(RkdError, match="choose another place"):
        (tmp_path / "file").write_text("")
        new_plugin("mine", "loss", tmp_path / "file" / "deeper")


@pytest.mark.slow
def test_installed_by_pip_and_tested_by_pytest(tmp_path: Path) -> None:
    """As its README says, in a folder of its own."""
    folder, site = new_plugin("mine", "scheduler", tmp_path), tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(folder)], check=True, capture_output=True)
    assert (site / "rkd_mine-0.1.0.dist-info" / "entry_points.txt").read_text().strip() == "[rkd]\nmine = rkd_mine"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
