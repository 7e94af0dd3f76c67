"""The page of a run."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rkd.core.errors import RkdError
from rkd.report import build_report, write_report
from rkd.report.data import Example, Seen
from rkd.report.gallery import read_gallery
from rkd.storage.runfolder import RunFolder

from .folders import CONFIG, MANIFEST, epoch, full_net, make_run, net, search, write_examples

VOID = {"meta", "link", "img", "br", "path", "use", "rect", "circle"}
POISON = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'><b>{{7*7}}"


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, and the text by the section's id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section = "top"
        self.texts: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes another"
        if tag == "section":
            self.section = "top"

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = f"{self.texts.get(self.section, '')} {data}"

    def text(self, section: str) -> str:
        return " ".join(self.texts.get(section, "").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def html(folder: RunFolder) -> str:
    return write_report(folder, {"zhao": "@inproceedings{zhao, title={Enhanced}}"}).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_files(folder: RunFolder, html: str) -> None:
    assert html.startswith("<!DOCTYPE html>")
    names = ("losses", "accuracy", "weights", "knobs", "learning-rate", "eps", "per-class", "reliability")
    there = {path.name for path in (folder.path / "plots").iterdir()}
    assert there == {f"{name}.{ending}" for name in names for ending in ("svg", "png")}


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


def test_the_diagram(page: Page) -> None:
    text = page.text("origin")
    for words in (
        "images digits threat: Linf eps 38/255",
        "10.0 % held out",
        "robust teacher wrn10-2 prepared clean 98.3",
        "clean teacher wrn10-2",
        "loss mtard-anl loss = 0.625 × adv + 0.375 × clean",
        "attack PGD maximises ce steps = 10",
        "scheduler anl rate = 0.025",
        "student small-cnn width = 16 3 epochs sgd lr 0.1",
    ):
        assert words in text, words
    assert text.index("robust teacher") < text.index("mtard-anl") < text.index("small-cnn")


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


# The gallery


def pixels(uri: str | None) -> np.ndarray:
    assert uri is not None and uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_gallery(page: Page, folder: RunFolder, tmp_path: Path) -> None:
    text = page.text("gallery")
    assert "digit 3 PGD-SAT clean digit 3 93.8 % sure change ≤ 0.1 × 5 attacked digit 8 56.2 % sure" in text
    clean, adversarial = write_examples(tmp_path / "x.safetensors")
    images = page.all("img")
    assert len(images) == 6
    shown = [pixels(image["src"]) for image in images[:3]]
    assert all(image.shape == (8, 8, 3) for image in shown)
    assert np.array_equal(shown[0][..., 0], (clean[0, 0] * 255).round().astype(np.uint8))
    assert np.array_equal(shown[2][..., 1], (adversarial[0, 0] * 255).round().astype(np.uint8))
    # Changes of 0.1 times 5 around grey: black and white.
    assert np.array_equal(shown[1][..., 2] > 128, adversarial[0, 0] > clean[0, 0])
    assert set(np.unique(shown[1])) <= {0, 255}
    fooled = [attrs for tag, attrs in page.tags if tag == "div" and "fooled" in str(attrs.get("class"))]
    assert len(fooled) == 1, "one of two was fooled"
    assert any("pixelated" in str(attrs.get("class")) for _, attrs in page.tags)


EXAMPLE = Example(0, 1, "pgd", Seen(1, 0.9), Seen(2, 0.5))


def test_large_and_colourful_images(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for channels, side in ((3, 300), (5, 20)):
        write_examples(path, 3, channels, side)
        gallery = read_gallery(path, [EXAMPLE] * 2)
        assert gallery is not None and len(gallery.tiles) == 2
        assert pixels(gallery.tiles[0].clean).shape == (min(side, 160), min(side, 160), 3)
        assert gallery.pixelated == (side == 20)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"clean": np.zeros((1, 1, 4, 4), np.float32)}, "adversarial"),
        ({"clean": np.zeros((1, 4), np.float32), "adversarial": np.zeros((1, 4), np.float32)}, "shape"),
        ({"clean": np.zeros((1, 1, 4, 4), np.float32), "adversarial": np.zeros((2, 1, 4, 4), np.float32)}, "differ"),
        ({name: np.full((1, 1, 4, 4), np.nan, np.float32) for name in ("clean", "adversarial")}, "finite"),
        ({name: np.full((1, 1, 4, 4), 7, np.float32) for name in ("clean", "adversarial")}, "within"),
        ({name: np.zeros((1, 1, 4, 4), np.int64) for name in ("clean", "adversarial")}, "floating-point"),
        ({name: np.zeros((1, 0, 4, 4), np.float32) for name in ("clean", "adversarial")}, "shape"),
        (b"no safetensors at all", "header"),
        (b"", "header"),
        (b"\xff" * 8 + b"{", "header"),
    ],
)
def test_images_that_cannot_be_shown(tmp_path: Path, tensors: Any, why: str) -> None:
    path = tmp_path / "examples.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    with pytest.raises(RkdError, match=f"(?i){why}"):
        read_gallery(path, [EXAMPLE])


def test_bfloat16_images(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save

    folder = make_run(tmp_path / "a", student=net() | {"examples": full_net()["examples"]}, epochs=0)
    save({name: torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16) for name in ("clean", "adversarial")}, folder.examples)
    report = build_report(folder)
    assert "<img" not in report.html and "a gallery" in report.html
    assert len(report.left_out) == 1 and report.left_out[0].startswith("examples.safetensors: ")
    assert "examples.safetensors" in Page(report.html).text("left-out")


# Less than everything, and worse


def test_a_run_of_before_the_extra_measures(tmp_path: Path) -> None:
    report = build_report(make_run(tmp_path / "a", student=net(), teachers=[], examples=False))
    page = Page(report.html)
    assert "clean 97.8" in page.text("results") and "closer" not in page.texts and "gallery" not in page.texts
    absent = page.text("top").rpartition("Not measured in this run: ")[2]
    assert absent.startswith("accuracy against eps, accuracy by class, calibration, accuracy on corrupted images, ")
    assert report.left_out == []
    assert "rkd cite a" in page.text("citations")


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


def test_a_report_is_written_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False, epochs=1)
    first = write_report(folder).read_text(encoding="utf-8")
    assert write_report(folder).read_text(encoding="utf-8") == first, "the same files give the same page"
    folder.log(epoch(1))
    assert write_report(folder).read_text(encoding="utf-8") != first
