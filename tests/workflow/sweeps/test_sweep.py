"""Matrices of runs: axes, names, words, files."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from rkd.cli import cli
from rkd.cli.commands.run import run
from rkd.cli.options import App
from rkd.core.errors import ConfigError, RkdError
from rkd.workflow.sweeps.sweep import Sweep, axes_of, begin, read_sweep, state_of


def test_axes() -> None:
    assert axes_of(["loss=ard,rslad seed=0..3"]) == {"loss": ["ard", "rslad"], "seed": ["0", "1", "2", "3"]}
    assert axes_of(["loss.beta=ramp(0, 6, until=0.5),6", "x=[1, 2],[3]"]) == {
        "loss.beta": ["ramp(0, 6, until=0.5)", "6"], "x": ["[1, 2]", "[3]"],
    }  # fmt: skip
    for wrong in ("loss", "=3", "loss=", "seed=1 seed=2", "seed=5..1"):
        with pytest.raises(ConfigError):
            axes_of([wrong])
    for half in ("seed=0..", "seed=..4"):
        with pytest.raises(ConfigError, match=r"seed=.*two ends"):
            axes_of([half])


def test_points_are_the_product() -> None:
    points = Sweep(axes_of(["loss=ard,rslad", "attack.eps=4/255,8/255"])).points()
    assert [dict(p.values) for p in points] == [
        {"loss": loss, "attack.eps": eps} for loss in ("ard", "rslad") for eps in ("4/255", "8/255")
    ]
    assert points[0].name == "loss=ard_eps=4-255" and len({p.name for p in points}) == 4
    with pytest.raises(ConfigError, match="twice"):
        Sweep({"lr": ["0.1", "0.1"]}).points()
    with pytest.raises(ConfigError, match="axis"):
        Sweep({}).points()


def test_words(tmp_path: Path) -> None:
    sweep = Sweep({"loss": ["ard"], "attack.eps": ["8/255"]}, "digits-rslad", {"epochs": "3", "loss.T": "4"})
    (point,) = sweep.points()
    assert sweep.words(point, tmp_path) == [
        "run", "--epochs=3", "--set=loss.T=4", "--loss=ard", "--set=attack.eps=8/255",
        f"--name={point.name}", f"--out={tmp_path}", "--", "digits-rslad",
    ]  # fmt: skip
    recipes = Sweep({"recipe": ["a", "b"]}, None, {"seed": "1"})
    assert [recipes.words(p, tmp_path, ["-q"])[-3:] for p in recipes.points()] == [["-q", "--", n] for n in "ab"]
    begun = tmp_path / point.name
    begun.mkdir()
    (begun / "config.toml").write_text("")
    assert state_of(begun) == "begun" and sweep.words(point, tmp_path) == ["run", f"--resume={begun}"]


def test_no_value_of_a_file_is_an_option(tmp_path: Path) -> None:
    """A stranger's sweep named a plugin file as its recipe, and the file was run."""
    evil = "--plugin=evil.py"
    for sweep in (
        Sweep({"seed": ["0"]}, evil),
        Sweep({"seed": ["0"]}, None, {"recipe": evil}),
        Sweep({"recipe": [evil]}),
    ):
        with pytest.raises(ConfigError, match=r"recipe: '--plugin=evil\.py' is an option"):
            sweep.words(sweep.points()[0], tmp_path)
    for key in ("loss", "with", "plugin", "evaluate"):
        for sweep in (Sweep({key: [evil]}), Sweep({"seed": ["0"]}, "digits-rslad", {key: evil})):
            app = App()
            context = click.Context(cli, obj=app)
            words = sweep.words(sweep.points()[0], tmp_path)
            options = run.make_context("rkd run", words[1:], parent=context).params
            assert not app.files and options["recipe"] == sweep.recipe
            assert evil in str(options)


def test_a_link_in_a_sweep_is_not_written_through(tmp_path: Path) -> None:
    sweep = Sweep({"seed": ["0"]})
    (point,) = sweep.points()
    begin(sweep, tmp_path / "sweep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep" / point.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RkdError, match="link to somewhere else"):
        sweep.words(point, tmp_path / "sweep")


@pytest.mark.parametrize(
    "text",
    [
        "[grid]\nseed = '0..9999'\nloss.T = '0..9999'\n",
        "[grid]\nseed = '" + ",".join(["0..9999"] * 20) + "'\n",
        "[grid]\nseed = '0.." + "9" * 5000 + "'\n",
        f"[grid]\nseed = {'[' * 20_000}",
        f"grid.{'a.' * 5000}b = 1",
        "[grid]\nseed = 1\n#" + "x" * (1 << 20),
        f"[grid]\nseed = [{'9' * 30}]",
        f"[grid]\nloss = ['{'x' * 300}']",
    ],
)
def test_a_sweep_has_the_limits_of_a_recipe(tmp_path: Path, text: str) -> None:
    file = tmp_path / "it.toml"
    file.write_text(text)
    with pytest.raises(RkdError, match=r"at most|two ends|nested|parts|larger|64 bits"):
        read_sweep(file).points()


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text('recipe = "digits-rslad"\n[set]\nepochs = 3\nloss.T = 2.5\nstudent.conversions.aux-bn.views = '
                    '["adv"]\n[grid]\nseed = "0..2"\nattack.eps = ["4/255", 0.1]\n')  # fmt: skip
    sweep = read_sweep(file)
    assert sweep.axes == {"seed": ["0", "1", "2"], "attack.eps": ["4/255", "0.1"]}
    assert sweep.settings == {"epochs": "3", "loss.T": "2.5", "student.conversions.aux-bn.views": '["adv"]'}
    folder = tmp_path / "runs"
    begin(sweep, folder)
    again = read_sweep(folder / "sweep.toml")
    assert again == sweep and again.default_name() == sweep.default_name()
    begin(sweep, folder)
    with pytest.raises(RkdError, match="another sweep"):
        begin(Sweep({"seed": ["7"]}), folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RkdError, match="no sweep"):
        begin(sweep, tmp_path / "other")
    (tmp_path / "killed").mkdir()  # as a sweep of 0.2 left it that was killed before it wrote its file
    begin(sweep, tmp_path / "killed")
    assert read_sweep(tmp_path / "killed" / "sweep.toml") == sweep
    file.write_text("[grids]\nseed = 1\n")
    with pytest.raises(ConfigError, match="grids"):
        read_sweep(file)


def test_an_axis_without_values(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[grid]\nseed = []\n")
    with pytest.raises(ConfigError, match="seed: an axis without values"):
        read_sweep(file)
