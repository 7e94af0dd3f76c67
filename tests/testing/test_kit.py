"""check_plugin: each component through the checks of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.registry.catalog import Catalog
from rkd.registry.hooks import KINDS
from rkd.registry.plugins import load_plugins
from rkd.testing import check_plugin
from rkd.testing.kit import _CHECKS

CODE = '''
from dataclasses import dataclass
from typing import ClassVar
from rkd.plugin import ConfigError, Family, RkdError, hookimpl, ops

class Sound:
    """Cross-entropy."""
    roles: ClassVar = ()
    defaults: ClassVar = {"scheduler": "rising"}
    def __call__(self, step):
        return {"only": ops.cross_entropy(step.student("clean"), step.y)}

class Averaged(Sound):
    """Averages over the batch."""
    def __call__(self, step):
        return {"only": ops.cross_entropy(step.student("clean"), step.y).mean()}

class Silent:
    def __call__(self, step):
        return {}

class Rising:
    """Of a term that has another name than usual."""
    def update(self, step, terms):
        return {"weight.only": 1.0 + step.progress}
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

@dataclass
class Folder:
    """Needs a path."""
    path: str
    def __call__(self):
        raise RkdError(f"there is no folder {self.path}")

class Broken:
    """Raises whatever."""
    def __call__(self, batch, noise):
        return 1 / 0

class Asking:
    """Wants an option that no type can demand."""
    def __call__(self, batch, noise):
        raise ConfigError("asking: give the number of classes")

class Writer:
    """Wants a package."""
    def __call__(self, student, folder):
        raise RkdError("type pip install what-it-needs")

@hookimpl
def rkd_exporters():
    return {"writer": Writer}

@hookimpl
def rkd_losses():
    return {"sound": Sound, "averaged": Averaged, "silent": Silent}

@hookimpl
def rkd_schedulers():
    return {"rising": Rising}

@hookimpl
def rkd_datasets():
    return {"folder": Folder, "folders:PATH": Family("folders:(?P<path>.+)", Folder, ("folders:x",))}

@hookimpl
def rkd_augments():
    return {"broken": Broken, "asking": Asking}
'''


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Of that file alone."""
    file = tmp_path_factory.mktemp("kit") / "kit.py"
    file.write_text(CODE)
    catalog = Catalog(load_plugins([file], disabled=["*"]))
    assert not catalog.plugins.broken, catalog.plugins.broken
    return catalog


def test_each_gets_its_verdict(catalog: Catalog) -> None:
    verdicts = {v.entry.name: (v.status, v.reason) for v in check_plugin(catalog, "file")}
    assert verdicts["sound"] == ("passed", "")
    assert verdicts["rising"] == ("passed", ""), "the terms are those of the loss that brings it"
    assert verdicts["averaged"][0] == "failed" and "only" in verdicts["averaged"][1]
    assert verdicts["silent"] == (
        "failed",
        "loss 'silent': its docstring must begin with one line that says what it is",
    )
    assert verdicts["folder"] == ("skipped", "it needs the option path: check it in a test of your own")
    assert verdicts["folders:PATH"] == ("skipped", "its images are not here: there is no folder x")
    assert verdicts["asking"] == ("skipped", "asking: give the number of classes")
    assert verdicts["writer"] == ("skipped", "type pip install what-it-needs")
    assert verdicts["broken"] == ("failed", "ZeroDivisionError: division by zero")


def test_one_kind_alone(catalog: Catalog) -> None:
    assert {v.entry.kind for v in check_plugin(catalog, "file", "dataset")} == {"dataset"}


def test_every_kind_is_checked() -> None:
    assert set(_CHECKS) == set(KINDS) - {"zoo"}, "an entry of a catalogue is data, and checked when it is read"


def test_nothing_of_others(catalog: Catalog, tmp_path: Path) -> None:
    assert list(check_plugin(catalog, "rkd-toolkit")) == []
