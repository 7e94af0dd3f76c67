"""The page of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import RkdError
from rkd.report import build_report, write_report
from rkd.storage.runfolder import RunFolder

from .folders import CONFIG, MANIFEST, Page, epoch, full_net, make_run, net

POISON = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'><b>{{7*7}}"


@pytest.mark.slow
def test_files(folder: RunFolder, html: str) -> None:
    assert html.startswith("<!DOCTYPE html>")
    names = ("losses", "accuracy", "weights", "knobs", "learning-rate", "eps", "per-class", "reliability")
    there = {path.name for path in (folder.path / "plots").iterdir()}
    assert there == {f"{name}.{ending}" for name in names for ending in ("svg", "png")}


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(page: Page, html: str) -> None:
    for tag, attrs in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for key, value in attrs.items():
            assert not key.startswith("on"), f"{tag} {key}"
            if key in {"src", "href", "xlink:href"}:
                assert value is not None and value.startswith(("#", "data:")), f"{tag} {key}={value}"
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert "http://" not in html and "https://" not in html


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)


def test_every_colour_of_the_pictures_is_set_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\(--([a-z0-9-]+)", html))
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    dark = dark[: dark.index("* {")]
    assert {f"series-{n}" for n in range(2)} <= used
    for name in used - {"share", "heat", "bar", "edge", "edge-text", "aspect"}:
        assert f"--{name}:" in light and f"--{name}:" in dark, name


def test_results(page: Page) -> None:
    text = page.text("results")
    assert "clean 97.8 [93.8–100.0]" in text
    assert "FGSM 76.3 [72.3–79.3] 87.1 85.7 75.0 90.5 37.0" in text, "interval, W-Robust, NRR, 8-bit, both teachers"
    assert "PGD-SAT † 71.0" in text and "† not within the threat model" in text
    assert "worst case 70.0 [66.0–73.0]" in text
    assert (
        "rkd.plugins.attacks.fgsm.Attack" in text
        and "6,980 / 6,979" in text
        and "a note of the attack" in text
        and "90 of 349" in text
    )
    bars = [a["style"] for a in page.all("td") if "bar" in str(a.get("class"))]
    assert bars == ["--share: 97.8%", "--share: 76.3%", "--share: 71.0%", "--share: 70.0%"]


# The gallery


# Less than everything, and worse


@pytest.mark.slow
def test_a_run_of_before_the_extra_measures(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "a", student=net(), teachers=[], examples=False))
    page = Page(report.html)
    assert "clean 97.8" in page.text("results") and "closer" not in page.texts and "gallery" not in page.texts
    absent = page.text("top").rpartition("Not measured in this run: ")[2]
    assert absent.startswith("accuracy against eps, accuracy by class, calibration, accuracy on corrupted images, ")
    assert report.left_out == []
    assert "rkd cite a" in page.text("citations")


@pytest.mark.slow
def test_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a b", finished=False)
    write_report(folder)
    page = Page((folder.path / "report.html").read_text(encoding="utf-8"))
    assert "unfinished: interrupted" in page.text("top") and "This run is not finished" in page.text("top")
    assert "3 of 3 epochs" in page.text("top")
    assert "results" not in page.texts and "Validation accuracy" in page.text("training")
    assert "rkd run --resume 'a b'" in page.text("repeat")
    assert "robust teacher wrn10-2" in page.text("origin")
    assert (folder.path / "plots" / "losses.png").is_file()


@pytest.mark.slow
def test_a_run_without_a_single_epoch(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "a", finished=False, epochs=0))
    assert report.pictures == [] and "training" not in Page(report.html).texts
    failed = make_run(tmp_path / "b", finished=False, epochs=1, manifest={"status": "failed: TrainingFailed: loss nan"})
    assert "It stopped with: failed: TrainingFailed: loss nan" in Page(build_report(failed).html).text("top")


def poisoned(value: Any) -> Any:
    """Every name and text in it poisoned; numbers stay, so that as much as possible is shown."""
    if isinstance(value, dict):
        kept = {"clean", "adversarial", "worst_case"}
        return {key if isinstance(inner, dict | list) or key in KEYS | kept else f"{key}{POISON}": poisoned(inner)
                for key, inner in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return f"{POISON}{value}" if isinstance(value, str) else value


MEANT = """
    attacks samples worst_case role model source check finding meaning advice attack norm eps implementation objective
    notes options ece confidence bins accuracy label index prediction mean status command started git name reference
    epoch seconds loss seed forwards backwards fooled attacked in_threat data classes threat val.clean val.robust lr
