"""Small finished runs, and a reporter that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rkd.registry.catalog import Catalog
from rkd.workflow.plan import Silent
from rkd.workflow.train import train_run


class Told(Silent):
    """Remembers messages and warnings."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def train(path: Path, catalog: Catalog, student: dict[str, Any]) -> Path:
    table = {
        "loss": {"name": "pgd-at"}, "epochs": 1, "student": student, "attack": {"name": "pgd", "steps": 1},
        "validate": {"limit": 20},
        "evaluate": {"attacks": ["pgd-sat"], "limit": 20, "checks": "off", "options": {"pgd-sat": {"steps": 2}}},
    }  # fmt: skip
    train_run(table, catalog, path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "small", catalog, {"model": "small-cnn", "width": 2})


@pytest.fixture(scope="session")
def linear_run(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "linear", catalog, {"model": "mlp", "layers": 0})
