"""A student's card: every value is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import RkdError
from rkd.registry.catalog import Catalog
from rkd.storage.card import read_card, training_key
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import save_weights
from rkd.workflow.nets import load_run


def card(**changes: Any) -> dict[str, Any]:
    return {
        "model": "small-cnn", "options": {"width": 4}, "shape": [1, 8, 8], "classes": ["0", "1"], "mean": [0.3],
        "std": [0.4], "threat": {"norm": "Linf", "eps": 0.1, "step_size": 0.02},
    } | changes  # fmt: skip


def run_of(path: Path, content: Any, catalog: Catalog) -> RunFolder:
    path.mkdir()
    (path / "config.toml").write_text("epochs = 1\n")
    (path / "student.json").write_text(json.dumps(content))
    net = catalog.create("model", "small-cnn", {"width": 4})((1, 8, 8), 2)
    save_weights(path / "student.safetensors", net.state_dict())
    return RunFolder(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3}, {"model": "no-such-net"}, {"options": []}, {"options": {"width": -1}},
        {"options": {"nothing": 1}},
        {"shape": [1, 8]}, {"shape": [3, 100_000, 100_000]}, {"shape": [0, 8, 8]}, {"shape": [1, 8, True]},
        {"shape": "abc"}, {"classes": []}, {"classes": [1, 2]}, {"mean": []}, {"mean": [float("nan")]},
        {"mean": [1, 2, 3]},
        {"std": [0.0]}, {"std": ["x"]}, {"threat": {}}, {"threat": {"norm": "L7", "eps": 1, "step_size": 1}},
        {"threat": {"norm": "Linf", "eps": -1, "step_size": 1}}, {"model": "wrn600004-1", "options": {}},
        {"model": "timm:resnet18", "options": {"resize": 100_000}},
    ],
)  # fmt: skip
def test_cards_of_another_form(changes: dict[str, Any], tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(RkdError):
        load_run(run_of(tmp_path / "run", card(**changes), catalog).path, catalog)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", "NaN", '{"a": 1' + "0" * 5000 + "}", "", '"\\ud800"'])
def test_cards_that_are_no_table(content: str, tmp_path: Path, catalog: Catalog) -> None:
    folder = run_of(tmp_path / "run", card(), catalog)
    load_run(folder.path, catalog)
    folder.card.write_text(content)
    with pytest.raises(RkdError):
        read_card(folder)


def test_the_key_of_a_training() -> None:
    config = {"seed": 0, "epochs": 3, "loss": {"name": "ard"}, "evaluate": {"limit": 5}, "device": "cpu"}
    assert training_key(config) == training_key(config | {"seed": 1, "evaluate": {}, "device": "cuda", "name": "x"})
    assert training_key(config) == training_key(config | {"trackers": {"wandb": {}}})
    assert training_key(config) == training_key(dict(reversed(config.items())))
    assert training_key(config) != training_key(config | {"epochs": 4})
    assert training_key(config) != training_key(config | {"loss": {"name": "ard", "alpha": 1.0}})
