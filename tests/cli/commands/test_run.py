"""`rkd run`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from rkd.workflow.sweeps.sweep import state_of

from ..conftest import TINY, digest

RUN = ("run", "--loss", "pgd-at", *TINY)


@pytest.mark.slow
def test_a_run_shows_its_results_and_where_they_are(rkd, empty_folder: Path) -> None:
    said = rkd(*RUN, "--out", "my runs")
    assert said.exit_code == 0
    run = Path("my runs/pgd-at-small-cnn-digits-s0")
    lines = said.stdout.splitlines()
    assert lines[0] == "Accuracy in % on 50 test images of digits, Linf eps 38/255"
    assert lines[1].split() == ["clean", "FGSM", "PGD", "worst", "case"]
    assert lines[2].startswith("student small-cnn  ")
    assert lines[4] == "W-Robust in %: the mean of clean and attacked accuracy"
    assert lines[-1].startswith(f"wrote {run} in ")
    assert lines[-1].endswith(" s (weights of epoch 1 of 1)")
    assert "student small-cnn: 2,182 parameters, 1 epoch of 21 steps of 64 images\n" in said.stderr
    assert "  forwards/backwards a step: student 3/3\n" in said.stderr
    assert "student small-cnn: epoch 1/1, loss " in said.stderr
    assert f"next: rkd eval '{run}' --attack" in said.stderr
    assert "\x1b" not in said.stdout + said.stderr and "\r" not in said.stdout + said.stderr
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.toml", "manifest.json", "metrics.jsonl", "student.safetensors", "student.json"}
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


def test_json_is_exactly_one_object(finished) -> None:
    run, said = finished
    found = said.json  # raises for more than one object
    assert set(found) == {"run", "seed", "epochs", "seconds", "student", "teachers", "config"}
    assert found["run"] == str(run)
    student = found["student"]
    assert student["model"] == "small-cnn"
    assert student["parameters"] == 2182
    assert set(student["attacks"]) == set(student["w_robust"]) == {"fgsm", "pgd"}
    assert 0 <= student["attacks"]["pgd"] <= student["clean"] <= 1
    assert student["w_robust"]["pgd"] == pytest.approx((student["clean"] + student["attacks"]["pgd"]) / 2)
    assert found["config"]["attack"]["steps"] == 2
    assert "epoch 1/1" in said.stderr


@pytest.mark.slow
def test_json_survives_a_plugin_that_prints(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "noisy.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom rkd import hookimpl\nprint('on import')\n"
        "@dataclass\nclass Noisy:\n    @hookimpl\n    def rkd_run_start(self, run):\n        print('in the run')\n"
        "@hookimpl\ndef rkd_extensions():\n    return {'noisy': Noisy}\n"
    )
    said = rkd(*RUN, "--plugin", plugin, "--with", "noisy", "--json")
    assert said.json["config"]["extensions"] == {"noisy": {}}
    assert "on import" in said.stderr
    assert "in the run" in said.stderr


@pytest.mark.slow
def test_quiet(rkd) -> None:
    said = rkd(*RUN, "-q")
    assert re.fullmatch(r"warning: 50 images: the worst case lies between .*\n", said.stderr), "warnings alone"
    assert "wrote " in said.stdout


@pytest.mark.slow
def test_teachers_are_prepared_once_and_shown(rkd, cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        '[[teachers]]\nrole = "robust"\nreference = "small-cnn"\noptions = { width = 4 }\n'
        "train = { epochs = 1, attack = { steps = 2 } }\n"
        '[[teachers]]\nrole = "clean"\nreference = "small-cnn"\noptions = { width = 4 }\ntrain = { epochs = 1 }\n'
    )
    said = rkd("run", recipe, *TINY, "--loss", "mtard-anl", "--dry-run")
    assert said.exit_code == 0, said.stderr
    assert "# teacher robust: small-cnn, not prepared yet" in said.stdout
    assert "robust teacher small-cnn: 2,182 parameters, 1 epoch of " in said.stderr
    assert not (cache / "teachers").exists()
    said = rkd("run", recipe, *TINY, "--loss", "mtard-anl", "--dry-run", "--teacher-epochs", "7")
    assert said.stderr.count("2,182 parameters, 7 epochs of ") == 2, "of both teachers, not of the student"
    said = rkd("run", *TINY, "--loss", "pgd-at", "--dry-run", "--teacher-epochs", "7")
    assert said.exit_code == 2 and "no teacher of this run is prepared" in said.stderr

    said = rkd("run", recipe, *TINY)
    assert said.exit_code == 0, said.stderr
    names = [line.split("  ")[0] for line in said.stdout.splitlines()]
    assert names[2:5] == ["robust teacher small-cnn", "clean teacher small-cnn", "student small-cnn"]
    assert "robust teacher small-cnn: epoch 1/1, loss " in said.stderr
    assert "  forwards/backwards a step: student 4/4, robust 1/0, clean 1/0\n" in said.stderr
    assert "; weights adv 0." in said.stderr

    # Another evaluation is no reason to train them again; their numbers are those of the new attacks all the same.
    said = rkd("run", recipe, *TINY, "--evaluate", "pgd-trades", "--json")
    assert "teacher small-cnn: epoch" not in said.stderr
    assert [set(teacher["attacks"]) for teacher in said.json["teachers"]] == [{"fgsm", "pgd", "pgd-trades"}] * 2
    assert [teacher["role"] for teacher in said.json["teachers"]] == ["robust", "clean"]


@pytest.mark.slow
def test_a_finished_run_teaches(rkd, finished) -> None:
    run, _ = finished
    said = rkd("run", "--loss", "rslad", *TINY, "--teacher", f"robust={run}", "--json")
    assert said.exit_code == 0, said.stderr
    (teacher,) = said.json["teachers"]
    assert teacher["model"] == str(run)
    assert teacher["role"] == "robust"


@pytest.mark.slow
def test_dry_run_writes_nothing_and_is_a_recipe(rkd, empty_folder: Path) -> None:
    said = rkd(*RUN, "--dry-run")
    assert said.exit_code == 0
    assert list(empty_folder.iterdir()) == []
    lines = said.stdout.splitlines()
    assert lines[0] == "# what `rkd run` would do; nothing was written"
    assert "#   student: 3 forwards, 3 backwards" in lines
    plan = tomllib.loads(said.stdout)
    assert plan["attack"] == {
        "name": "pgd", "steps": 2, "restarts": 1, "start": "uniform", "mode": "eval", "clip": "each",
        "start_clip": True, "leave_repeats": False,
    }  # fmt: skip
    recipe = Path("plan.toml")
    recipe.write_text(said.stdout)
    assert tomllib.loads(rkd("run", recipe, "--dry-run").stdout) == plan


def test_dry_run_as_json(rkd, empty_folder: Path) -> None:
    found = rkd(*RUN, "--dry-run", "--json").json
    assert found["cost"] == {"student": {"forwards": 3, "backwards": 3}}
    assert found["seconds"] > 0 and found["memory"] > 2**26  # torch alone takes more
    assert list(empty_folder.iterdir()) == []


@pytest.mark.slow
def test_its_own_configuration_repeats_a_run(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    said = rkd("run", run / "config.toml", "--out", tmp_path / "again", "--json")
    assert said.exit_code == 0, said.stderr
    again = Path(said.json["run"])
    assert again.parent == tmp_path / "again"
    assert digest(again) == digest(run)
    assert (again / "config.toml").read_text() == (run / "config.toml").read_text()


@pytest.mark.slow
def test_the_seed_changes_the_weights(rkd, finished) -> None:
    run, _ = finished
    other = rkd(*RUN, "--seed", "1", "--json").json
    assert Path(other["run"]).name == "pgd-at-small-cnn-digits-s1"
    assert digest(Path(other["run"])) != digest(run)


@pytest.mark.slow
def test_names(rkd, empty_folder: Path) -> None:
    quick = ("run", "--loss", "ce", "--epochs", "1", "--set", "student.width=4", "--evaluate", "none")
    quick += ("--set", "validate.steps=0", "-q")
    for expected in ("ce-small-cnn-digits-s0", "ce-small-cnn-digits-s0-2", "ce-small-cnn-digits-s0-3"):
        assert f"wrote runs/{expected} in" in rkd(*quick).stdout
    assert "wrote elsewhere/mine in" in rkd(*quick, "--out", "elsewhere", "--name", "mine").stdout
    said = rkd(*quick, "--out", "elsewhere", "--name", "mine")
    assert said.exit_code == 2
    assert said.stderr.startswith("error: elsewhere/mine exists already; choose another --name")


@pytest.mark.parametrize("name", ["a/b", "../up", "/root", ".hidden", "a b"])
def test_names_that_are_no_folder_of_their_own(rkd, empty_folder: Path, name: str) -> None:
    said = rkd(*RUN, "--name", name)
    assert said.exit_code == 2
    assert "cannot be a run's name" in said.stderr
    assert list(empty_folder.iterdir()) == []


def test_no_place_to_write(rkd, empty_folder: Path) -> None:
    Path("file").write_text("")
    said = rkd(*RUN, "--out", "file")
    assert said.exit_code == 2
    assert "cannot write into" in said.stderr
    assert "--out DIR" in said.stderr


def refused(rkd, empty_folder: Path, *words: str) -> str:
    said = rkd("run", *words)
    assert said.exit_code == 2
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    assert list(empty_folder.iterdir()) == []
    return said.stderr


def test_several_problems_at_once(rkd, empty_folder: Path) -> None:
    said = refused(rkd, empty_folder, "--loss", "mtrad", "--student", "small-cmn+aux-nb", "--evaluate", "fgsmm,pgd")
    assert said.startswith("error: 4 problems:\n")
    for words in ("no loss 'mtrad'. Did you mean mtard", "no model 'small-cmn'. Did you mean small-cnn",
                  "no student 'aux-nb'. Did you mean aux-bn", "no attack 'fgsmm'. Did you mean fgsm"):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--set", "attack.eps=-0.1"), "eps must be greater than 0, got -0.1"),
        (("--set", "threat.eps=8"), "at most 1, got 8"),
        (("--set", "attack.eps=8"), "at most 1 in Linf, got 8: write 8/255?"),
        (("--set", "attack.bim.steps=3"), "attack.bim: there is no such option"),
        (("--set", "attack.square.queries=3"), "this run has no attack square; there is pgd in its training, and fgsm"),
        (("--set", "evaluate=pgd"), "did you mean 'evaluate.attacks=[\"pgd\"]'?"),
        (("--set", "attack.stpes=3"), "attack.stpes: there is no such option. Did you mean steps"),
        (("--set", "epochs"), "--set epochs: expected KEY=VALUE"),
        (("--set", "optimiser.lr=1"), "optimiser: there is no such setting. Did you mean optimizer"),
        (("--set", "loss=rslad"), "loss: is a table of settings; did you mean loss.name=rslad?"),
        (("--set", "evaluate.attacks=fgsm"), "error: evaluate.attacks: Input should be a valid list (got 'fgsm')"),
        (("--name", ""), "--name: is empty (is a variable of the shell unset?)"),
        (("--student", ""), "--student: is empty (is a variable of the shell unset?)"),
        (("--teacher", ""), "--teacher: is empty (is a variable of the shell unset?)"),
        (("--epochs", "0"), "epochs: Input should be greater than or equal to 1 (got 0)"),
        (("--lr", "fast"), "optimizer.lr: expected a number"),
        (("--dataset", "digist"), "there is no dataset 'digist'. Did you mean digits"),
        (("--device", "tpu9"), "the device 'tpu9' cannot be used"),
        (("--student", "small-cnn+"), "expected NET or NET+CONVERSION"),
        (("--attack", "pgd", "--attack", "adv=cw"), "the view 'adv' has an attack already"),
        (("--attack", "weak=pgd"), "the attack that makes the view 'weak' would never be used"),
        (("--teacher", "robust=resnet20"), "1 given, but the loss 'pgd-at' needs none"),
        (("--scheduler", "anl"), "scheduler anl balances two or more loss terms"),
        (("no-such-recipe",), "there is no recipe 'no-such-recipe'"),
        (("missing.toml",), "there is no recipe file missing.toml"),
    ],
)
def test_mistakes(rkd, empty_folder: Path, words: tuple[str, ...], problem: str) -> None:
    assert problem in refused(rkd, empty_folder, "--loss", "pgd-at", *words)


def test_a_recipe_that_is_no_toml(rkd) -> None:
    Path("bad.toml").write_text("epochs = = 3\n")
    said = rkd("run", "bad.toml")
    assert said.exit_code == 2
    assert "bad.toml is not valid TOML" in said.stderr


def test_a_run_folder_is_no_recipe(rkd, finished) -> None:
    run, _ = finished
    said = rkd("run", run)
    assert said.exit_code == 2
    assert f"`rkd run --resume {run}`" in said.stderr
    assert f"`rkd run {run}/config.toml`" in said.stderr


@pytest.mark.slow
def test_scheduler_none_takes_the_methods_own_out(rkd, finished) -> None:
    run, _ = finished
    teachers = ("--teacher", f"robust={run}", "--teacher", f"clean={run}")
    words = ("run", "--loss", "mtard-anl", *TINY, *teachers)
    plan = tomllib.loads(rkd(*words, "--scheduler", "none", "--dry-run").stdout)
    assert plan["schedulers"] == {"anl": False}
    Path("plan.toml").write_text(rkd(*words, "--scheduler", "none", "--dry-run").stdout)
    assert tomllib.loads(rkd("run", "plan.toml", "--dry-run").stdout)["schedulers"] == {"anl": False}
    assert "anl" in tomllib.loads(rkd(*words, "--dry-run").stdout)["schedulers"]


@pytest.mark.slow
def test_options_go_on_top_of_a_recipe_and_set_on_top_of_both(rkd, finished) -> None:
    run, _ = finished
    Path("mine.toml").write_text(
        'name = "mine"\nepochs = 9\n[student]\nmodel = "small-cnn"\nwidth = 8\n[student.conversions.aux-bn]\n'
        '[loss]\nname = "rslad"\n[attack]\nname = "pgd"\nsteps = 3\n'
    )
    words = ("run", "mine.toml", "--teacher", str(run), "--dry-run")
    said = rkd(*words, "--student", "mlp", "--epochs", "8", "--set", "epochs=7", "--attack", "cw")
    assert said.exit_code == 0, said.stderr
    assert "# folder: runs/mine\n" in said.stdout
    plan = tomllib.loads(said.stdout)
    assert plan["epochs"] == 7
    assert plan["student"]["model"] == "mlp"
    assert "width" not in plan["student"] and "conversions" not in plan["student"]
    assert plan["attack"]["name"] == "cw"
    assert plan["attack"]["steps"] == 30
    assert plan["objective"]["name"] == "margin"
    assert [teacher["reference"] for teacher in plan["teachers"]] == [str(run)]


STOP = """
import os
from dataclasses import dataclass
from rkd import hookimpl

