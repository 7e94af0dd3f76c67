"""Help, version, completion, errors, commands of plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "timm", "numpy", "rich", "pydantic", "sklearn")

PROBE = f"""
import sys
from rkd.cli import main
sys.argv = ["rkd", *sys.argv[1:]]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def probe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("eval", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    result = probe(*words)
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert result.stdout


@pytest.mark.parametrize("words", ["rkd r", "rkd run --lo", "rkd nothing --x"])
def test_completion_imports_nothing_heavy(words: str) -> None:
    count = str(len(words.split()) - 1)
    result = probe(_RKD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert result.stderr.strip() == "[]"
    if words == "rkd r":
        assert result.stdout.split() == ["plain,run", "plain,recipes"] or "plain,run" in result.stdout.split()


def test_the_installed_script_answers() -> None:
    script = Path(sys.executable).with_name("rkd")
    if not script.exists():
        pytest.skip("rkd is not installed as a script here")
    result = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("rkd, version ")


def test_help_lists_every_command(rkd) -> None:
    said = rkd("--help")
    assert said.exit_code == 0
    for command in ("run", "eval", "list-plugins", "info", "cite", "recipes"):
        assert f"\n  {command} " in said.stdout


def test_unknown_command(rkd) -> None:
    said = rkd("rnu")
    assert said.exit_code == 2
    assert said.stdout == ""
    assert "there is no command 'rnu'. Did you mean run?" in said.stderr


COMMANDS = """
import click
from rkd import hookimpl

@hookimpl
def rkd_commands(cli):
    @cli.command()
    @click.argument("name")
    def hello(name):
        "Greet."
        click.echo(f"hello {name}")

    @cli.command()
    def run():
        click.echo("not the real one")
"""


def test_a_plugin_adds_a_command_and_replaces_none(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "greet.py"
    plugin.write_text(COMMANDS)
    assert rkd("--plugin", plugin, "hello", "you").stdout == "hello you\n"
    assert "RECIPE" in rkd("--plugin", plugin, "run", "--help").stdout
    assert "hello" not in rkd("--plugin", plugin, "--help").stdout
    assert rkd("hello", "you").exit_code == 2


def test_two_plugins_with_one_command(rkd, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(COMMANDS)
    said = rkd("--plugin", tmp_path / "one.py", "--plugin", tmp_path / "two.py", "hello", "you")
    assert said.exit_code == 2
    assert "two plugins provide the command 'hello': file/one and file/two" in said.stderr


def test_a_plugin_whose_commands_fail(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "sad.py"
    plugin.write_text("from rkd import hookimpl\n@hookimpl\ndef rkd_commands(cli):\n    raise KeyError('sad')\n")
    said = rkd("--plugin", plugin, "hello")
    assert said.exit_code == 2
    assert "Plugins that could not be loaded: file/sad" in said.stderr


def test_a_plugin_file_that_does_not_exist(rkd) -> None:
    said = rkd("run", "--plugin", "nowhere.py")
    assert said.exit_code == 2
    assert said.stderr == "error: there is no plugin file nowhere.py\n"


def test_a_plugin_file_that_does_not_load_is_an_error(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import does_not_exist\n")
    said = rkd("info", "ce", "--plugin", plugin)
    assert said.exit_code == 2
    assert said.stderr.startswith(f"error: the plugin file {plugin} could not be loaded: ModuleNotFoundError")


CRASH = """
from rkd import hookimpl

@hookimpl
def rkd_commands(cli):
    @cli.command()
    def crash():
        raise {error}
"""


def crash(rkd, tmp_path: Path, error: str, *options: str):
    plugin = tmp_path / "crash.py"
    plugin.write_text(CRASH.format(error=error))
    return rkd(*options, "--plugin", plugin, "crash")


def test_an_unexpected_error_is_short_and_says_where(rkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = crash(rkd, tmp_path, "KeyError('oh')")
    assert said.exit_code == 1
    assert said.stdout == ""
    assert said.stderr.startswith("error: unexpected KeyError: 'oh'\n")
    assert "Traceback" not in said.stderr
    (kept,) = tmp_path.glob("rkd-error-*.txt")
    assert str(kept) in said.stderr
    assert "Traceback" in kept.read_text()


def test_debug_shows_the_traceback(rkd, tmp_path: Path) -> None:
    said = crash(rkd, tmp_path, "KeyError('oh')", "--debug")
    assert said.exit_code == 1
    assert "Traceback" in said.stderr


TURN_DOWN = (
    "  in a training --auto-batch keeps the batch and computes it in as few parts as fit (--grad-accumulation N: in N);"
    "\n"
    "  also --precision bf16, a smaller student or teacher; in an evaluation of a run: --set evaluate.batch_size=N\n"
)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ("OSError(28, 'No space left on device', 'here')", 2, "error: No space left on device: here\n"),
        ("KeyboardInterrupt", 130, "error: interrupted\n"),
        ("MemoryError('much')", 2, "error: out of memory (much); try a smaller --batch-size\n" + TURN_DOWN),
        (
            'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")',
            2,
            "error: out of memory (DefaultCPUAllocator: can't allocate memory); try a smaller --batch-size\n"
            + TURN_DOWN,
        ),
    ],
)
def test_errors_that_are_no_bugs(rkd, tmp_path: Path, error: str, code: int, words: str) -> None:
    said = crash(rkd, tmp_path, error)
    assert (said.exit_code, said.stderr) == (code, words)


@pytest.mark.parametrize("words", [["run", "--loss", ""], ["run", "--dataset="], ["info", ""]])
def test_an_empty_value_is_an_error(rkd, words: list[str]) -> None:
    """`--loss "$LOSS"` with LOSS unset trained the default method."""
    said = rkd(*words)
    assert said.exit_code == 2 and "is empty (is a variable of the shell unset?)" in said.stderr
