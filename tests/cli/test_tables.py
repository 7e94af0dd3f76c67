"""Tables of results on terminals of any width."""

from __future__ import annotations

import pytest

from rkd.cli.tables import accuracy_table, show_evaluation, threat_text
from rkd.cli.terminal import Terminal

from .conftest import plain


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_many_attacks_go_into_several_tables(screen, width: int) -> None:
    terminal, stream = screen(width)
    columns = ["clean", "FGSM", "PGD-SAT", "PGD-TRADES", "CW", "CW-30", "Square", "AutoAttack", "worst case"]
    nets = ("student timm:mobilenetv3_small_050", f"robust teacher {'x' * 60}")
    accuracy_table("Accuracy", columns, [(name, dict.fromkeys(columns, 0.123)) for name in nets], terminal)
    lines = plain(stream)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert all(column in text for column in columns)
    assert text.count("12.3") == 2 * len(columns)
    assert nets[0] in text and nets[1] in text.replace("\n", "")
    assert "..." not in text and "…" not in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_an_evaluation_is_not_cut(screen, width: int) -> None:
    terminal, stream = screen(width)
    names = ["clean", "pgd-trades", "autoattack", "worst_case"]
    values = dict.fromkeys(names, 0.123)
    attacks = dict.fromkeys(names[1:3], 0.123)
    show_evaluation({
        "samples": 100, "clean": 0.123, "attacks": attacks, "worst_case": 0.123,
        "interval_95": {name: (0.45, 0.678) for name in names}, "rounded": values, "worst_class": values,
        "w_robust": attacks, "nrr": attacks, "calibration": {"clean": {"ece": 0.123}}, "seconds": {"autoattack": 12.3},
        "searches": {}, "warnings": [],
    }, {"norm": "Linf", "eps": 8 / 255}, "d" * 30, terminal)  # fmt: skip
    lines = plain(stream)
    text = "\n".join(lines)
    headings = ("accuracy", "95 % interval", "8 bits", "W-Robust", "NRR", "worst class", "ECE", "seconds")
    assert all(len(line) <= width for line in lines) and all(heading in text for heading in headings)
    assert text.count("45.0 - 67.8") == 4 and text.count("12.3") == 4 + 4 + 2 + 2 + 4 + 1 + 1


def test_an_evaluation_with_one_attack_has_no_worst_case(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"clean": 0.9, "pgd": 0.4, "worst_case": 0.4}
    summary = {
        "samples": 100, "clean": 0.9, "attacks": {"pgd": 0.4}, "worst_case": 0.4,
        "interval_95": {name: (value - 0.1, value + 0.1) for name, value in values.items()},
        "worst_class": dict.fromkeys(values), "w_robust": {"pgd": 0.65}, "nrr": {"pgd": 0.55}, "calibration": {},
        "seconds": {"pgd": 1.25}, "searches": {"pgd": {"notes": ["a note"]}},
        "warnings": [{"check": "x", "finding": "few images", "meaning": "wide intervals", "advice": "take more"}],
    }  # fmt: skip
    show_evaluation(summary, {"norm": "Linf", "eps": 8 / 255}, "digits", Terminal())
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "100 test images of digits, Linf eps 8/255; values in %"
    assert [line.split()[0] for line in lines[2:]] == ["clean", "PGD"]
    assert lines[3].split() == ["PGD", "40.0", "30.0", "-", "50.0", "65.0", "55.0", "1.2"]
    assert said.err == "PGD: a note\nwarning: few images: wide intervals; take more\n"


def test_a_threat_in_words() -> None:
    assert threat_text({"norm": "L2", "eps": 0.5}) == "L2 eps 0.5"
