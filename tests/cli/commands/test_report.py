"""`rkd report`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rkd.report

from ...report.folders import make_evaluation, make_run, net


@pytest.mark.slow
def test_a_page_and_pictures(rkd, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "first")
    said = rkd("report", folder.path)
    assert said.exit_code == 0, said.stderr
    assert said.stdout == f"wrote {folder.path / 'report.html'} and 16 pictures in {folder.path / 'plots'}\n"
    html = (folder.path / "report.html").read_text(encoding="utf-8")
    cited = rkd("cite", folder.path).stdout
    for key in ("zhao2022enhanced", "madry2018towards"):
        assert (key in html) == (key in cited), "the page cites what `rkd cite` does"
    assert "zhao2022enhanced" in html


@pytest.mark.slow
def test_a_name_under_out_and_json(rkd, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "there" / "first", student=net() | {"clean": "high"}, epochs=0, examples=False)
    said = rkd("report", "first", "--out", tmp_path / "there", "--json")
    assert said.json == {
        "run": str(folder.path),
        "report": str(folder.path / "report.html"),
        "pictures": [],
        "left_out": ["the student's clean: the value cannot be used"],
    }
    assert "left out: the student's clean" in said.stderr


@pytest.mark.slow
def test_an_unfinished_run(rkd, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "first", finished=False, epochs=1)
    assert rkd("report", folder.path).exit_code == 0
    assert "unfinished" in (folder.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_real_run(rkd, finished) -> None:
    said = rkd("report", finished[0])
    assert said.exit_code == 0 and said.stderr == ""
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "Left out" not in html and "Validation accuracy" in html and "pgd-at" in html


@pytest.mark.slow
def test_a_saved_evaluation(rkd, tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "there" / "kept")
    said = rkd("report", "kept", "--out", tmp_path / "there")
    assert said.exit_code == 0 and said.stderr == ""
    html = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "madry2018towards" in html, "the attacks' citations"
    said = rkd("report", make_evaluation(tmp_path / "strange", found={"attacks": 3, "model": None}).path)
    assert said.exit_code == 0 and "left out: citations: evaluation.json names no parts" in said.stderr


def test_no_evaluation_either(rkd, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"samples": "many"}')
    said = rkd("report", tmp_path)
    assert said.exit_code == 2 and "holds neither a run nor an evaluation" in said.stderr


def test_what_is_no_run(rkd, tmp_path: Path) -> None:
    said = rkd("report", tmp_path)
    assert said.exit_code == 2 and "is not a run's folder" in said.stderr
    (tmp_path / "config.toml").write_text("loss = [")
    said = rkd("report", tmp_path)
    assert said.exit_code == 2 and "config.toml" in said.stderr and "Traceback" not in said.stderr


def test_a_configuration_that_no_run_wrote(rkd, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('loss = 3\nattack = "pgd"\nteachers = [1]\nstudent = "x"\n')
    said = rkd("report", tmp_path)
    assert said.exit_code == 0, said.stderr
    assert "left out: citations:" in said.stderr


@pytest.mark.slow
def test_a_plugin_that_is_gone_does_not_stop_the_page(rkd, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "first", config={"loss": {"name": "mine"}}, student=net(), epochs=0, examples=False)
    said = rkd("report", folder.path)
    assert said.exit_code == 0 and "there is no loss 'mine'" in said.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(rkd, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "first", student=net(), epochs=1, examples=False)
    (folder.path / "plots").write_text("a file")
    said = rkd("report", folder.path)
    assert said.exit_code == 2 and "cannot make the folder" in said.stderr


def test_help_needs_no_heavy_library() -> None:
    check = "assert not (found := {'torch', 'matplotlib', 'jinja2', 'numpy', 'safetensors'} & set(sys.modules)), found"
    helps = [f"rkd.cli.cli.main(['{name}', '--help'], standalone_mode=False)" for name in ("report", "compare")]
    code = "; ".join(["import sys, rkd.cli", check, *helps, check])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RUN/report.html" in done.stdout and "--latex" in done.stdout


def test_the_room_itself_imports_no_torch() -> None:
    for path in Path(rkd.report.__file__).parent.glob("*.py"):
        assert "import torch" not in path.read_text(encoding="utf-8"), path.name
