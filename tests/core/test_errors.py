"""Errors that are shown to the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import ConfigError, RkdError, Stopped, command, did_you_mean, shown, with_input


def test_several_problems_are_one_error() -> None:
    error = ConfigError(["epochs: too few", "lr: negative"])
    assert str(error) == "epochs: too few\nlr: negative" and len(error.problems) == 2
    assert ConfigError("lr: negative").problems == ["lr: negative"]


def test_a_stop_is_no_mistake() -> None:
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, RkdError)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rsald", " Did you mean rslad?"),
        ("PGD", " Did you mean pgd?"),
        ("xyzzy", ""),
        ("r" * 101, ""),
    ],
)
def test_near_names_are_suggested(name: str, words: str) -> None:
    assert did_you_mean(name, ["rslad", "pgd"]) == words


def test_what_was_given_is_told_once_and_cut() -> None:
    assert with_input("must be positive", -1) == "must be positive (got -1)"
    assert with_input("must be positive, got -1", -1) == "must be positive, got -1"
    assert len(shown("x" * 1000)) == 200 and shown("x" * 1000).endswith("...")


def test_commands_can_be_pasted() -> None:
    assert command("run", "--resume", Path("my runs/a")) == "rkd run --resume 'my runs/a'"
    assert command("eval", "runs/a") == "rkd eval runs/a"