@dataclass
class Stop:
    "Interrupts as Ctrl-C would, or fails."

    @hookimpl
    def rkd_after_update(self, run):
        if os.environ.get("STOP") == f"{run.state.epoch}.{run.state.batch}":
            raise KeyboardInterrupt
        if os.environ.get("FAIL") == f"{run.state.epoch}.{run.state.batch}":
            raise ValueError("a bug")

@hookimpl
def rkd_extensions():
    return {"stop": Stop}
"""


@pytest.fixture
def stop(tmp_path: Path) -> tuple[str, ...]:
    plugin = tmp_path / "stop.py"
    plugin.write_text(STOP)
    return ("run", "--plugin", str(plugin))


LONGER = ("--with", "stop", *RUN[1:], "--epochs", "3")


@pytest.mark.slow
def test_resumed_equals_uninterrupted(rkd, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rkd(*stop, *LONGER, "--name", "whole", "--json")
    assert whole.exit_code == 0, whole.stderr
    monkeypatch.setenv("STOP", "2.5")
    said = rkd(*stop, *LONGER, "--name", "part", "--json")
    assert said.exit_code == 130
    assert said.stdout == ""
    assert said.stderr.endswith(
        "error: interrupted\n  runs/part holds the state after epoch 2\n"
        f"  continue with: rkd run --resume runs/part --plugin {stop[-1]}\n"
    )
    assert json.loads(Path("runs/part/manifest.json").read_text())["status"] == "interrupted"
    monkeypatch.delenv("STOP")
    said = rkd(*stop, "--resume", "part", "--json")
    assert said.exit_code == 0, said.stderr
    assert "continuing after epoch 2 of 3" in said.stderr
    assert digest(Path("runs/part")) == digest(Path("runs/whole"))
    changed = ("run", "seconds")
    students = [s.json["student"] for s in (whole, said)]
    for student in students:
        student.pop("seconds")
        for search in student["searches"].values():
            search.pop("seconds")
    assert students[0] == students[1]
    assert {k: v for k, v in whole.json["config"].items()} == said.json["config"]
    assert set(whole.json) == set(said.json) > set(changed)
    logs = [Path(f"runs/{name}/metrics.jsonl").read_text().splitlines() for name in ("whole", "part")]
    first, second = ([{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs)
    assert first == second

    said = rkd("run", "--resume", "part")
    assert said.exit_code == 2
    assert "runs/part is finished; look at it with `rkd eval runs/part`" in said.stderr


@pytest.mark.slow
def test_interrupted_in_the_first_epoch(rkd, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP", "0.3")
    said = rkd(*stop, *LONGER, "--name", "early")
    assert said.exit_code == 130
    assert "runs/early holds the configuration, no finished epoch yet" in said.stderr
    monkeypatch.delenv("STOP")
    said = rkd("run", "--resume", "runs/early")
    assert said.exit_code == 2
    assert "there is no extension 'stop'" in said.stderr
    assert f"the run was started with --plugin {stop[-1]}\n" in said.stderr
    said = rkd(*stop, "--resume", "runs/early", "-q")
    assert said.exit_code == 0, said.stderr


@pytest.mark.slow
def test_a_bug_in_an_extension(rkd, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("FAIL", "1.0")
    said = rkd(*stop, *LONGER, "--name", "failed")
    assert said.exit_code == 1
    line = Path(stop[-1]).read_text().splitlines().index('            raise ValueError("a bug")') + 1
    assert f"error: unexpected ValueError: a bug\n  raised in {stop[-1]}, line {line}\n" in said.stderr
    assert "continue with: rkd run --resume runs/failed" in said.stderr


def test_resume_takes_no_other_settings(rkd, finished) -> None:
    run, _ = finished
    said = rkd("run", "--resume", run, "--epochs", "3", "--lr", "1", "digits-mtard")
    assert said.exit_code == 2
    assert "take out RECIPE, --lr" in said.stderr
    said = rkd("run", "--resume", run, "--lr", "1")
    assert said.exit_code == 2
    assert "take out --lr, or add --accept-changes" in said.stderr


@pytest.mark.slow
def test_a_run_killed_before_its_report_gets_it(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"report": True}))
    (copy / "report.html").unlink(missing_ok=True)  # another test may have asked for it
    assert state_of(copy) == "begun"
    said = rkd("run", "--resume", copy)
    assert said.exit_code == 0 and (copy / "report.html").is_file(), said.stderr
    assert state_of(copy) == "finished"
    said = rkd("run", "--resume", copy)
    assert said.exit_code == 2 and "is finished" in said.stderr and "--epochs N" in said.stderr


@pytest.mark.slow
def test_resume_notices_a_changed_configuration(rkd, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """An emptied config.toml began to prepare other teachers, another learning rate was taken without a word."""
    monkeypatch.setenv("STOP", "1.5")
    assert rkd(*stop, *LONGER, "--name", "part").exit_code == 130
    monkeypatch.delenv("STOP")
    config = Path("runs/part/config.toml")
    text = config.read_text()
    resume = (*stop, "--resume", "part")
    for changed, words in (("", "epochs 3 -> (not set)"), (text.replace("lr = 0.1", "lr = 0.3"), "lr 0.1 -> 0.3")):
        config.write_text(changed)
        said = rkd(*resume)
        assert said.exit_code == 2 and words in said.stderr and "--accept-changes" in said.stderr
        assert Path("runs/part/checkpoints/config.toml").read_text() == text
    config.write_bytes(bytes(500))  # as a loss of power may leave it
    said = rkd(*resume)
    assert said.exit_code == 2 and "is kept as runs/part/checkpoints/config.toml" in said.stderr
    config.write_text(text.replace("lr = 0.1", "lr = 0.3"))
    assert rkd(*resume, "--accept-changes", "--epochs", "2", "-q").exit_code == 0
    kept = tomllib.loads(config.read_text())
    assert (kept["epochs"], kept["optimizer"]["lr"]) == (2, 0.3)


@pytest.mark.slow
def test_a_finished_run_is_trained_longer(rkd, finished, tmp_path: Path, stop, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    results = (copy / "evaluation.json").read_text()
    said = rkd("run", "--resume", copy, "--epochs", "1")
    assert said.exit_code == 2 and "is finished" in said.stderr
    said = rkd("run", "--resume", copy, "--epochs", "3", "--no-report", "-v")
    assert said.exit_code == 0, said.stderr
    assert "continuing after epoch 1 of 3" in said.stderr and "the learning rate goes on at " in said.stderr
    assert (copy / "evaluation-1.json").read_text() == results
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 3
    assert tomllib.loads((copy / "config.toml").read_text())["epochs"] == 3
    assert json.loads((copy / "manifest.json").read_text())["status"] == "finished"
    assert rkd("run", "--resume", copy).exit_code == 2


def test_resume_of_nothing(rkd, finished) -> None:
    run, _ = finished
    said = rkd("run", "--resume", "frist", "--out", run.parent)
    assert said.exit_code == 2
    assert "Did you mean first?" in said.stderr


def test_resume_with_a_broken_checkpoint(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "student.json").unlink()
    (copy / "checkpoints" / "last.safetensors").write_bytes(b"junk")
    said = rkd("run", "--resume", copy)
    assert said.exit_code == 2
    assert "last.safetensors is not a readable checkpoint" in said.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_on_a_terminal(cache: Path, empty_folder: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from rkd.cli import main; main()", *RUN, "--epochs", "100000", "--name", "long"],
        stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    before = shown = b""
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    with contextlib.suppress(OSError):  # Linux says end of file on a terminal so
        while part := os.read(ours, 65536):
            shown += part
            # A busy machine draws only some of the epochs.
            if not before and re.search(rb"epoch ([3-9]|\d\d+)/100000", shown):
                process.send_signal(signal.SIGINT)
                shown, before = b"", shown
    os.close(ours)
    watchdog.cancel()
    assert process.wait(timeout=30) == 130
    assert b"\x1b[?25l" in before  # the cursor is hidden while lines are drawn over, and shown again
    assert b"\x1b[?25h" in shown
    end = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).splitlines()[-3:]
    assert end[0] == "error: interrupted"
    assert re.fullmatch(r"  runs/long holds the state after (step \d+/21 of )?epoch \d+", end[1])
    assert end[2] == "  continue with: rkd run --resume runs/long"


# The report at the end


@pytest.mark.slow
def test_a_run_ends_with_its_report(rkd) -> None:
    words = [word for word in RUN if word != "--no-report"]
    said = rkd(*words, "--name", "told")
    assert said.exit_code == 0, said.stderr
    assert "report: runs/told/report.html" in said.stderr
    page = Path("runs/told/report.html").read_text()
    assert "<html" in page and "pgd-at" in page
    assert list(Path("runs/told/plots").glob("*.svg"))


@pytest.mark.slow
def test_a_report_that_fails_does_not_make_the_run_fail(rkd, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr("rkd.cli.commands.report.report_on", broken)
    words = [word for word in RUN if word != "--no-report"]
    said = rkd(*words, "--name", "told")
    assert said.exit_code == 0
    assert "the report could not be written (no fonts); `rkd report runs/told` tries again" in said.stderr
    assert Path("runs/told/evaluation.json").is_file()


def test_no_attack_among_attacks(rkd) -> None:
    said = rkd("run", "--loss", "ce", "--evaluate", "fgsm,none", "--dry-run")
    assert said.exit_code == 2 and "--evaluate none stands alone" in said.stderr


def test_help_is_in_groups(rkd) -> None:
    said = rkd("run", "--help").stdout
    headings = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) >= 4 and headings[-1] == "Everything else:"
    assert len(said[said.index("Everything else:") :].splitlines()) <= 9
    options = re.findall(r"^  (?:-\w, )?--([\w-]+)", said, re.MULTILINE)
    assert len(options) == len(set(options)) > 25 and {"loss", "teacher-epochs", "set", "plugin", "help"} <= set(
        options
    )


def test_all_of_it_on_two_batches(rkd, tmp_path, cache, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = rkd("run", "--loss", "ce", "--student", "mlp", "--evaluate", "fgsm", "--fast-dev-run", "--json")
    assert said.exit_code == 0, said.stderr
    results = json.loads(said.stdout)
    assert (results["epochs"], results["student"]["samples"]) == (1, 32)
    assert "could not be written" not in said.stderr
    assert not Path(results["run"]).exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_try_of_a_run_that_is_there(rkd, finished) -> None:
    said = rkd("run", "--resume", finished[0], "--fast-dev-run", "--epochs", "9")
    assert said.exit_code != 0 and "keeps nothing: take out --resume" in said.stderr
