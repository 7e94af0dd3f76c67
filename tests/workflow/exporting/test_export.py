"""Exporting a run: what is written, measured, told and refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, Refused, RkdError, UnknownName
from rkd.export.formats import Artefact, Exported
from rkd.registry.catalog import Catalog, Entry
from rkd.registry.plugins import Plugin
from rkd.workflow.exporting.export import ExportRequest, export_request

from .conftest import Told


@dataclass
class Copied:
    """The net's weights, off by `error`; in eight bits a net that knows one class."""

    error: float = 0.0
    int8: bool = False

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        net = copy.deepcopy(student.net)
        state = {name: weight + self.error for name, weight in net.arch.state_dict().items()}
        net.arch.load_state_dict(state)
        if self.int8:
            net.arch = torch.nn.Sequential(net.arch, Constant())
        file = "int8.pt" if self.int8 else "weights.pt"
        torch.save(state, folder / file)
        return Artefact(net, (file,), "torch", "torch.load(...)", (f"{len(student.calibration)} images",))


class Constant(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 + torch.eye(x.shape[1])[0]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "small"))


@pytest.fixture
def formats(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The catalog, with a format that costs nothing."""
    entry = Entry("exporter", "copied", Copied, Plugin("made", "tests", "1", "tests"))
    monkeypatch.setitem(catalog.entries["exporter"], "copied", [entry])
    return catalog


def request(run: Path, **more: Any) -> ExportRequest:
    quick = {"evaluate": {"options": {"square": {"queries": 5}}}}
    return ExportRequest(str(run), **{"format": "copied", "settings": quick, **more})


def test_a_run_is_exported(run: Path, formats: Catalog) -> None:
    told = Told()
    facts = export_request(request(run), formats, told)
    folder = run / "exports" / "copied"
    assert facts["folder"] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"README.md", "export.json", "weights.pt"}
    kept = json.loads((folder / "export.json").read_text())
    assert kept == {key: value for key, value in facts.items() if key != "folder"}
    net, exported = kept["rows"]
    assert net["accuracy"] == exported["accuracy"] and not kept["changes"] and not told.warnings
    assert set(net["accuracy"]) == {"clean", "straight_through", "transferred", "black_box", "worst_case"}
    assert net["whole_test_set"]["samples"] == 359 and net["samples"] == 20
    assert exported["size"]["bytes"] == (folder / "weights.pt").stat().st_size
    assert exported["size"]["macs"] == net["size"]["macs"] > 0 and exported["size"]["latency"]["runs"] > 1
    assert kept["classes"] == [str(digit) for digit in range(10)] and len(kept["sha256"]["weights.pt"]) == 64
    with pytest.raises(RkdError, match="exists already; choose another --out folder, or remove it"):
        export_request(request(run), formats)


def test_a_drop_is_told(run: Path, formats: Catalog) -> None:
    told = Told()
    facts = export_request(request(run, int8=True, attacks=["fgsm"], limit=359, settings={}), formats, told)
    assert [row["name"] for row in facts["rows"]] == ["float", "exported", "int8"]
    assert len(told.warnings) >= 1 and told.warnings[0].startswith("int8: clean from ")
    assert told.warnings[0].endswith(": a drop") and told.warnings[0] in facts["changes"]
    assert set(facts["rows"][0]["attacks"]) == {"fgsm", "transferred"}


def test_another_net_is_refused_and_nothing_is_left(run: Path, formats: Catalog) -> None:
    settings = {"export": {"error": 0.1}}
    with pytest.raises(Refused, match=r"as weights\.pt: its logits differ from the net's"):
        export_request(request(run, settings=settings, attacks=[]), formats)
    assert not list((run / "exports").iterdir())


def test_clean_alone_and_to_another_place(run: Path, formats: Catalog, tmp_path: Path) -> None:
    facts = export_request(request(run, attacks=[], settings={}, out=str(tmp_path / "out")), formats)
    assert set(facts["rows"][1]["accuracy"]) == {"clean"} and (tmp_path / "out" / "README.md").is_file()


def test_pushing_comes_last(run: Path, formats: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Path, str]] = []

    def pushed(folder: Path, name: str) -> str:
        assert (folder / "README.md").is_file()
        sent.append((folder, name))
        return "address"

    monkeypatch.setattr("rkd.workflow.exporting.export.push", pushed)
    monkeypatch.setattr("rkd.workflow.exporting.export.check_repository", lambda name: None)
    facts = export_request(request(run, attacks=[], settings={}, push="me/net"), formats)
    assert sent == [(run / "exports" / "copied", "me/net")] and facts["pushed"] == "address"


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"format": "onx"}, UnknownName, "there is no exporter 'onx'.*Did you mean.*onnx"),
        (
            {"format": "torch", "int8": True},
            RkdError,
            "the format torch has no eight bits; --int8 goes with --to copied",
        ),
        ({"push": "net"}, RkdError, "expected OWNER/NAME"),
        ({"settings": {"export": {"int8": True}}}, ConfigError, "type --int8"),
        ({"settings": {"export": {"no": 1}}}, ConfigError, "export.no: there is no such option"),
        ({"limit": 10**6}, ConfigError, "--limit: 1000000 is above"),
    ],
)
def test_mistakes(changes: dict[str, Any], error: type, problem: str, run: Path, formats: Catalog) -> None:
    with pytest.raises(error, match=problem):
        export_request(replace(request(run), **changes), formats)
    assert not (run / "exports").exists()


def test_no_such_run_and_an_unfinished_one(run: Path, formats: Catalog) -> None:
    with pytest.raises(RkdError, match="not a run's folder"):
        export_request(request(run.with_name("other")), formats)
    (run / "student.json").unlink()
    with pytest.raises(RkdError, match="that run did not finish; continue it with `rkd run --resume"):
        export_request(request(run), formats)
