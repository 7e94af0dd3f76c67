"""Text from strangers: TOML that costs too much, values that smuggle nothing in, files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.registry.recipes import read_recipe
from rkd.storage.text import (
    attack_name,
    command,
    did_you_mean,
    flattened,
    fraction,
    parse_toml,
    read_text,
    shown,
    with_input,
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a." * 100_000 + "a = 1", "parts"),
        ('"a" . ' * 50 + "a = 1", "parts"),
        ("a = " + "[" * 100_000, "nested"),
        ("a = " + "{a = " * 5000, "nested"),
        ("a = " + "[" * 40 + "]" * 40, "nested"),
        ("a = 0x" + "f" * 1000, "64 bits"),
        ("a = [1, [9223372036854775808]]", "64 bits"),
        ("#" * (1 << 21), "larger"),
    ],
)
def test_toml_that_costs_too_much(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse_toml(text)


def test_toml_that_costs_little() -> None:
    assert parse_toml("a.b.c = [0.1, 0.2, 0.3]\nd = 9223372036854775807\n")["a"]["b"]["c"] == [0.1, 0.2, 0.3]
    assert parse_toml(f"a = [{'0.5, ' * 1000}]\nb = '{'x.y.' * 100}'")["b"].startswith("x.y")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="no file"):
        read_text(Path("/dev/zero"))
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(RkdError, match="no file"):
        read_recipe(tmp_path / "fifo.toml")
    with pytest.raises(RkdError):
        read_recipe("a\0b.toml")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("pgd-sat", "PGD-SAT"),
        ("cw-30", "CW-30"),
        ("fab-t", "FAB-T"),
        ("mifgsm", "MI-FGSM"),
        ("autoattack", "AutoAttack"),
        ("autoattack-reference", "AutoAttack-reference"),
        ("noise", "noise"),
        ("somebodys-pgd", "somebodys-PGD"),
        ("file/pgd", "file/pgd"),
    ],
)
def test_names_of_attacks(name: str, written: str) -> None:
    assert attack_name(name) == written


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


@pytest.mark.parametrize(
    ("value", "written"),
    [(8 / 255, "8/255"), (38 / 255, "38/255"), (0.2, "0.2"), (0.3, "0.3"), (1.0, "1"), (0.5, "0.5")],
)
def test_radii_as_the_field_writes_them(value: float, written: str) -> None:
    assert fraction(value) == written


def test_commands_can_be_pasted() -> None:
    assert command("run", "--resume", Path("my runs/a")) == "rkd run --resume 'my runs/a'"
    assert command("eval", "runs/a") == "rkd eval runs/a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_what_powershell_writes(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    text = 'epochs = 2\r\n[loss]\r\nname = "träges"\r\n'
    (tmp_path / "a.toml").write_bytes((mark + text).encode(encoding))
    assert read_recipe(tmp_path / "a.toml") == {"epochs": 2, "loss": {"name": "träges"}}


def test_other_encodings_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes('name = "träges"'.encode("latin-1"))
    with pytest.raises(RkdError, match="byte 11 is not UTF-8; save the file as UTF-8"):
        read_recipe(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_bytes("name = 3".encode("utf-16-le"))
    with pytest.raises(RkdError, match="not valid TOML"):
        read_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["a = 1979-05-27", "a = [[07:32:00]]", "a = {b = 1979-05-27T07:32:00Z}"])
def test_dates_are_no_settings(text: str) -> None:
    with pytest.raises(ValueError, match="a date or a time"):
        parse_toml(text)


def test_dotted_keys() -> None:
    table = {"seed": 1, "loss": {"name": "kd", "inner": {"T": [2]}}, "empty": {}}
    assert dict(flattened(table)) == {"seed": 1, "loss.name": "kd", "loss.inner.T": [2]}
