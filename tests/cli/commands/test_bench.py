"""`rkd bench`: numbers that belong together, nothing written, wrong words refused."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = ("bench", "--loss", "rslad", "--teacher", "resnet8", "--student", "small-cnn", "--set", "student.width=4",
         "--batch-size", "16", "--set", "attack.steps=5", "--seconds", "0")  # fmt: skip


@pytest.mark.slow
def test_as_json(rkd, empty_folder: Path) -> None:
    found = rkd(*BENCH, "--json").json
    assert list(empty_folder.iterdir()) == []  # nothing prepared, nothing written
    assert (found["images"], found["precision"], found["teachers"]) == (16, "float32", {"robust": "resnet8"})
    assert found["training_seconds"] == pytest.approx(found["steps"] * found["step_seconds"])
    assert found["flops_per_second"] == pytest.approx(sum(found["parts_flops"].values()) / found["step_seconds"])
    assert found["parts_flops"]["attacks"] > found["parts_flops"]["student"] > 0 < found["parts_flops"]["teachers"]


@pytest.mark.slow
def test_as_a_table(rkd, empty_folder: Path) -> None:
    said = rkd(*BENCH, "--precision", "bf16")
    assert said.exit_code == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith("rslad, small-cnn on digits, 16 images, bfloat16, cpu, ")
    parts = [line.split("  ")[0] for line in lines[2:8]]
    assert parts == ["data", "teachers", "attacks", "student", "optimiser", "whole step"]
    assert lines[8].startswith("engine: folded, ") and " ms a step; with nets as they are " in lines[8]
    assert lines[9].startswith("the machine itself: matrix product ") and "images a second" in lines[10]


@pytest.mark.slow
def test_what_says_nothing_about_a_step_is_no_option(rkd, empty_folder: Path) -> None:
    assert rkd(*BENCH, "--resume", "x").exit_code == 2
    assert rkd("bench", "--seconds", "-1").exit_code == 2
    said = rkd("bench", "--loss", "rsladd")
    assert said.exit_code == 2 and "rslad" in said.stderr
