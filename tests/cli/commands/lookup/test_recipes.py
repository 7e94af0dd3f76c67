"""`rkd recipes`: the shipped ones, listed and printed."""

from __future__ import annotations

import tomllib


def test_recipes(rkd) -> None:
    said = rkd("recipes")
    assert said.exit_code == 0
    names = [line.split()[0] for line in said.stdout.splitlines()[1:]]
    assert "digits-mtard" in names
    text = rkd("recipes", "digits-mtard").stdout
    assert text.startswith("# ")
    assert tomllib.loads(text)["loss"]["name"] == "mtard-anl"
    assert {item["name"] for item in rkd("recipes", "--json").json["recipes"]} == set(names)


def test_an_unknown_recipe(rkd) -> None:
    for words in (("recipes", "digits-mtrad"), ("run", "digits-mtrad")):
        said = rkd(*words)
        assert said.exit_code == 2
        assert "Did you mean digits-mtard" in said.stderr
