"""Recipes and `--set`: read, merged, written, and what is said about those that cannot be read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.core.errors import ConfigError, RkdError, UnknownName
from rkd.registry.config import parse
from rkd.registry.recipes import assignments, merge, nested, read_recipe, recipes, toml

# --set


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("epochs=3", {"epochs": 3}),
        ("loss.T=4", {"loss": {"T": 4}}),
        ("attack.eps=8/255", {"attack": {"eps": "8/255"}}),
        ("attack.start=uniform", {"attack": {"start": "uniform"}}),
        ('attack.start="uniform"', {"attack": {"start": "uniform"}}),
        ("loss.alpha=ramp(0, 0.3, until=0.4)", {"loss": {"alpha": "ramp(0, 0.3, until=0.4)"}}),
        ("schedulers.anl=false", {"schedulers": {"anl": False}}),
        ("augments.a-b.views=['adv', 'weak']", {"augments": {"a-b": {"views": ["adv", "weak"]}}}),
        ("optimizer.lr = 0.1", {"optimizer": {"lr": 0.1}}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": ""}),
        ("optimizer.weight_decay=2e-4", {"optimizer": {"weight_decay": 2e-4}}),
    ],
)
def test_assignments(text: str, table: dict) -> None:
    assert assignments([text]) == table


def test_later_assignments_win() -> None:
    assert assignments(["loss.T=1", "loss.alpha=2", "loss.T=3"]) == {"loss": {"T": 3, "alpha": 2}}


@pytest.mark.parametrize("text", ["epochs", "=3", ".a=3", "a.=3", "a..b=3", ""])
def test_assignments_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        assignments([text])


def test_a_value_is_no_table() -> None:
    with pytest.raises(ConfigError, match="'loss' was set to a value before"):
        assignments(["loss=3", "loss.T=4"])
    with pytest.raises(ConfigError) as error:
        assignments(["epochs", "x", "a=1"])
    assert len(error.value.problems) == 2


# Merging


def test_later_tables_go_on_top() -> None:
    assert merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}}, {"e": 5}) == {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}


def test_another_component_brings_none_of_the_options_of_the_first() -> None:
    pgd = {"attack": {"name": "pgd", "steps": 10}}
    assert merge(pgd, {"attack": {"name": "fgsm"}}) == {"attack": {"name": "fgsm"}}
    assert merge(pgd, {"attack": {"name": "pgd", "eps": 1}}) == {"attack": {"name": "pgd", "steps": 10, "eps": 1}}
    assert merge(pgd, {"attack": {"steps": 3}}) == {"attack": {"name": "pgd", "steps": 3}}


def test_what_is_taken_out_stays_out() -> None:
    assert merge({"schedulers": {"anl": {"rate": 1}}}, {"schedulers": {"anl": False}}) == {"schedulers": {"anl": False}}


def test_merging_changes_none_of_its_tables() -> None:
    one, two = {"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}
    merged = merge(one, two)
    merged["a"]["b"]["e"] = 3
    assert (one, two) == ({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}})


LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.booleans())
TABLES = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), st.one_of(LEAVES, inner), max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(TABLES, TABLES, TABLES)
def test_merging_is_associative_and_keeps_its_last(a: dict, b: dict, c: dict) -> None:
    assert merge(a, {}) == a == merge({}, a) == merge(a, a)
    assert set(merge(a, b, c)) == set(a) | set(b) | set(c)
    assert merge(a, b, c) == merge(merge(a, b), c)


def test_nested() -> None:
    assert nested({"validate.select": "clean", "validate.steps": 0, "epochs": 3}) == {
        "validate": {"select": "clean", "steps": 0}, "epochs": 3,
    }  # fmt: skip


# Recipes


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_are_sound(name: str) -> None:
    text = recipes()[name]
    table = read_recipe(name)
    config = parse(table)
    assert parse(tomllib.loads(config.text())) == config
    assert text.startswith("# "), "the first line says what it is"
    assert f"rkd run {name}" in text, "and the second what to type"


def test_recipes_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 3\n[loss]\nname = "rslad"\n')
    assert read_recipe(path) == {"epochs": 3, "loss": {"name": "rslad"}}
    assert read_recipe(str(path)) == read_recipe(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "x/" * 3000])
def test_a_text_that_no_file_can_be_called(name: str) -> None:
    with pytest.raises(UnknownName, match="there is no recipe"):
        read_recipe(name)


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean digits-mtard"):
        read_recipe("digits-mtrad")
    with pytest.raises(RkdError, match="there is no recipe file"):
        read_recipe(tmp_path / "nowhere.toml")
    for content, word in ((b"epochs = = 3", "not valid TOML"), (b"\xff\xfe\x00", "cannot read"), (b"a=1\na=2", "TOML")):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(RkdError, match=word):
            read_recipe(tmp_path / "bad.toml")
    with pytest.raises(RkdError):
        read_recipe(tmp_path)


def test_toml_has_no_none() -> None:
    assert tomllib.loads(toml({"a": None, "b": {"c": None, "d": [{"e": None, "f": 1}]}})) == {"b": {"d": [{"f": 1}]}}
