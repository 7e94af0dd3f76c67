"""Does the teacher that `rkd teachers rank` puts first give the most robust student? On embedded digits.

    OMP_NUM_THREADS=1 python benchmarks/teacher_choice.py [--out runs/teacher-choice] [--seeds 0 1 2] [--epochs 15]

Trains three robust teachers in different ways, a student with each teacher and seed by RSLAD, and students without a
teacher. Ranks the teachers by both sets of unlearnable images: those that all teachers get wrong, known before a
student is trained, and those that all these students get wrong, which is the paper's definition. Prints the tables of
docs/results/teachers.md. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import rkd
from rkd.api import catalog
from rkd.storage.text import parse_json
from rkd.workflow.choosing.rank import rank_teachers

WAYS: dict[str, dict[str, Any]] = {
    "pgd-at": {"loss": "pgd-at"},
    "trades": {"loss": "trades"},
    "pgd-at, labels smoothed by 0.3": {"loss": {"name": "pgd-at", "label_smoothing": 0.3}},
}
TEACHER = {"student": {"model": "small-cnn", "width": 16}, "epochs": 20, "attack": {"steps": 7}}
STUDENT: dict[str, Any] = {"student": {"model": "small-cnn", "width": 8}, "epochs": 15, "attack": {"steps": 7}}
EVALUATION = {"attacks": ["pgd-sat", "cw"], "checks": "off"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/teacher-choice"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=STUDENT["epochs"], help="of the students")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    out, seeds = arguments.out, arguments.seeds

    teachers = {way: out / f"teacher-{place}" for place, way in enumerate(WAYS)}
    for way, folder in teachers.items():
        train(folder, {**TEACHER, **WAYS[way]})
    students = {way: [out / f"student-{place}-s{seed}" for seed in seeds] for place, way in enumerate(WAYS)}
    students["no teacher (pgd-at)"] = [out / f"student-none-s{seed}" for seed in seeds]
    for way, folders in students.items():
        taught = (
            {"loss": "rslad", "teachers": [{"reference": str(teachers[way])}]} if way in WAYS else {"loss": "pgd-at"}
        )
        for seed, folder in zip(seeds, folders, strict=True):
            train(folder, {**STUDENT, **taught, "seed": seed, "epochs": arguments.epochs})

    table = {**STUDENT, "teachers": [{"reference": str(folder)} for folder in teachers.values()]}
    nets = [str(folder) for folders in students.values() for folder in folders]
    before = rank_teachers(table, catalog(), seconds=0)
    after = rank_teachers(table, catalog(), references=nets, seconds=0)
    print_teachers(teachers, before, after)
    print_students(students)
    print(f"\n{time.process_time() - started:.0f} s of processor time, {torch.get_num_threads()} thread")


def train(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / "evaluation.json").is_file():
        rkd.train(settings={**settings, "evaluate": EVALUATION}, out=folder)


def print_teachers(teachers: dict[str, Path], before: dict[str, Any], after: dict[str, Any]) -> None:
    for found in (before, after):
        where = found["unlearnable"]
        print(f"set of {where['by']}: {where['images']} of {where['of']} images; refused: {found['refused']}")
        for warning in found["warnings"]:
            print(f"  {warning}")
    print("\n| teacher | clean | PGD-20 | train PGD-20 | ECE | entropy (teachers' set) | rank | "
          "entropy (students' set) | rank |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for way, folder in teachers.items():
        both = [next(one for one in found["teachers"] if one["teacher"] == str(folder)) for found in (before, after)]
        shares = [f"{100 * both[0][name]:.1f}" for name in ("clean", "robust", "train_robust", "ece")]
        ranks = []
        for one in both:
            entropy = "" if one["entropy"] is None else f"{one['entropy']:.3f} ± {one['entropy_error']:.3f}"
            ranks += [entropy, str(one["rank"] or "-")]
        print(f"| {' | '.join([way, *shares, *ranks])} |")


def print_students(students: dict[str, list[Path]]) -> None:
    print("\n| student of | clean | worst case of PGD-SAT and CW | by seed |\n|---|---:|---:|---|")
    for way, folders in students.items():
        results = [parse_json((folder / "evaluation.json").read_text())["student"] for folder in folders]
        clean, robust = ([100 * one[name] for one in results] for name in ("clean", "worst_case"))
        means = [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in (clean, robust)]
        print(f"| {way} | {means[0]} | {means[1]} | {', '.join(f'{value:.1f}' for value in robust)} |")


if __name__ == "__main__":
    main()
