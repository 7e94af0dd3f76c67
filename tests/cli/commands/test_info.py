"""`rkd info`: all that there is to know about a component."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rkd.cli.commands.info import reflowed


def test_info_of_a_method(rkd) -> None:
    said = rkd("info", "mtard-anl")
    assert said.exit_code == 0
    assert said.stdout.startswith("loss mtard-anl\nfrom rkd-toolkit ")
    assert "teachers, by role: robust, clean" in said.stdout
    assert "attack = pgd, objective = ce, scheduler = anl" in said.stdout
    assert "@inproceedings" not in said.stdout
    assert re.search(r"reduction +batchmean +batchmean \| mean", said.stdout)


def test_info_as_json(rkd) -> None:
    found = rkd("info", "pgd", "--kind", "attack", "--json").json
    assert found["kind"] == "attack"
    options = {option["name"]: option for option in found["options"]}
    assert options["steps"] == {"name": "steps", "type": "integer", "default": 10, "required": False}
    assert options["eps"]["type"] == "number or schedule | none"
    assert found["traits"]["objective"] == "ce" and not found["traits"]["own_objective"]


@pytest.mark.slow
def test_info_of_an_attack_lists_its_traits(rkd) -> None:
    said = rkd("info", "cw-l2").stdout
    assert "traits: objective = margin, measure = L2, own_objective, seeks_nearest, any_radius" in said
    assert "keeps to no ball" in rkd("info", "jsma").stdout
    assert rkd("info", "rslad", "--json").json["traits"] == {}


def test_info_of_a_loss_tells_of_nets_beside_the_student(rkd) -> None:
    assert "nets beside the student: peer (learns, like the student)" in rkd("info", "peeraid").stdout
    assert "average (the student's moving average)" in rkd("info", "adr").stdout
    assert "learner (learns, starts as the teacher robust)" in rkd("info", "ciard").stdout
    assert rkd("info", "rslad", "--json").json["companions"] == {}


def test_info_of_a_family(rkd) -> None:
    said = rkd("info", "wrn34")
    assert re.search(r"depth +34 \(by the name\) +integer", said.stdout)
    assert "wrn28-10" in rkd("info", "wrnDEPTH-WIDTH").stdout


def test_info_of_a_name_of_several_kinds(rkd) -> None:
    said = rkd("info", "ce")
    assert "loss ce\n" in said.stdout
    assert "objective ce\n" in said.stdout
    assert "loss ce\n" not in rkd("info", "ce", "--kind", "objective").stdout
    assert [item["kind"] for item in rkd("info", "ce", "--json").json["components"]] == ["objective", "loss"]


def test_info_of_an_unknown_name(rkd) -> None:
    said = rkd("info", "mtrad")
    assert said.exit_code == 2
    assert said.stderr.startswith("error: nothing is called 'mtrad'. Did you mean mtard")
    said = rkd("info", "rslad", "--kind", "attack")
    assert said.exit_code == 2
    assert "there is no attack 'rslad'" in said.stderr


def test_info_of_a_local_plugin(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        '"""A loss of one\'s own."""\n'
        "from dataclasses import dataclass\nfrom rkd import hookimpl\n"
        "@dataclass\nclass Mine:\n    '''Mine alone.'''\n    alpha: float = 8 / 255\n"
        "@hookimpl\ndef rkd_losses():\n    return {'mine': Mine}\n"
    )
    said = rkd("info", "mine", "--plugin", plugin)
    assert "Mine alone." in said.stdout
    assert "A loss of one's own." in said.stdout
    assert re.search(r"alpha +8/255 +number", said.stdout)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_paragraphs_are_broken_anew(rkd, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    whole = rkd("info", "rslad").stdout
    monkeypatch.setenv("COLUMNS", str(width))
    said = rkd("info", "rslad").stdout
    assert said.split() == whole.split()
    formula = "    L = alpha KL(T(x) ‖ S(x')) + (1 - alpha) KL(T(x) ‖ S(x)),    x' = argmax KL(T(x) ‖ S(x'))"
    assert formula in said.splitlines()
    paragraph = said[said.index("The official script") : said.index("to cite it")].strip().splitlines()
    assert all(len(line) <= width < len(line) + 40 for line in paragraph[:-1])


def test_lists_and_tables_stay() -> None:
    table = "| a | table of five or six words |\n| b | c |"
    text = f"Some words that\nare broken.\n\n- an item that goes\n  on\n- another\n\n{table}"
    assert reflowed(text, 25) == f"Some words that are\nbroken.\n\n- an item that goes on\n- another\n\n{table}"
    assert reflowed(text, 80) == text
