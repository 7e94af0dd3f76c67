"""`rkd teachers`: the catalogue, downloads; a ranking: a table that fits, one JSON object, refusals with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rkd.cli.commands.teachers import show

from ...loopback import CONTENT, loopback, whole
from ..conftest import plain

FOUND: dict[str, Any] = {
    "data": "digits", "threat": {"norm": "Linf", "eps": 38 / 255}, "student": "small-cnn", "loss": "rslad",
    "steps": 20, "test_images": 359, "train_images": 1438, "ranking": ["runs/trades", "runs/at"], "refused": None,
    "unlearnable": {"by": "references", "images": 87, "of": 1438, "references": ["runs/s0"]},
    "teachers": [
        {"teacher": name, "rank": rank, "entropy": entropy, "entropy_error": 0.0312, "clean": 0.98, "robust": 0.81,
         "train_clean": 0.99, "train_robust": 0.9, "ece": 0.034, "ece_robust": 0.12, "step_seconds": 0.0312}
        for name, rank, entropy in (("runs/at", 2, 0.4), ("runs/clean", None, 0.1), ("runs/trades", 1, 1.2))
    ],
}  # fmt: skip
TRAIN = ("run", "--loss", "pgd-at", "--epochs", "1", "--set", "student.width=4", "--set", "attack.steps=1", "--set",
         "validate.steps=0", "--set", "validate.select=last", "--evaluate", "none", "--no-report")  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_fits(width: int, screen) -> None:
    terminal, stream = screen(width)
    show(FOUND, terminal)
    lines = plain(stream)
    assert max(map(len, lines)) <= width
    names = [line.split()[0] for line in lines if line.startswith("runs/")]
    assert names[:3] == ["runs/trades", "runs/at", "runs/clean"] == names[-3:], "the first by the rule comes first"
    text = " ".join(" ".join(lines).split())
    assert "1.200 ± 0.031" in text and "train PGD-20" in text and "ECE PGD-20" in text
    assert "on 87 of 1,438 training images, those that no reference net gets right" in text
    assert "the highest entropy there gives the most robust student (arXiv 2605.21999)" in text


def test_without_a_ranking(screen) -> None:
    terminal, stream = screen(100)
    bare = [{**one, "rank": None, "entropy": None, "entropy_error": None} for one in FOUND["teachers"]]
    show({**FOUND, "teachers": bare, "ranking": None, "refused": "too few"}, terminal)
    assert "gives the most robust student" not in " ".join(plain(stream))


def test_one_way_to_say_which_images(rkd, empty_folder: Path) -> None:
    said = rkd("teachers", "rank", "--teacher", "a", "--reference", "b", "--unlearnable", "c")
    assert said.exit_code == 2 and "give one of them" in said.stderr
    said = rkd("teachers", "rank")
    assert said.exit_code == 2 and "Missing option '--teacher'" in said.stderr


@pytest.mark.slow
def test_as_json(rkd, empty_folder: Path) -> None:
    for seed in ("0", "1"):
        assert rkd(*TRAIN, "--name", f"t{seed}", "--seed", seed).exit_code == 0
    words = ("teachers", "rank", "--teacher", "runs/t0", "--teacher", "robust=runs/t1", "--student", "small-cnn",
             "--set", "student.width=4", "--batch-size", "8", "--limit", "40", "--steps", "1",
             "--seconds", "0")  # fmt: skip
    said = rkd(*words, "--train-limit", "20", "--json")
    assert said.exit_code == 0 and "warning: no ranking: " in said.stderr
    assert (said.json["loss"], said.json["student"], said.json["ranking"]) == ("rslad", "small-cnn", None)
    assert (said.json["test_images"], said.json["train_images"], said.json["steps"]) == (40, 20, 1)
    assert [one["role"] for one in said.json["teachers"]] == ["robust", "robust"]
    assert [folder.name for folder in sorted(empty_folder.rglob("*")) if folder.parent.name == "runs"] == ["t0", "t1"]
    said = rkd(*words, "--reference", "runs/nothing")
    assert said.exit_code == 2 and "runs/nothing" in said.stderr


def test_listed_and_shown(rkd) -> None:
    said = rkd("teachers", "list", "--data", "cifar10")
    assert said.exit_code == 0
    lines = said.stdout.split("\n")
    first, second = (
        lines.index("--teacher zoo:NAME fetches"),
        lines.index("by hand, or no model in rkd: rkd teachers show NAME"),
    )
    ready = [line.split()[0] for line in lines[first + 2 : second - 1]]
    assert "wang2023-cifar10-linf-wrn28-10" in ready and not any("chen2021" in name for name in ready)
    assert "wang2023-cifar10-linf-wrn28-10 Linf 8/255 92.4 67.3" in " ".join(said.stdout.split())
    said = rkd("teachers", "list", "--json")
    rows = json.loads(said.stdout)["teachers"]
    assert {"name", "url", "sha256", "licence", "clean", "ready", "cached"} <= rows[0].keys()
    assert rkd("teachers", "list", "--data", "nothing").exit_code == 2
    said = rkd("teachers", "show", "zoo:singh2023-imagenet-linf-vit-s-convstem")
    text = " ".join(said.stdout.split())
    assert "rkd has no such model" in text and "91,176,941 bytes" in text and "1d2197912aeebb1e" in text
    assert rkd("info", "zoo:singh2023-imagenet-linf-vit-s-convstem").stdout == said.stdout


def test_fetched(rkd, cache: Path) -> None:
    with loopback(**{"w.pt": whole()}) as server:
        said = rkd("teachers", "fetch", f"{server.url}/w.pt#ema", "--json")
        assert said.exit_code == 0, said.stderr
        (one,) = json.loads(said.stdout)["files"]
        assert Path(one["file"].removesuffix("#ema")).read_bytes() == CONTENT and one["file"].endswith("#ema")
        assert f"from now on it must have the SHA-256 {one['sha256']}" in " ".join(said.stderr.split())
        said = rkd("teachers", "fetch", f"{server.url}/gone.pt")
        assert said.exit_code == 2 and "404 Not Found" in said.stderr and "Traceback" not in said.stderr
    said = rkd("teachers", "fetch", "chen2021-ltd-cifar10-linf-wrn34-10")
    assert said.exit_code == 2 and "drive.google.com" in said.stderr and "--teacher robust=wrn34-10@FILE" in said.stderr


def test_a_published_net_is_evaluated(rkd) -> None:
    said = rkd("eval", "zoo:fare2-clip", "--model", "resnet18")
    assert said.exit_code == 2 and "the catalogue says what zoo:fare2-clip is" in said.stderr
    said = rkd("eval", "https://host/w.pt", "--model", "resnet18")
    assert said.exit_code == 2 and "https://host/w.pt is a weights file" in said.stderr
