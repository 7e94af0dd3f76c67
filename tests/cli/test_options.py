"""Options that several commands have, and the invocation that they fill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rkd.cli.options import App, json_option, pass_app, plugin_option, split_attacks, verbosity_options
from rkd.core.errors import RkdError


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ((), None),
        (("fgsm,cw", "pgd", " cw "), ["fgsm", "cw", "pgd"]),
        (("none",), []),
    ],
)
def test_attacks(texts: tuple[str, ...], names: list[str] | None) -> None:
    assert split_attacks("--attack", texts) == names


@pytest.mark.parametrize(
    ("texts", "problem"),
    [((",",), "--attack names no attack"), (("none,fgsm",), "leave out none, or fgsm")],
)
def test_attacks_that_are_none(texts: tuple[str, ...], problem: str) -> None:
    with pytest.raises(RkdError, match=problem):
        split_attacks("--attack", texts)


def test_options_fill_the_invocation() -> None:
    seen: list[App] = []

    @click.command()
    @json_option
    @verbosity_options
    @plugin_option
    @pass_app
    def command(app: App) -> None:
        seen.append(app)

    for words in ([], ["--json", "-v", "--plugin", "a.py", "--plugin", "b.py"], ["-q"]):
        assert CliRunner().invoke(command, words).exit_code == 0
    assert [(app.json, app.verbosity, app.files) for app in seen] == [
        (False, 0, []), (True, 1, ["a.py", "b.py"]), (False, -1, [])
    ]  # fmt: skip
    assert all(app.speaks for app in seen)


def test_a_plugin_file_that_does_not_load_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('no')")
    app = App(files=[str(broken)])
    with pytest.raises(RkdError, match=r"broken\.py could not be loaded: ValueError: no"):
        app.catalog()
    assert app.catalog(broken_files=True).plugins.broken


WITHOUT_TORCH = """
import sys
from click.testing import CliRunner

class NoTorch:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise ImportError("torch is not here")

sys.meta_path.insert(0, NoTorch())
from rkd.cli import cli
for words in ("run", "eval NET", "sweep seed=0", "bench", "submit -- run", "list-plugins", "info pgd", "cite pgd"):
    result = CliRunner().invoke(cli, ["--debug", *words.split()])
    assert result.output.startswith("loading torch and the plugins\\n"), (words, result.output)
    assert "torch is not here" in result.output, (words, result.output)
"""


def test_every_command_says_that_it_loads_torch_before_it_does() -> None:
    """It takes seven seconds on a loaded machine."""
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)