"""
KEYS = set(MEANT.split())
"""Names that are left as they are, so that what they hold is read."""


def hostile(path: Path) -> RunFolder:
    """A run whose every text is an attack on the page."""
    student = poisoned(full_net())
    for part in (
        "attacks",
        "w_robust",
        "nrr",
        "interval_95",
        "seconds",
        "per_class",
        "calibration",
        "searches",
        "rounded",
    ):
        student[part] = {
            f"{POISON}{key}" if key not in ("clean", "worst_case") else key.split("<")[0]: inner
            for key, inner in full_net()[part].items()
        }
    student["searches"] = {key: poisoned(inner) for key, inner in student["searches"].items()}
    student["corruptions"]["accuracy"] = {POISON: [0.5, 0.4]}
    manifest = {
        "versions": {POISON: POISON},
        "plugins": {POISON: POISON, "file/x": POISON},
        "hardware": {POISON: POISON},
    }
    folder = make_run(
        path,
        config=poisoned(CONFIG) | {"schedulers": {POISON: {POISON: POISON}}},
        manifest=poisoned(MANIFEST) | manifest | {"cost": {POISON: {"forwards": 3, "backwards": 1}}},
        card={"classes": [POISON] * 10, "model": POISON, "data": POISON, "threat": {"norm": POISON, "eps": 0.1}},
        student=student,
        teachers=[poisoned({"role": "r", "model": "m", "source": "s"}) | student],
        epochs=0,
    )
    for number in range(3):
        folder.log(poisoned(epoch(number)) | {"epoch": number, "loss": 1.0, "lr": 0.1 / (number + 1)})
    return folder


@pytest.mark.slow
def test_a_hostile_folder_injects_nothing(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "a<b>&'\"")
    html = write_report(folder, {POISON: f"@misc{{{POISON}}}"}).read_text(encoding="utf-8")
    page = Page(html)
    assert html.count("&lt;script&gt;window.hacked") > 40, "the texts are there"
    assert not page.all("script") and "{{7*7}}" in html and "49" not in page.text("configuration")
    for tag, attrs in page.tags:
        assert not any(key.startswith("on") for key in attrs), tag
        assert tag != "img" or str(attrs["src"]).startswith("data:image/png;base64,")
        assert tag != "b" or not attrs
    for drawn in (folder.path / "plots").glob("*.svg"):
        assert "<script" not in drawn.read_text(encoding="utf-8"), drawn.name


@pytest.mark.slow
def test_numbers_without_sense_do_not_stop_the_page(tmp_path: Path) -> None:
    curve = {"eps": [1e308, -1, 0.1, 0.2], "accuracy": [1, 1, 0.5, 0.25]}
    student = net() | {
        "clean": float("nan"),
        "worst_case": -1,
        "samples": -5,
        "curve": curve,
        "seconds": {"clean": 1e300},
    }
    manifest = {"seconds": float("inf"), "cost": 3, "command": {"a": 1}, "hardware": [], "versions": "none", "data": 3}
    folder = make_run(tmp_path / "a", student=student, manifest=manifest | {"plugins": None})
    folder.log({"epoch": 10**9, "loss": 1e300, "val.clean": -1e15, "weight.adv": 1e15})
    report = build_report(folder)
    assert "nan" not in Page(report.html).text("results") and "clean –" in Page(report.html).text("results")
    assert any(line.startswith("the student's clean:") for line in report.left_out)


@pytest.mark.slow
def test_other_peoples_places_are_not_written_to(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", student=net(), epochs=1, examples=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder.path / "plots").symlink_to(elsewhere)
    with pytest.raises(RkdError, match="link to somewhere else"):
        write_report(folder)
    assert not list(elsewhere.iterdir())
    (folder.path / "plots").unlink()
    target = tmp_path / "precious"
    target.write_text("precious")
    (folder.path / "report.html").symlink_to(target)
    write_report(folder)
    assert target.read_text() == "precious" and not (folder.path / "report.html").is_symlink()


@pytest.mark.slow
def test_a_report_is_written_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False, epochs=1)
    first = write_report(folder).read_text(encoding="utf-8")
    assert write_report(folder).read_text(encoding="utf-8") == first, "the same files give the same page"
    folder.log(epoch(1))
    assert write_report(folder).read_text(encoding="utf-8") != first
