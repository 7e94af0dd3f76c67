"""Runs side by side: groups of seeds, reasons not to compare, and the forms of the table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.report import against_baselines, compare, to_json, to_latex, write_comparison
from rkd.report.compare import Comparison
from rkd.storage.runfolder import RunFolder

from .conftest import seeds
from .folders import CARD, CONFIG, MANIFEST, Page, make_run, net, search
from .test_pages import POISON, hostile


def test_runs_that_differ_by_seed_alone_are_one_group(found: Comparison) -> None:
    assert [group.name for group in found.groups] == ["mtard-anl small-cnn", "at"]
    first, second = found.groups
    assert first.seeds == [0, 1, 2]
    value = first.value("pgd-sat")
    assert value is not None and value.mean == pytest.approx(0.6) and value.std == pytest.approx(0.1)
    assert value.interval is None
    alone = second.value("clean")
    assert alone is not None and (alone.mean, alone.std) == (0.94, None)
    assert alone.interval == pytest.approx((0.9, 0.97))
    assert found.robust == "worst_case" and found.warnings == []
    w_robust, nrr = found.combined(first)
    pairs = [(0.95, 0.59), (0.97, 0.49), (0.96, 0.69)]
    assert w_robust is not None and w_robust.mean == pytest.approx(statistics.fmean((c + r) / 2 for c, r in pairs))
    assert nrr is not None and nrr.std == pytest.approx(statistics.stdev(2 * c * r / (c + r) for c, r in pairs))


def test_settings_that_differ(found: Comparison) -> None:
    assert found.differences["loss.name"] == ["mtard-anl", "pgd-at"]
    assert found.differences["teachers.1.role"] == ["robust", ""]
    assert "seed" not in found.differences and "attack.steps" not in found.differences


def test_what_is_measured_besides_does_not_part_seeds(tmp_path: Path) -> None:
    wide = {"seed": 1, "evaluate": CONFIG["evaluate"] | {"examples": 0, "checks": "full"}}
    pair = [make_run(tmp_path / "a", student=net()), make_run(tmp_path / "b", config=wide, student=net())]
    assert len(compare(pair).groups) == 1 and not compare(pair).differences
    apart = make_run(tmp_path / "d", config=wide | {"loss": {"name": "ard"}}, student=net())
    assert not any(key.startswith("evaluate.") for key in compare([pair[0], apart]).differences)
    other = make_run(tmp_path / "c", config={"seed": 2, "epochs": 4}, student=net())
    assert len(compare([*pair, other]).groups) == 2


def test_baselines(tmp_path: Path) -> None:
    def run(seed: int, apart: float, loss: str = "pgd-at") -> RunFolder:
        baseline = net() | {"loss": loss, "difference": {"clean": [apart, apart - 0.1, apart + 0.2]}}
        folder = make_run(tmp_path / f"{loss}-{seed}", config={"seed": seed}, student=net())
        content = folder.read_json(folder.evaluation)
        folder.evaluation.write_text(json.dumps(content | {"baseline": baseline}))
        return folder

    folders = [run(0, 0.01), run(1, 0.03), run(2, 0.02)]
    found = compare(folders).groups[0].against()
    assert found is not None and (found.loss, found.seeds) == ("pgd-at", 3)
    # Student's t with 2 degrees of freedom: 4.303 s / sqrt(3), s = 0.01.
    assert found.difference["clean"] == pytest.approx((0.02, 0.02 - 0.02484, 0.02 + 0.02484), abs=1e-5)
    (line,) = against_baselines(compare(folders))
    assert "less pgd-at without a teacher (mean of 3 seeds, 95 % interval): clean +2.0 (-0.5 to +4.5)" in line
    assert to_json(compare(folders))["groups"][0]["baseline"]["seeds"] == 3
    write_comparison(compare(folders), tmp_path / "page.html")
    assert "mean of 3 seeds" in (tmp_path / "page.html").read_text()
    alone = compare(folders[:1]).groups[0].against()
    assert alone is not None and alone.difference["clean"] == pytest.approx((0.01, -0.09, 0.21))
    other = compare([folders[0], run(1, 0.1, "trades")]).groups[0]
    assert other.against() is None, "baselines of two losses have no mean"


def test_the_same_seed_twice_is_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, student=net()) for name in ("a", "b")]
    assert any("the same seed" in warning for warning in compare(runs).warnings)
    assert len(compare([runs[0], runs[0]]).runs) == 1, "one folder given twice is one run"


def test_names_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run", config={"epochs": n}) for n, place in enumerate(("one", "two"), 1)]
    assert [run.name for run in compare(runs).runs] == ["one/run", "two/run"]
    pairs = [
        make_run(tmp_path / f"{epochs}-{seed}", config={"epochs": epochs, "seed": seed}, student=net())
        for epochs in (5, 6)
        for seed in (0, 1)
    ]
    names = [group.name for group in compare(pairs).groups]
    assert names == ["mtard-anl small-cnn (5-0, 5-1)", "mtard-anl small-cnn (6-0, 6-1)"]


@pytest.mark.parametrize(
    ("card", "manifest", "student", "words"),
    [
        ({"data": "mnist"}, {"data": {"name": "mnist"}}, net(), "not comparable: different data sets (digits, mnist)"),
        ({}, {"data": {"name": "digits", "fingerprint": "ffff"}}, net(), "share a name, but not their images"),
        ({"threat": {"norm": "Linf", "eps": 0.5}}, {}, net(), "different threats (Linf eps 0.5, Linf eps 38/255)"),
        ({"threat": {"norm": "L2", "eps": 38 / 255}}, {}, net(), "not comparable: different threats"),
        ({}, {}, net() | {"samples": 1000}, "different numbers of test images (359, 1,000)"),
        ({}, {}, net() | {"searches": {"pgd-sat": search("pgd", options={"steps": 3})}}, "PGD-SAT is not the same"),
    ],
)
def test_numbers_that_are_not_comparable(tmp_path: Path, card, manifest, student, words: str) -> None:
    usual = net() | {"searches": {"pgd-sat": search("pgd")}}
    runs = [
        make_run(tmp_path / "a", student=usual),
        make_run(tmp_path / "b", config={"epochs": 9}, manifest=MANIFEST | manifest, card=CARD | card, student=student),
    ]
    warnings = compare(runs).warnings
    assert len(warnings) == 1 and words in warnings[0]


def test_weights_chosen_on_the_test_images(tmp_path: Path) -> None:
    on_test = {"validate": {"on": "test"}}
    runs = [make_run(tmp_path / "a", student=net()), make_run(tmp_path / "b", config=on_test, student=net())]
    assert compare(runs).warnings == ["chosen on the test images, unlike the others: b"]


def test_different_attacks(tmp_path: Path) -> None:
    fewer = net() | {"attacks": {"fgsm": 0.8}, "worst_case": 0.8}
    runs = [make_run(tmp_path / "a", student=net()), make_run(tmp_path / "b", student=fewer, config={"epochs": 9})]
    found = compare(runs)
    assert found.robust == "fgsm" and found.robust_name == "FGSM"
    assert found.warnings == ["the runs were evaluated with different attacks: their worst cases are not comparable"]
    with pytest.raises(RkdError, match="not every run was evaluated with 'pgd-sat'; all have fgsm"):
        compare(runs, "pgd-sat")
    foreign = net() | {"attacks": {"mine": 0.5}}
    found = compare([runs[0], make_run(tmp_path / "c", student=foreign, config={"epochs": 8})])
    assert found.robust is None and found.combined(found.groups[0]) == (None, None)
    assert "share no attack" in found.warnings[0]


def test_a_chosen_attack(tmp_path: Path) -> None:
    found = compare(seeds(tmp_path), "pgd-sat")
    assert found.robust == "pgd-sat"
    w_robust, _ = found.combined(found.groups[1])
    assert w_robust is not None and w_robust.mean == pytest.approx((0.94 + 0.65) / 2)


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    whole, part = make_run(tmp_path / "a", student=net()), make_run(tmp_path / "b", finished=False)
    found = compare([whole, part])
    assert [run.name for run in found.runs] == ["a"]
    assert found.warnings == ["b is left out: it has no evaluation (interrupted)"]
    with pytest.raises(RkdError, match="nothing to compare"):
        compare([part])


def test_what_the_runs_warn_of_is_repeated(tmp_path: Path) -> None:
    doubt = {"check": "few-samples", "finding": "359 images: between 60 and 70"}
    runs = [
        make_run(tmp_path / name, config={"epochs": n}, student=net() | {"warnings": [doubt | {"finding": text}]})
        for n, (name, text) in enumerate((("a", "between 60 and 70"), ("b", "between 50 and 60")), 1)
    ]
    assert compare(runs).warnings == ["few-samples in a, b; for example: between 60 and 70"]
    assert compare(runs[:1]).warnings == ["a: between 60 and 70"]


# Forms


def test_the_page(found: Comparison, tmp_path: Path) -> None:
    target = tmp_path / "new" / "all.html"
    written = write_comparison(found, target)
    assert written == [target, target.parent / "all-trade-off.svg", target.parent / "all-trade-off.png"]
    assert all(path.is_file() for path in written)
    page = Page(target.read_text(encoding="utf-8"))
    assert "mtard-anl small-cnn 3 96.0 ± 1.0" in page.text("table") and "at 1 94.0 [90.0–97.0]" in page.text("table")
    assert "loss.name mtard-anl pgd-at" in page.text("differences")
    assert "mtard-1 mtard-anl small-cnn 1 97.0 [93.0–100.0]" in page.text("runs")
    assert [a["class"] for a in page.all("svg")] == ["drawing"]
    assert r"\begin{tabular}" in page.text("latex")


def test_no_page_over_a_folder(found: Comparison, tmp_path: Path) -> None:
    with pytest.raises(RkdError, match=r"is a folder; name a file, such as .*compare\.html"):
        write_comparison(found, tmp_path)


def test_a_hostile_folder_injects_nothing(tmp_path: Path) -> None:
    found = compare([hostile(tmp_path / "a"), make_run(tmp_path / "b", student=net())])
    html = write_comparison(found, tmp_path / "x.html")[0].read_text(encoding="utf-8")
    page = Page(html)
    assert not page.all("script") and not page.all("img") and not page.all("b") and "&lt;script&gt;" in html
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert POISON[:20] in json.dumps(to_json(found))
    assert all(line.startswith("%") or "<script" not in line for line in to_latex(found).splitlines())
