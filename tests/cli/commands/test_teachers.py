"""`rkd teachers rank`: a table that fits, one JSON object, refusals with reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rkd.cli.commands.teachers import show

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
