"""`rkd info`: all that there is to know about a component."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


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
    formula = {
        60: "    L = alpha KL(T(x) ‖ S(x'))\n        + (1 - alpha) KL(T(x) ‖ S(x)),\n    x' = argmax KL(T(x) ‖ S(x'))\n",  # noqa: E501
        80: "    L = alpha KL(T(x) ‖ S(x')) + (1 - alpha) KL(T(x) ‖ S(x)),\n    x' = argmax KL(T(x) ‖ S(x'))\n",
        100: "    L = alpha KL(T(x) ‖ S(x')) + (1 - alpha) KL(T(x) ‖ S(x)),    x' = argmax KL(T(x) ‖ S(x'))\n",
    }[width]
    assert f"\n\n{formula}\n" in said
    paragraph = said[said.index("The official script") : said.index("to cite it")].strip().splitlines()
    assert all(len(line) <= width < len(line) + 40 for line in paragraph[:-1])


def test_info_of_losses_side_by_side(rkd) -> None:
    said = rkd("info", "mtard+igdm+ciard")
    assert said.exit_code == 0
    assert said.stdout.startswith("loss mtard+igdm+ciard\n")
    for text in (
        "L = w_adv KL(T_robust(x') ‖ S(x'))", "IGDM (Lee et al., 2025)", "L = alpha (epoch / epochs) KL(softmax(T(x')",
        "to cite them: rkd cite mtard+igdm+ciard", "teachers, by role: robust, clean",
        "nets beside the student: learner (learns, starts as the teacher robust)",
        "weights of the terms of mtard, 1 if none is named: adv 0.5, clean 0.5",
        "weights of the terms of igdm, 1 if none is named: igdm 0 (start) 0.5 (middle) 1 (end)",
        "their defaults: attack = pgd, objective = ce, scheduler = entropy-balance + magnitude",
        "schedulers.entropy-balance.robust = learner", "ciard.since",
    ):  # fmt: skip
        assert text in said.stdout, text
    assert "to be decided" not in said.stdout
    said = rkd("info", "mtard+rslad").stdout
    assert "to be decided: objective: the losses side by side want ce (mtard) and kl-teacher (rslad); choose" in said
    found = rkd("info", "mtard+rslad", "--json").json
    assert [part["name"] for part in found["parts"]] == ["mtard", "rslad"]
    assert found["contradictions"][0].startswith("objective: the losses side by side want ce (mtard) and kl-teacher")
    assert found["parts"][1]["weights"]["adv"] == pytest.approx([5 / 6] * 3)


@pytest.mark.parametrize(("name", "word"), [
    ("rslad+nosuch", "there is no loss 'nosuch'"), ("rslad+rslad", "no sum of different losses"), ("rslad+", "no sum"),
])  # fmt: skip
def test_what_is_no_sum_of_losses(rkd, name: str, word: str) -> None:
    said = rkd("info", name)
    assert said.exit_code == 2 and word in said.stderr
    said = rkd("info", "rslad+igdm", "--kind", "attack")
    assert said.exit_code == 2 and "there is no attack 'rslad+igdm'" in said.stderr
