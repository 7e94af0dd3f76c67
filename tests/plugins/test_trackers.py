"""The built-in trackers, each read back from what it wrote: the points of a run that was stopped and went on."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import ConfigError, Stopped
from rkd.core.hooks import hookimpl
from rkd.registry.catalog import load_catalog
from rkd.storage.runfolder import RunFolder
from rkd.workflow.plan import Silent
from rkd.workflow.train import train_run

CATALOG = load_catalog()
STEPS = [2, 4, 6, 8]
"""Of eight in two epochs, the first part stopped after step 3."""


class StopsAt(Silent):
    """Stops a run after a step, counted from 1; 0: not at all."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.notices: list[str] = []

    def training(self, title: str) -> Mapping[str, Any]:
        return {"stops": self}

    @hookimpl
    def rkd_stop(self, run) -> bool | None:
        return run.state.epoch * len(run.loader) + run.state.batch == self.step or None

    @hookimpl
    def rkd_notice(self, run, text: str) -> None:
        self.notices.append(text)


def report(folder: RunFolder) -> Path:
    folder.page.write_text("<p>report</p>")
    return folder.page


def stopped_and_continued(path: Path, name: str, **options: Any) -> None:
    """A run of two epochs of four steps with the tracker; the point of step 2 is logged before it stops, 4 after."""
    table = {
        "loss": {"name": "ce"}, "student": {"model": "small-cnn", "width": 4}, "epochs": 2, "batch_size": 350,
        "data": {"validation": 0.05}, "validate": {"steps": 0, "limit": 20, "select": "clean"},
        "evaluate": {"attacks": ["fgsm"], "limit": 20, "checks": "off", "examples": 0},
        "trackers": {name: {"every": 2, **options}},
    }  # fmt: skip
    with pytest.raises(Stopped):
        train_run(table, CATALOG, path, StopsAt(3), report=report)
    reporter = StopsAt(0)
    train_run(table, CATALOG, path, reporter, report=report, resume=True)
    assert reporter.notices == []


def values(path: Path) -> dict[tuple[str, int], float]:
    """What the tracker must have of the epochs and the result, by name and number."""
    folder = RunFolder(path)
    found = {(f"epoch/{key}", line["epoch"] + 1): value for line in folder.history() for key, value in line.items()
             if key != "epoch"}  # fmt: skip
    student = folder.read_json(folder.evaluation)["student"]
    final = {"clean": student["clean"], "fgsm": student["attacks"]["fgsm"], "worst case": student["worst_case"]}
    return found | {(f"final/{key}", 2): value for key, value in final.items()}


def tracked(path: Path, name: str) -> str:
    return json.loads((path / "trackers.json").read_text())[name]["run"]


def check(points: list[tuple[str, int, float]], path: Path) -> None:
    """Every point once, with its value; `points`: (name, number, value)."""
    assert sorted(number for name, number, _ in points if name == "step/loss") == STEPS
    others = {(name, number): value for name, number, value in points if not name.startswith("step/")}
    assert len(others) == len([name for name, *_ in points if not name.startswith("step/")]), "none is there twice"
    assert others == pytest.approx(values(path), rel=1e-5)


@pytest.mark.slow
def test_tensorboard(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_and_continued(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    points = [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    check(points, tmp_path / "run")
    texts = {tag.removesuffix("/text_summary"): events.Tensors(tag) for tag in events.Tags()["tensors"]}
    text = {tag: event[-1].tensor_proto.string_val[0].decode() for tag, event in texts.items()}
    assert "| loss.name | ce |" in text["settings"] and len(texts["settings"]) == 1
    assert "| student |" in text["results"] and "report.html" in text["files"] and text["status"] == "finished"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: seven bytes, then blocks of 32 KiB as LevelDB logs have them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb(tmp_path) -> None:
    wandb = pytest.importorskip("wandb")
    stopped_and_continued(tmp_path / "run", "wandb", mode="offline")
    wandb.teardown()  # its own process writes
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    assert {record.run.run_id for record in records if record.HasField("run")} == {tracked(tmp_path / "run", "wandb")}
    lines = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
             for record in records if record.HasField("history")]  # fmt: skip
    points = [
        (name, line["_step"] if name.startswith("step/") else line.get("epoch", 2), value)
        for line in lines for name, value in line.items() if "/" in name
    ]  # fmt: skip
    check(points, tmp_path / "run")
    numbers = [line["_step"] for line in lines]
    assert numbers == sorted(numbers) and numbers[0] == 2, "or W&B takes the second part for an earlier one"
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    assert "student.safetensors" in {entry.path for a in artifacts if a.type == "run" for entry in a.manifest.contents}


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it puts files
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    stopped_and_continued(tmp_path / "run", "mlflow", uri=uri)
    client, run = MlflowClient(uri), tracked(tmp_path / "run", "mlflow")
    kept = client.get_run(run)
    assert kept.info.status == "FINISHED" and kept.data.params["loss.name"] == "ce"
    experiment = client.get_experiment_by_name("rkd")
    assert [r.info.run_id for r in client.search_runs([experiment.experiment_id])] == [run], "one run"
    points = [(m.key, m.step, m.value) for key in kept.data.metrics for m in client.get_metric_history(run, key)]
    check(points, tmp_path / "run")
    files = {file.path for file in client.list_artifacts(run)}
    assert files >= {"report.html", "student.safetensors", "config.toml", "results.json"}


@pytest.mark.slow
def test_trackio(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    try:
        import trackio
    except ImportError as error:  # earlier ones fail beside another gradio than theirs
        pytest.skip(f"no trackio that can be imported: {error}")
    if not hasattr(trackio, "Artifact"):
        pytest.skip("an early version")
    from trackio.sqlite_storage import SQLiteStorage

    stopped_and_continued(tmp_path / "run", "trackio")
    name = tracked(tmp_path / "run", "trackio")
    lines = SQLiteStorage.get_logs("rkd", name)
    points = [
        (key, line["step"] if key.startswith("step/") else line.get("epoch", 2), value)
        for line in lines for key, value in line.items() if "/" in key
    ]  # fmt: skip
    check(points, tmp_path / "run")
    assert [record["name"] for record in SQLiteStorage.get_run_records("rkd")] == [name]
    assert any("results" in line for line in lines)
    kept = {file.read_bytes() for file in (tmp_path / "trackio").rglob("*") if file.is_file()}
    assert (tmp_path / "run" / "student.safetensors").read_bytes() in kept, "by its hash"


def test_a_package_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr("rkd.plugins.trackers._common.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "trackio", "mlflow"):
        with pytest.raises(ConfigError, match=rf"trackers.{name}: .*pip install 'rkd-toolkit\[{name}\]'"):
            CATALOG.create("tracker", name, {}, f"trackers.{name}")
