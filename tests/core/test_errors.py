"""Errors that are shown to the user."""

from __future__ import annotations

from rkd.core.errors import ConfigError, RkdError, Stopped


def test_several_problems_are_one_error() -> None:
    error = ConfigError(["epochs: too few", "lr: negative"])
    assert str(error) == "epochs: too few\nlr: negative" and len(error.problems) == 2
    assert ConfigError("lr: negative").problems == ["lr: negative"]


def test_a_stop_is_no_mistake() -> None:
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, RkdError)
