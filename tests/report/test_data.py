"""What a run's folder says, as typed values, however little that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rkd.report.data import Net, RunData, Size
from rkd.report.read import read_run

from .folders import EPS, make_evaluation, make_run


def data(**fields: Any) -> RunData:
    empty: dict[str, Any] = {name: {} for name in ("config", "manifest", "card")}
    return RunData("run", Path(), config_text="", history=[], student=None, teachers=[], left_out=[], **empty | fields)


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert (run.finished, run.status, run.seed, run.epochs, run.seconds) == (True, "finished", 0, 3, 200.0)
    assert (run.method, run.data, run.student_name) == ("mtard-anl", "digits", "small-cnn")
    assert run.threat == ("Linf", EPS)
    assert run.classes[:2] == ["digit 0", "digit 1"]


def test_an_empty_run() -> None:
    run = data()
    assert not run.finished and run.student_name == "?" and run.threat == ("", None)
    assert (run.status, run.data, run.method, run.classes) == ("", "", "", [])
    assert run.seed is run.training_seed is run.epochs is run.kept_epoch is run.seconds is None


def test_the_threat_is_the_configurations_where_there_is_no_student_yet() -> None:
    assert data(config={"threat": {"norm": "L2", "eps": 0.5}}).threat == ("L2", 0.5)


@pytest.mark.parametrize(("chosen", "kept"), [(0, 1), (7, 8), (-1, None), (1.5, None), ("2", None)])
def test_the_kept_epoch_counts_from_one(chosen: Any, kept: int | None) -> None:
    assert data(card={"chosen_epoch": chosen}).kept_epoch == kept


def test_an_evaluation_has_the_seed_of_its_net(tmp_path: Path) -> None:
    run = read_run(make_evaluation(tmp_path / "saved"))
    run.card["trained"] = {"seed": 99}
    assert run.training_seed == 99 != run.seed
    run.card["trained"] = {}
    assert run.training_seed == run.seed


def test_conversions_that_are_off_have_no_name() -> None:
    config = {"student": {"model": "resnet18", "conversions": {"aux-bn": {}, "other": False}}}
    assert data(config=config).student_name == "resnet18+aux-bn"


def test_accuracies_by_name() -> None:
    net = Net(clean=0.9, worst_case=0.5, attacks={"pgd": 0.6})
    assert [net.accuracy(name) for name in ("clean", "worst_case", "pgd", "cw")] == [0.9, 0.5, 0.6, None]


def test_sizes_of_any_form() -> None:
    student = {"parameters": -1, "latency": [1], "macs": "many"}
    strange = {"student": student, "teachers": {"a": 3, "": {}, "b": {"bytes": 8}}}
    run = RunData("x", Path("x"), {}, "", {"sizes": strange}, {}, [], None, [], [])
    assert list(run.sizes) == ["", "b"]
    assert run.sizes[""] == Size(None, None, None, None, None, None) and run.sizes["b"].bytes == 8
