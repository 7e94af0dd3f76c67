"""Transcripts of the command line: `rkd("run", "--epochs", "1")`, then what it said and did.

Everything runs in one process on one thread, in an empty folder, with a cache of its own.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rkd.cli import cli
from rkd.cli.terminal import Terminal

TINY = ("--epochs", "1", "--set", "student.width=4", "--set", "evaluate.limit=50", "--set", "attack.steps=2",
        "--set", "validate.limit=50", "--evaluate", "fgsm,pgd", "--no-report")  # fmt: skip
"""Settings that make a run of a method with an attack a matter of a second."""


@dataclass
class Said:
    """What a command said, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def invoke(*words: str | Path) -> Said:
    separate = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    result = CliRunner(**separate).invoke(cli, [str(word) for word in words], catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared teachers, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RKD_CACHE", str(cache))
    monkeypatch.delenv("RKD_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder


@pytest.fixture
def rkd() -> Callable[..., Said]:
    return invoke


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A finished run of pgd-at, with what `rkd run --json` said."""
    out = tmp_path_factory.mktemp("finished")
    said = invoke("run", "--loss", "pgd-at", *TINY, "--out", out, "--name", "first", "--json")
    assert said.exit_code == 0, said.stderr
    return out / "first", said


def digest(run: Path) -> str:
    """The weights of a run, bit for bit."""
    return hashlib.sha256((run / "student.safetensors").read_bytes()).hexdigest()


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch):
    """Makes terminals of a width, and what they show without control characters."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def make(width: int, **options) -> tuple[Terminal, Screen]:
        stream = Screen()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        return Terminal(**options), stream

    return make


def plain(stream: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
