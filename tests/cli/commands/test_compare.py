"""`rkd compare`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from ...report.folders import make_evaluation, make_run, net


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one method and one run of another."""
    made = [make_run(tmp_path / f"s{seed}", config={"seed": seed}, student=net(0.9 + seed / 50, 0.7, 0.6), epochs=0)
            for seed in (0, 1)]  # fmt: skip
    made.append(make_run(tmp_path / "at", config={"loss": {"name": "pgd-at"}}, student=net(0.95, 0.7, 0.65), epochs=0))
    return [folder.path for folder in made]


def test_the_table(rkd, runs: list[Path]) -> None:
    said = rkd("compare", *runs)
    assert said.exit_code == 0 and said.stderr == ""
    lines = [line.split() for line in said.stdout.splitlines()]
    assert " ".join(lines[0]) == "Accuracy in % on digits, Linf eps 38/255, 359 test images"
    assert lines[1] == ["seeds", "clean", "FGSM", "PGD-SAT", "worst", "case", "W-Robust", "NRR"]
    assert lines[2][:6] == ["mtard-anl", "small-cnn", "2", "91.0", "±", "1.4"]
    assert lines[3][:4] == ["at", "1", "95.0", "[91.0–98.0]"]


def test_it_says_of_what_the_means_are(rkd, runs: list[Path]) -> None:
    for words in ((), ("--latex",)):
        said = rkd("compare", *runs, *words, "--attack", "pgd-sat").stdout
        assert "W-Robust and NRR of PGD-SAT" in " ".join(said.split())
        assert "NRR of" not in rkd("compare", *runs, *words).stdout


def test_json(rkd, runs: list[Path]) -> None:
    said = rkd("compare", *runs, "--json", "--attack", "pgd-sat")
    assert said.json["robust"] == "pgd-sat" and said.json["written"] == []
    assert [run["run"] for run in said.json["runs"]] == ["s0", "s1", "at"]
    assert said.json["groups"][1]["w_robust"]["mean"] == pytest.approx(0.8)


def test_csv_and_latex(rkd, runs: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(rkd("compare", *runs, "--csv").stdout)))
    assert [float(row["clean"]) for row in rows] == [0.9, 0.92, 0.95]
    assert r"\toprule" in rkd("compare", *runs, "--latex").stdout
    said = rkd("compare", *runs, "--latex", "--csv")
    assert said.exit_code == 2 and "give one of them" in said.stderr


@pytest.mark.slow
def test_a_page(rkd, runs: list[Path], tmp_path: Path) -> None:
    said = rkd("compare", *runs, "--html", tmp_path / "all.html", "--json")
    names = ["all.html", "all-trade-off.svg", "all-trade-off.png"]
    assert said.json["written"] == [str(tmp_path / name) for name in names]
    assert all((tmp_path / name).is_file() for name in names)


def test_an_evaluation_among_runs(rkd, runs: list[Path], tmp_path: Path) -> None:
    said = rkd("compare", *runs, make_evaluation(tmp_path / "kept").path)
    assert said.exit_code == 0 and said.stdout.splitlines()[-1].startswith("my-run")


def test_warnings_go_to_stderr(rkd, runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "mnist", card={"data": "mnist"}, manifest={"data": {"name": "mnist"}}, student=net())
    unfinished = make_run(tmp_path / "open", finished=False, epochs=0)
    for form in ((), ("--csv",), ("--latex",), ("--json",)):
        said = rkd("compare", runs[0], other.path, unfinished.path, *form)
        assert said.exit_code == 0
        assert "warning: the numbers are not comparable: different data sets" in said.stderr
        assert "warning: open is left out" in said.stderr


def test_what_cannot_be_compared(rkd, runs: list[Path], tmp_path: Path) -> None:
    assert rkd("compare").exit_code == 2
    assert "is not a run's folder" in rkd("compare", runs[0], tmp_path / "nothing").stderr
    said = rkd("compare", *runs, "--attack", "square")
    assert said.exit_code == 2 and "all have fgsm, pgd-sat" in said.stderr
    said = rkd("compare", make_run(tmp_path / "open", finished=False, epochs=0).path)
    assert said.exit_code == 2 and "nothing to compare" in said.stderr


def test_control_characters_do_not_reach_the_terminal(rkd, tmp_path: Path) -> None:
    config = {"loss": {"name": "\x1b[31mred"}}
    folders = [make_run(tmp_path / str(n), config=config | {"seed": n}, student=net(), epochs=0).path for n in (0, 1)]
    said = rkd("compare", *folders)
    assert "[31mred small-cnn" in said.stdout and "\x1b" not in said.stdout


@pytest.mark.parametrize("width", [60, 80, 100])
def test_narrow_terminals(rkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    names = ["first-pgd-at", "rslad-timm-mobilenetv3_small_050-digits-s0"]
    folders = [make_run(tmp_path / name, config={"loss": {"name": name[:5]}}, student=net(), epochs=0).path
               for name in names]  # fmt: skip
    whole = rkd("compare", *folders).stdout
    monkeypatch.setenv("COLUMNS", str(width))
    said = rkd("compare", *folders).stdout
    assert all(len(line) <= width for line in said.splitlines())
    assert all(word in said for word in (*names, "clean", "FGSM", "PGD-SAT", "worst case", "W-Robust", "NRR"))
    assert "…" not in said and " ".join(said.split()).count("too narrow for 95 % intervals: --csv has them") == 1
    assert "[" in whole and "too narrow" not in whole


def test_everything_in_a_folder(rkd, tmp_path: Path) -> None:
    """What a shell makes of `runs/*` where a sweep, its log and a page lie beside a run."""
    for name in ("at", "sweep/seed=0", "sweep/seed=1"):
        make_run(tmp_path / name, config={"seed": int(name[-1] == "1")}, student=net(), epochs=0)
    (tmp_path / "sweep" / "sweep.toml").touch()
    (tmp_path / "all.html").touch()
    said = rkd("compare", *sorted(tmp_path.glob("[as]*")), "--json")
    assert sorted(run["run"] for run in said.json["runs"]) == ["at", "seed=0", "seed=1"]
    assert f"warning: left out, since they are files: {tmp_path / 'all.html'}" in said.stderr.replace("\n", " ")
