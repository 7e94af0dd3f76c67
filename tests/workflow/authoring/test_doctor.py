"""What is wrong with plugins, and what is not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rkd import __version__
from rkd.registry.catalog import Catalog
from rkd.registry.plugins import load_plugins
from rkd.workflow.authoring.doctor import SLOW, Diagnosis, diagnose

LOSS = "from rkd.plugin import hookimpl\n@hookimpl\ndef rkd_losses():\n    return {'mine': dict}\n"


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Diagnosis]]:
    """Installs `{distribution: (code, lines of its metadata)}` and no built-in plugin; diagnoses by distribution."""

    def examine(**packages: tuple[str, str]) -> dict[str, Diagnosis]:
        for name, (code, more) in packages.items():
            site = tmp_path / name
            info = site / f"{name}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}")
            (info / "entry_points.txt").write_text(f"[rkd]\n{name} = {name}_module\n")
            (site / f"{name}_module.py").write_text(code)
            monkeypatch.syspath_prepend(str(site))
            monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)
        catalog = Catalog(load_plugins(disabled=["*.*"]))
        return {one.plugin.distribution: one for one in diagnose(catalog) if not one.plugin.disabled}

    return examine


NEEDS = "Requires-Dist: rkd-toolkit>=0.1\n"


def test_a_healthy_one(examined: Callable[..., dict[str, Diagnosis]]) -> None:
    found = examined(healthy=(LOSS, NEEDS))["healthy"]
    assert (found.problems, found.hooks) == ([], {"loss": ["mine"]})
    assert 0 < found.seconds < 60


@pytest.mark.parametrize(
    ("code", "metadata", "problem"),
    [
        ("import does_not_exist\n", NEEDS, "could not be loaded: ModuleNotFoundError: .*does_not_exist"),
        ("def rkd_losses():\n    return {}\n", NEEDS, "registers nothing: it has no hook under @hookimpl"),
        (LOSS, "", 'does not say that it needs rkd: dependencies = \\["rkd-toolkit>='),
        (LOSS, "Requires-Dist: rkd_toolkit>=99.1\n", f"needs rkd-toolkit 99.1 or newer, and this is {__version__}"),
        (LOSS, "Requires-Dist: rkd-toolkit<0.2,>=0.1\n", "is for rkd-toolkit below 0.2, and this is"),
        (LOSS + "from rkd.core.types import Batch\n", NEEDS, "line 5: rkd.core.types is private and may move"),
        (LOSS + "import rkd.nets.net\n", NEEDS, "line 5: rkd.nets.net is private"),
    ],
)
def test_what_is_found(code: str, metadata: str, problem: str, examined: Callable[..., dict[str, Diagnosis]]) -> None:
    (found,) = examined(sick=(code, metadata))["sick"].problems
    assert re.search(problem, found)


def test_two_owners_of_a_name(examined: Callable[..., dict[str, Diagnosis]]) -> None:
    found = examined(first=(LOSS, NEEDS), second=(LOSS, NEEDS))
    assert "loss 'mine' is provided by second/second, too: users have to type one of" in found["first"].problems[0]
    assert "by first/first, too" in found["second"].problems[0]


def test_a_command_is_something(examined: Callable[..., dict[str, Diagnosis]]) -> None:
    code = "from rkd.plugin import hookimpl\n@hookimpl\ndef rkd_commands(cli):\n    pass\n"
    assert examined(commands=(code, NEEDS))["commands"].problems == []


def test_a_slow_import(examined: Callable[..., dict[str, Diagnosis]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rkd.workflow.authoring.doctor.SLOW", 0.0)
    assert SLOW == 1.0
    (found,) = examined(slow=(LOSS, NEEDS))["slow"].problems
    assert "s to import, at every command: import what is large inside of functions" in found
