"""Tables of a comparison: JSON, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from rkd.report import compare, sizes, to_csv, to_json, to_latex
from rkd.report.compare import Comparison
from rkd.report.tables import latex

from .folders import SIZES, make_run, net


def test_json(found: Comparison) -> None:
    content = json.loads(json.dumps(to_json(found)))
    assert set(content) == {"robust", "attacks", "groups", "runs", "differences", "warnings"}
    for group in content["groups"]:
        assert set(group) == {"name", "runs", "seeds", "clean", "attacks", "worst_case", "w_robust", "nrr", "baseline"}
        assert set(group["clean"]) == {"mean", "std", "interval_95"}
    for run in content["runs"]:
        assert set(run) == {
            "run", "group", "method", "student", "data", "norm", "eps", "seed", "epochs", "seconds", "samples", "clean",
            "attacks", "worst_case", "interval_95", "sizes", "warnings",
        }  # fmt: skip
    assert content["groups"][0]["attacks"]["pgd-sat"]["mean"] == pytest.approx(0.6)
    assert content["runs"][3]["attacks"] == {"fgsm": 0.72, "pgd-sat": 0.65}
    assert content["differences"]["loss.name"] == {"mtard-anl small-cnn": "mtard-anl", "at": "pgd-at"}


def test_csv(found: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["run"] for row in rows] == ["mtard-0", "mtard-1", "mtard-2", "at"]
    assert [float(row["pgd-sat"]) for row in rows] == [0.6, 0.5, 0.7, 0.65]
    assert (float(rows[3]["clean_low"]), rows[3]["seed"], rows[3]["method"]) == (0.94 - 0.04, "0", "pgd-at")
    assert {row["group"] for row in rows} == {"mtard-anl small-cnn", "at"}


def test_csv_of_strange_names(tmp_path: Path) -> None:
    student = net() | {"attacks": {"=cmd()": 0.5, 'a,"b\nc': 0.25}}
    folder = make_run(tmp_path / "a", config={"loss": {"name": "=HYPERLINK(1)"}}, student=student)
    row = next(csv.DictReader(io.StringIO(to_csv(compare([folder])))))
    assert row["method"] == "'=HYPERLINK(1)", "no formula"
    assert row["'=cmd()"] == "0.5" and row['a,"b c'] == "0.25" and row["worst_case"] == "0.7"


def test_sizes(tmp_path: Path, found: Comparison) -> None:
    assert sizes(found)[1] == [], "none of these runs measured them"
    old = make_run(tmp_path / "old", config={"epochs": 9})
    both = compare([make_run(tmp_path / "sized", manifest={"sizes": SIZES}), old])
    heads, rows = sizes(both)
    assert len(heads) + 1 == len(rows[0])
    assert sorted(rows) == [
        ["old", "–", "–", "–", "–", "–", "–"],
        ["sized", "25,978", "105 kB", "159 k", "0.25 [0.20–0.50]", "259,780", "10"],
    ]
    row = next(row for row in csv.DictReader(io.StringIO(to_csv(both))) if row["run"] == "sized")
    assert (row["parameters"], row["macs"], row["latency_ms"]) == ("25978", "159232", "0.25")
    assert row["teacher_parameters"] == "259780"
    content = {run["run"]: run["sizes"] for run in to_json(both)["runs"]}
    assert content["old"] == {} and content["sized"]["robust"]["bytes"] == 1_048_320


def test_latex(found: Comparison) -> None:
    lines = to_latex(found).splitlines()
    assert lines[0] == r"% digits, Linf eps 38/255, 359 test images; values in %. Needs \usepackage{booktabs}."
    assert lines[1:4] == [
        r"\begin{tabular}{lrrrrrrr}", r"\toprule",
        r"Run & Seeds & clean & FGSM & PGD-SAT & worst case & W-Robust & NRR \\",
    ]  # fmt: skip
    assert lines[5].startswith(r"mtard-anl small-cnn & 3 & $96.0 \pm 1.0$ & $70.0 \pm 0.0$ & $60.0 \pm 10.0$ & ")
    assert lines[6].startswith(r"at & 1 & 94.0 {\scriptsize [90.0, 97.0]} & ")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert {line.count("&") for line in lines if line.endswith(r"\\")} == {7}


def test_latex_of_strange_names(tmp_path: Path) -> None:
    name = r"\input{/etc/passwd} 100%_#&$x^2~{}[1]*"
    config, student = {"loss": {"name": name}}, net() | {"warnings": [name]}
    folders = [make_run(tmp_path / str(n), config=config | {"seed": n}, student=student) for n in (0, 1)]
    lines = to_latex(compare(folders)).splitlines()
    cell = next(line for line in lines if line.endswith(r"\\") and "Run" not in line).partition(" & ")[0]
    escaped = r"\textbackslash{}input\{/etc/passwd\} 100\%\_\#\&\$x\textasciicircum{}2\textasciitilde{}\{\}{[}1{]}{*}"
    assert cell == f"{escaped} small-cnn"
    assert [line[0] for line in lines if line.endswith(name)] == ["%"], "a warning is a comment"


def test_latex_never_lets_a_special_character_through() -> None:
    plain = latex("".join(map(chr, range(32, 127))))
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}",
                    r"\textbar{}", "{''}", "{[}", "{]}", "{*}", *(f"\\{c}" for c in "{}$&%#_")):  # fmt: skip
        assert command in plain
        plain = plain.replace(command, "")
    assert not set(plain) & set('\\{}$&%#_^~<>|"[]*')
