"""What the Tab key offers."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from rkd.cli import cli
from rkd.workflow import folders


def offered(*words: str) -> list[str]:
    *before, last = words
    items = ShellComplete(cli, {}, "rkd", "_RKD_COMPLETE").get_completions(list(before), last)
    return [item.value for item in items if item.type != "file"]


@pytest.mark.slow
def test_values_of_options() -> None:
    assert offered("run", "--loss", "rs") == ["rslad"]
    assert offered("run", "--student", "resnet18+a") == ["resnet18+aux-bn"]
    assert "resnet18" in offered("run", "--student", "res") and "aux-bn" not in offered("run", "--student", "")
    assert offered("run", "--evaluate", "fgsm,pgd-s") == ["fgsm,pgd-sat"]
    assert "robust=wrn28-10" in offered("run", "--teacher", "robust=wrn28")
    assert "robust=zoo:fare2-clip" in offered("run", "--teacher", "robust=zoo:f")
    assert offered("teachers", "show", "fare2") == ["fare2-clip"] == offered("teachers", "fetch", "fare2")
    assert "digits-rslad" in offered("run", "digits") and offered("recipes", "nothing") == []
    assert "pgd" in offered("info", "pg")


def test_runs() -> None:
    for place in ("runs/mine/config.toml", "runs/kept/evaluation.json", "other/there/config.toml", "runs/no/thing"):
        Path(place).parent.mkdir(parents=True)
        Path(place).touch()
    assert offered("eval", "") == ["kept", "mine"] and offered("compare", "mine", "k") == ["kept"]
    assert offered("run", "--out", "other", "--resume", "") == ["there"]


def test_plugins_are_loaded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered("run", "--loss", "rs") == ["rslad"]
    monkeypatch.setattr(folders, "load_catalog", lambda: pytest.fail("the names are known"))
    assert offered("run", "--loss", "rs") == ["rslad"]
    file = cache / "names.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"installed": []}))
    monkeypatch.setattr(folders, "load_catalog", lambda: click.get_current_context().exit(9))
    with pytest.raises(RuntimeError):  # loaded anew: other plugins are installed
        offered("run", "--loss", "rs")
