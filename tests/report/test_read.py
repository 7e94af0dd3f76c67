"""Folders as they come: missing, broken and hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from rkd.core.errors import RkdError
from rkd.report import build_report
from rkd.report.read import read_run
from rkd.storage.runfolder import RunFolder

from .folders import EPS, Page, epoch, full_net, make_run, net
from .test_values import JSON


def test_everything_is_read(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    assert run.left_out == []
    assert (run.name, run.method, run.student_name, run.data, run.seed) == ("a", "mtard-anl", "small-cnn", "digits", 0)
    assert run.threat == ("Linf", EPS)
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    student = run.student
    assert student is not None and run.finished
    assert (student.clean, student.attacks["pgd-sat"], student.samples) == (0.978, 0.71, 359)
    assert student.intervals["clean"] == (0.938, 1.0)
    assert [doubt.finding for doubt in student.doubts] == ["FGSM beats PGD", "a plain warning"]
    assert student.doubts[0].advice == "run autoattack"
    assert student.curve is not None and student.curve.accuracy == [0.978, 0.88, 0.71, 0.1]
    assert student.per_class["worst_case"][9] is None and student.per_class["worst_case"][3] == 0.625
    assert len(student.calibration["clean"].bins) == 10, "empty bins are no points"
    assert student.searches["fgsm"].options == {"steps": "20"}, "an option without a value says nothing"
    assert student.searches["fgsm"].counts and not student.searches["pgd-sat"].counts
    assert student.corruptions is not None and student.corruptions.accuracy["fog"][4] == 0.5
    assert student.examples[0].adversarial.prediction == 8
    assert [teacher.role for teacher in run.teachers] == ["robust", "clean"]


@pytest.mark.slow
def test_an_unfinished_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", finished=False))
    assert not run.finished and run.student is None and run.left_out == []
    assert len(run.history) == 3 and run.status == "interrupted"


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="there is no file"):
        read_run(RunFolder(tmp_path))
    (tmp_path / "config.toml").write_text("seed = = 0")
    with pytest.raises(RkdError, match=r"cannot read .*config\.toml"):
        read_run(RunFolder(tmp_path))
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RkdError, match=r"cannot read .*config\.toml"):
        read_run(RunFolder(tmp_path))
    (tmp_path / "config.toml").write_text(f"a = {'[' * 5000}{']' * 5000}")
    with pytest.raises(RkdError, match="nested too deeply"):
        read_run(RunFolder(tmp_path))


def test_only_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    run = read_run(RunFolder(tmp_path))
    assert (run.method, run.student_name, run.data, run.seed, run.threat) == ("", "?", "", None, ("", None))
    assert run.history == [] and not run.finished


def test_wrong_types_are_left_out_and_told(tmp_path: Path) -> None:
    student = full_net() | {
        "clean": "high", "attacks": {"fgsm": 0.5, "pgd-sat": float("nan"), "cw": -3}, "interval_95": [1, 2],
        "worst_case": 7, "per_class": {"clean": 3}, "curve": {"eps": [1], "accuracy": [2, 3]}, "warnings": "none",
        "corruptions": [], "calibration": {"clean": []},
    }  # fmt: skip
    run = read_run(make_run(tmp_path / "a", student=student, teachers=[net(), "who?", 3]))
    found = run.student
    assert found is not None
    assert found.clean is None and found.worst_case is None and found.attacks == {"fgsm": 0.5}
    assert found.curve is None and found.corruptions is None and found.intervals == {}
    assert len(run.teachers) == 1
    for what in ("clean", "attacks of pgd-sat", "attacks of cw", "interval_95", "worst_case", "per_class of clean",
                 "curve", "warnings", "calibration of clean"):  # fmt: skip
        assert any(line.startswith(f"the student's {what}:") for line in run.left_out), what
    assert "teacher 2's evaluation: it is no table" in run.left_out


def test_an_attack_called_clean_does_not_take_its_place(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", student=net() | {"attacks": {"clean": 0.1, "worst_case": 0.2}}))
    assert run.student is not None and run.student.attacks == {} and run.student.accuracy("clean") == 0.978


def test_broken_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    folder.evaluation.write_text('{"student": ')
    folder.manifest.write_text("[" * 100_000)
    folder.card.write_bytes(b"\xff\xff")
    run = read_run(folder)
    assert not run.finished and len(run.history) == 3
    assert [line.split(":")[0] for line in run.left_out] == ["manifest.json", "student.json", "evaluation.json"]


def test_metrics_that_are_no_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    lines = [epoch(0), epoch(2), epoch(1) | {"loss": float("nan"), "val.clean": 10**400}, 5, None, {"event": "resumed"}]
    torn = json.dumps(epoch(3))[:20]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + "garbage\n" + torn)
    run = read_run(folder)
    assert [line["epoch"] for line in run.history] == [1, 2, 3], "in order"
    assert "loss" not in run.history[1] and run.history[1]["val.robust"] == 0.5625
    assert run.left_out == ["metrics.jsonl: 3 line(s) with values that are no finite numbers"]
    folder.metrics.write_bytes(b"\xff\xff\xff")
    assert read_run(folder).history == []


def test_an_epoch_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    folder.log(epoch(1) | {"loss": 99.0})
    assert [line["loss"] for line in read_run(folder).history] == [1.5, 99.0, 0.5]


def test_too_many_names_are_cut(tmp_path: Path) -> None:
    student = net() | {"attacks": {f"attack-{place}": 0.5 for place in range(1000)}}
    run = read_run(make_run(tmp_path / "a", student=student))
    assert run.student is not None and len(run.student.attacks) == 64
    assert "the student's attacks: 64 of 1000 are shown" in run.left_out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON, JSON)
def test_no_evaluation_is_too_strange(tmp_path: Path, first: Any, second: Any) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config('loss = "a name"\nteachers = {a = 1}\nstudent = 3')
    content = {key: first if place % 2 else second for place, key in enumerate(full_net())}
    for path, value in ((folder.evaluation, {"student": content, "teachers": [second]}), (folder.card, first),
                        (folder.manifest, second)):  # fmt: skip
        path.write_text(json.dumps(value))
    run = read_run(folder)
    assert run.student is not None
    assert all(0 <= value <= 1 for value in run.student.attacks.values())


def test_what_a_net_was_normalised_with(tmp_path: Path) -> None:
    from rkd.report.read import _normalization

    chosen = {"choice": "none", "known": "compared", "shares": {"none": 0.988, "data": 0.61}, "images": 512}
    assert _normalization(chosen) == "none (98.8 % of training images right; data: 61.0 %)"
    assert _normalization({"choice": "0.5/0.5", "known": "file"}) == "0.5/0.5"
    assert _normalization({"choice": 3, "shares": [1]}) == "3" and _normalization({}) == ""


def write_export(folder: RunFolder, name: str, **more: Any) -> Path:
    """What `rkd export` writes into a run's folder."""
    row = {
        "name": "int8", "samples": 100, "whole_test_set": {"clean": 0.96, "samples": 359}, "runtime": "runner 1",
        "accuracy": {"clean": 0.95, "straight_through": 0.6, "worst_case": 0.55}, "interval_95": {"clean": [0.9, 0.98]},
        "size": {"bytes": 46_523, "latency": {"median": 0.06, "quartiles": [0.05, 0.07]}},
    }  # fmt: skip
    place = folder.path / "exports" / name
    place.mkdir(parents=True)
    (place / "export.json").write_text(json.dumps({"to": name, "rows": [row], "changes": ["told"]} | more))
    return place


def test_exports(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_export(folder, "onnx")
    write_export(folder, "strange", rows=[3, {"name": 4, "size": [], "accuracy": {"clean": 7}}], changes="many")
    (folder.path / "exports" / "empty").mkdir()
    run = read_run(folder)
    assert [export.format for export in run.exports] == ["onnx", "strange"]
    (row,) = run.exports[0].rows
    assert (row.clean, row.whole, row.accuracy["worst_case"]) == (0.96, 359, 0.55)
    assert (row.size.bytes, row.runtime, run.exports[0].changes) == (46_523, "runner 1", ["told"])
    assert run.exports[1].rows[0].accuracy == {} and run.exports[1].changes == []
    page = Page(build_report(folder).html).text("exports")
    assert "int8 96.0 95.0 [90.0–98.0] 60.0 55.0 46.5 kB 0.06 [0.05–0.07] runner 1" in page and "told." in page


def test_exports_behind_links_are_left_out(tmp_path: Path) -> None:
    folder, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    write_export(other, "onnx")
    (folder.path / "exports").mkdir()
    (folder.path / "exports" / "onnx").symlink_to(other.path / "exports" / "onnx")
    run = read_run(folder)
    assert not run.exports and "exports/onnx: it is a link" in run.left_out
