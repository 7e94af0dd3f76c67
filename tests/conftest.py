"""Every test starts from the same random state, on one thread, with a cache of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.registry.catalog import Catalog, load_catalog

from . import pretend_device


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if pretend_device.UNSUPPORTED is None:
        pretend_device.register()


@pytest.fixture(autouse=True)
def _same_start(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("RKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("RKD_DISABLE_PLUGINS", raising=False)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """Everything that the installed plugins provide."""
    return load_catalog()


@pytest.fixture
def short_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' AutoAttack takes 25 steps a search instead of 100: the same code at a quarter of the time."""
    pyautoattack = pytest.importorskip("pyautoattack")

    class Short(pyautoattack.AutoAttack):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 25

    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
