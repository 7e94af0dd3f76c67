"""The page of a saved evaluation, and its place in a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import RkdError
from rkd.report import build_report, cells, compare, to_csv, to_json, write_report
from rkd.report.read import MOST_NETS, read_run
from rkd.storage.runfolder import RunFolder

from .folders import CARD, SETTINGS, TRANSFER, Page, make_evaluation, make_run, net
from .test_pages import POISON, poisoned


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_evaluation(tmp_path_factory.mktemp("saved") / "kept")
    return write_report(folder, {"zhao": "@inproceedings{zhao}"}).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.mark.slow
def test_what_was_evaluated(page: Page) -> None:
    text = page.text("evaluated")
    for words in (
        "from runs/my-run model small-cnn options width = 16 parameters 25,978 weights 907b9036",
        "trained by mtard-anl, on digits, Linf eps 38/255, 3 epochs, seed 1 mean [0.25] std [0.5]",
        "data digits fingerprint 41334c99 test images 359 (a fixed subset) shape 1 × 8 × 8 classes 10",
        "threat Linf eps 38/255 attacks FGSM, PGD-SAT seed 5 self-checks full engine auto transfer runs/other",
    ):
        assert words in text, words
    assert "small-cnn , evaluated on digits ; threat: Linf eps 38/255" in page.text("top")
    assert "359 test images under 2 attacks seed 5 3 min 20 s" in page.text("top")


@pytest.mark.slow
def test_results_and_a_closer_look(page: Page, html: str) -> None:
    text = page.text("results")
    assert "net 95 % interval" in text and "FGSM 76.3 [72.3–79.3] 87.1 85.7 75.0" in text
    assert "FGSM beats PGD" in page.text("top")
    assert "fog 90.0 80.0 70.0 60.0 50.0" in page.text("corruptions")
    assert {"eps", "per-class", "reliability"} == {figure.get("id") for figure in page.all("figure")}
    assert len(page.all("img")) == 6


def test_transfer(page: Page, html: str) -> None:
    text = page.text("transfer")
    assert "images that PGD-SAT made on the net of the row, from 359 test images" in text
    assert "made on net 1 net 2 clean images 97.8 94.2" in text
    assert "net 1 runs/my-run 71.0 62.5 net 2 runs/other 81.2 25.0" in text
    assert html.count('class="heat own"') == 2


def test_what_is_only_known_of_trainings_is_left_out(page: Page, html: str) -> None:
    assert not {"origin", "training", "cost"} & set(page.texts)
    html = html[html.index("</style>") :]
    assert "student" not in html and "config.toml" not in html and "rkd run" not in html and "this run" not in html
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and {str(a["href"])[1:] for a in page.all("a")} <= set(ids)


def test_how_to_repeat_it(page: Page) -> None:
    text = page.text("repeat")
    assert "rkd eval runs/my-run --attack fgsm,pgd-sat --transfer runs/other" in text
    assert "--save" not in text and "rkd cite kept" in text and "rkd compare kept OTHER" in text
    assert "[evaluate]" in page.text("configuration") and "evaluation.toml" in page.text("configuration")
    assert "python 3.11.7" in page.text("versions") and "Abacus 3000" in page.text("versions")


@pytest.mark.slow
def test_evaluation_json_alone_is_enough(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "old", bare=True)
    report = build_report(folder)
    page = Page(report.html)
    assert report.left_out == [] and "from runs/my-run model small-cnn" in page.text("evaluated")
    assert not {"configuration", "versions", "gallery"} & set(page.texts)
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)


@pytest.mark.slow
def test_clean_accuracy_alone(tmp_path: Path) -> None:
    result = net() | {"attacks": {}, "w_robust": {}, "nrr": {}, "transfer": None, "curve": None, "rounded": {}}
    folder = make_evaluation(tmp_path / "clean", found=result | {"searches": {}, "calibration": {}, "examples": []})
    page = Page(build_report(folder).html)
    assert "worst case" not in page.text("top") and "attacks none" in page.text("evaluated")
    assert "transfer" not in page.texts
    assert "transfer to other nets" in page.text("top"), "not measured"
    assert cells(compare([folder]))[0] == ["clean"]


def test_a_folder_that_holds_neither(tmp_path: Path) -> None:
    for place, content in enumerate(("{}", "[]", "x", json.dumps({"student": net(), "teachers": []}), "[" * 100_000)):
        folder = RunFolder(tmp_path / str(place))
        folder.path.mkdir()
        folder.evaluation.write_text(content)
        with pytest.raises(RkdError, match="neither a run nor an evaluation"):
            build_report(RunFolder.open_results(folder.path))
    with pytest.raises(RkdError, match="is not a run"):
        RunFolder.open_results(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "kept")
    (tmp_path / "secret").write_text("seed = 1")
    folder.evaluation_settings.unlink()
    folder.evaluation_settings.symlink_to(tmp_path / "secret")
    with pytest.raises(RkdError, match="link to somewhere else"):
        RunFolder.open_results(folder.path)
    with pytest.raises(RkdError, match="link to somewhere else"):
        read_run(folder)


@pytest.mark.slow
def test_a_hostile_folder_injects_nothing(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "a<b>&'\"")
    transfer = TRANSFER | {"accuracy": {POISON: {POISON: 0.5}}, "clean": {POISON: 0.5}}
    found = poisoned(json.loads(folder.evaluation.read_text())) | {"attacks": {POISON: 0.5}, "transfer": transfer}
    folder.write_json(folder.evaluation, found)
    card = poisoned(json.loads(folder.net_card.read_text())) | {"name": POISON, "shape": [POISON], "options": [POISON]}
    folder.write_json(folder.net_card, card | {"trained": {"method": POISON, "threat": 3}})
    folder.write_json(folder.manifest, {"command": [POISON] * 3, "plugins": 3, "started": POISON, "data": POISON})
    folder.write_text(folder.evaluation_settings, f"[evaluate]\ntransfer = ['''{POISON[:-14]}''']\n")
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert html.count("&lt;script&gt;window.hacked") > 10 and not page.all("script")
    for tag, attrs in page.tags:
        assert not any(key.startswith("on") for key in attrs), tag


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]], {"a": {"b": 0.5}}, float("nan"), 10**400])
def test_no_value_is_too_strange(tmp_path: Path, value: Any) -> None:
    folder = make_evaluation(tmp_path / "kept", found={"transfer": value, "seed": value, "net": value, "data": value})
    for path in (folder.net_card, folder.manifest):
        content = json.loads(path.read_text())
        folder.write_json(path, dict.fromkeys(content, value))
    build_report(folder)
    folder.write_json(folder.evaluation, {key: value for key in json.loads(folder.evaluation.read_text())})
    folder.write_json(folder.evaluation, json.loads(folder.evaluation.read_text()) | {"samples": 3})
    build_report(folder)


def test_of_a_large_matrix_a_part_is_shown(tmp_path: Path) -> None:
    nets = [f"net-{place}" for place in range(MOST_NETS + 5)]
    matrix = {"accuracy": {a: dict.fromkeys(nets, 0.5) for a in nets}, "clean": dict.fromkeys(nets, 1)}
    transfer = read_run(make_evaluation(tmp_path / "kept", found={"transfer": matrix})).student.transfer  # type: ignore
    assert transfer is not None and len(transfer.nets) == len(transfer.rows) == len(transfer.rows[0]) == MOST_NETS


def test_among_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my-run", epochs=0)
    strong = make_evaluation(tmp_path / "kept", found={"attacks": {"autoattack": 0.5}, "worst_case": 0.5})
    found = compare([run, strong])
    assert [group.name for group in found.groups] == ["my-run", "my-run (kept)"]
    titles, rows = cells(found)
    assert titles[:4] == ["clean", "FGSM", "PGD-SAT", "AutoAttack"]
    assert rows[1][:4] == ["97.8 [93.8–100.0]", "", "", "50.0"]
    assert set(found.differences) <= {"evaluate.limit", "threat.eps", "threat.norm", "threat.step_size"}, (
        "of how the net was trained an evaluation says nothing"
    )  # fmt: skip
    assert not any("data sets" in line or "same seed" in line for line in found.warnings), found.warnings
    assert to_json(found)["runs"][1]["method"] == "mtard-anl"
    assert "my-run (kept),my-run (kept),mtard-anl,small-cnn,digits,Linf" in to_csv(found)


def test_evaluations_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    """Alike in every setting, and of different nets."""
    folders = [make_evaluation(tmp_path / name, bare=True, found={"net": name}) for name in ("a", "b")]
    found = compare(folders)
    assert [group.name for group in found.groups] == ["a", "b"] and found.robust == "worst_case"
    assert found.warnings == [line for line in found.warnings if "FGSM" in line or "plain" in line]


def drawn(path: Path, seed: int | None, key: str = "one", **more: Any) -> RunFolder:
    """An evaluation of a run of that seed and those settings."""
    rules = SETTINGS["evaluate"] | {"transfer": [f"runs/{path.name}"]} | more.pop("rules", {})
    found = {"clean": 0.9 + (seed or 0) / 100} | more
    settings = {"seed": seed or 0, "evaluate": rules}
    return make_evaluation(path, found=found, trained={"seed": seed, "settings": key}, settings=settings)


def test_evaluations_of_several_seeds_share_a_row(tmp_path: Path) -> None:
    """As their runs do: those of one training, evaluated alike."""
    folders = [drawn(tmp_path / f"kept-{seed}", seed) for seed in (1, 2, 3)]
    found = compare([*folders, drawn(tmp_path / "other", 1, "two"), drawn(tmp_path / "third", 2, "two")])
    assert [[run.name for run in group.runs] for group in found.groups] == [
        ["kept-1", "kept-2", "kept-3"], ["other", "third"],
    ]  # fmt: skip
    assert found.groups[0].seeds == [1, 2, 3]
    value = found.groups[0].value("clean")
    assert value is not None and value.mean == pytest.approx(0.92) and value.std == pytest.approx(0.01)
    assert [row["seed"] for row in to_json(found)["runs"]] == [1, 2, 3, 1, 2]
    assert len({group.name for group in found.groups}) == 2


def test_what_keeps_evaluations_apart(tmp_path: Path) -> None:
    """Other attacks or images, the same net twice, a net of unknown seed, and a run of these very settings."""
    first = drawn(tmp_path / "first", 1)

    def rows(*others: RunFolder) -> int:
        return len(compare([first, *others]).groups)

    assert rows(drawn(tmp_path / "a", 2)) == 1
    assert rows(drawn(tmp_path / "b", 2, rules={"limit": 100})) == 2
    assert rows(drawn(tmp_path / "c", 2, rules={"options": {"pgd-sat": {"steps": 3}}})) == 2
    assert rows(drawn(tmp_path / "d", 2, threat={"norm": "L2", "eps": 0.5})) == 2
    assert rows(drawn(tmp_path / "e", 1)) == 2, "the same net, or another of the same seed"
    assert rows(drawn(tmp_path / "f", 2, "two")) == 2
    assert rows(make_run(tmp_path / "run", epochs=0)) == 2
    unknown = drawn(tmp_path / "g", 2, "")
    assert len(compare([unknown, drawn(tmp_path / "h", 3, "")]).groups) == 2, "kept by a version without the key"


def test_other_images(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", manifest={"data": {"name": "digits", "fingerprint": "other"}}, epochs=0)
    assert any("but not their images" in line for line in compare([run, make_evaluation(tmp_path / "e")]).warnings)
    bare = make_evaluation(tmp_path / "bare", bare=True)
    assert not any("but not their images" in line for line in compare([run, bare]).warnings), "it does not say"
    assert CARD["data"] == "digits"
