"""The model card: what a stranger must know, as Markdown that the hub reads."""

from __future__ import annotations

from typing import Any

from rkd.export.card import model_card


def row(name: str, **more: Any) -> dict[str, Any]:
    accuracy = {"clean": 0.9, "straight_through": 0.5, "worst_case": 0.45}
    search = {"implementation": "rkd.plugins.attacks.pgd.Pgd", "options": {"steps": 20, "start": "a|b"}, "notes": [],
              "objective": "ce", "norm": "Linf", "eps": 8 / 255, "black_box": False}  # fmt: skip
    return {
        "name": name,
        "samples": 1000,
        "whole_test_set": {"clean": 0.915, "samples": 10_000},
        "accuracy": accuracy,
        "interval_95": {key: [value - 0.03, value + 0.03] for key, value in accuracy.items()},
        "attacks": {"pgd": 0.5},
        "searches": {"pgd": search},
        "size": {"parameters": 1234, "bytes": 5678, "macs": 91011,
                 "latency": {"median": 1.5, "quartiles": [1.25, 2.0], "runs": 30}},
    } | more  # fmt: skip


def facts(**more: Any) -> dict[str, Any]:
    exported = {"files": ["net.bin"], "runtime": "runner 1.0", "usage": "run(net)", "about": ["A fact."],
                "difference": 3e-7}  # fmt: skip
    return {
        "to": "somewhere", "run": "my-run", "model": "small-cnn", "shape": [1, 8, 8], "classes": ["cat", "dog"],
        "mean": [0.5], "std": [0.25], "data": {"name": "pets", "fingerprint": "abc"},
        "threat": {"norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255},
        "loss": {"name": "rslad", "beta": 2.0}, "epochs": 3, "seed": 4,
        "teachers": [{"role": "robust", "model": "wrn34", "clean": 0.9, "worst_case": 0.6, "samples": 1000,
                      "size": {"parameters": 46_000_000}}],
        "own_evaluation": {"samples": 1000, "clean": 0.9, "attacks": {"pgd": 0.5}},
        "rows": [row("float"), row("exported", **exported)], "changes": ["exported: told"],
        "sha256": {"net.bin": "0" * 64}, "versions": {"torch": "9"},
    } | more  # fmt: skip


def test_what_stands_on_it() -> None:
    text = model_card(facts())
    head, body = text.split("---\n")[1:3]
    assert "library_name: pytorch" in head and "- adversarial-robustness" in head
    for said in (
        "A small-cnn with 1,234 parameters", "Linf, eps = 8/255", "| 91.50 | 90.00 (87.0 - 93.0) | 50.00",
        "5,678 B | 91,011 | 1.500 (1.250 - 2.000)", "exported: told", "`rkd.plugins.attacks.pgd.Pgd`", "run(net)",
        "cat, dog", "3.0e-07 of the largest. A fact.", "rslad (beta=2.0), 3 epochs, seed 4", "pets, fingerprint abc",
        "robust teacher: wrn34, 46,000,000 parameters; clean 90.00 %, worst case 60.00 % on 1,000 images",
        "## Limits", f"| net.bin | `{'0' * 64}` |",
    ):  # fmt: skip
        assert said in body, said
    assert (
        len({line.count("|") for line in body.splitlines() if line.startswith("| PGD") or "implementation" in line})
        == 1
    )


def test_without_attacks_and_teachers() -> None:
    bare = [row(name, accuracy={"clean": 0.9}, searches={}, attacks={}) for name in ("float", "exported")]
    bare[1] |= {"files": ["net.bin"], "runtime": "r", "usage": "u", "about": [], "difference": 0.0}
    text = model_card(facts(rows=bare, teachers=[], changes=[], to="onnx", own_evaluation={"attacks": {}}))
    assert "library_name: onnx" in text and "## Attacks" not in text and "teacher:" not in text


def test_a_teacher_of_unknown_size() -> None:
    teacher = {"role": "clean", "model": "mlp", "clean": 0.9, "worst_case": None, "samples": 10, "size": {}}
    assert "clean teacher: mlp; clean 90.00 % on 10 images" in model_card(facts(teachers=[teacher]))
