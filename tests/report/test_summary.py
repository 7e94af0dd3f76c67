"""Tiles, warnings, facts and the other short sections of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.report import build_report

from .folders import SIZES, Page, full_net, make_run, net, search


@pytest.mark.slow
def test_tiles_and_warnings(page: Page) -> None:
    top = page.text("top")
    for words in (
        "clean accuracy 97.8 % [93.8–100.0]",
        "worst case 70.0 % [66.0–73.0] under FGSM",
        "−15.9 points worst case; the robust teacher keeps 85.9",
        "62.5 % class digit 3",
        "fgsm-beats-iterated FGSM beats PGD gradients are masked What to do: run autoattack",
        "a plain warning",
    ):
        assert words in top, words


@pytest.mark.slow
def test_questions_to_another_net_are_shown(tmp_path: Path) -> None:
    searches = {
        "fgsm": search("fgsm"),
        "transfer": search("transfer", forwards=0, backwards=0, other_forwards=4321, other_backwards=1234),
    }
    folder = make_run(tmp_path / "a", student=full_net() | {"searches": searches}, examples=False)
    text = Page(build_report(folder).html).text("results")
    assert text.count("other net") == 1 and "0 / 0 other net 4,321 / 1,234" in text


def test_a_warning_of_several_nets_is_one(tmp_path: Path) -> None:
    doubt = {"check": "few", "meaning": "it means little", "advice": "take more"}
    nets = [net() | {"warnings": [doubt | {"finding": f"between {n}"}]} for n in (1, 2)]
    folder = make_run(
        tmp_path / "a", student=nets[0], teachers=[{"role": "robust"} | nets[1]], epochs=0, examples=False
    )
    text = Page(build_report(folder).html).text("top")
    assert "few student: between 1 robust teacher: between 2 it means little What to do: take more" in text
    assert text.count("take more") == 1


def test_the_other_sections(page: Page) -> None:
    assert "clean 6.2 %, PGD-SAT 12.5 %" in page.text("closer")
    assert "fog 90.0 80.0 70.0 60.0 50.0" in page.text("corruptions")
    cost = page.text("cost")
    assert "student 12 11 robust 1 0" in cost and "training, 3 epochs 30 s" in cost and "3 min 20 s" in cost
    repeat = page.text("repeat")
    assert "rkd run first/config.toml" in repeat and "rkd run --epochs 3 --name 'my run'" in repeat
    assert "/somewhere/bin" not in repeat
    assert "@inproceedings{zhao" in page.text("citations")
    versions = page.text("versions")
    assert "torch 2.15.0" in versions and "Abacus 3000" in versions and "strange/losses.mine 2.0" in versions
    assert "tf32 {matmul = false}" in versions
    assert "rkd-toolkit/attacks.pgd" not in versions
    assert 'name = "mtard-anl"' in page.text("configuration")
    assert "left-out" not in page.texts and "Not measured in this run" not in page.text("top")


def test_a_resumed_training_lasted_as_long_as_its_parts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", student=net(), epochs=0, examples=False)
    for number, seconds in enumerate((10, 20, 7, 14)):
        folder.log({"epoch": number, "seconds": seconds})
    assert "training, 4 epochs 34 s one epoch, on average 8.5 s" in Page(build_report(folder).html).text("cost")


def test_the_nets_beside_one_another(tmp_path: Path) -> None:
    cost = Page(build_report(make_run(tmp_path / "run", manifest={"sizes": SIZES})).html).text("cost")
    assert "student 25,978 105 kB 159 k 0.25 [0.20–0.50]" in cost
    assert "robust teacher 259,780 1.05 MB 45 M 7.00 10" in cost
    assert "clean teacher – – – –" in cost and "of 30 runs" in cost
