"""Tables of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rkd.core.types import fraction

from .terminal import Terminal, attack_name, percent

Row = tuple[str, Mapping[str, float]]
"""A net's name, and its values by column."""

WORST = "worst case"
"""Images that stay right under every attack."""


def show_run(results: Mapping[str, Any], card: Mapping[str, Any], terminal: Terminal) -> None:
    """The tables at the end of `rkd run`, and what to type next."""
    student = results["student"]
    attacks = list(student["attacks"])
    accuracies: list[Row] = []
    w_robust: list[Row] = []
    for teacher in results["teachers"]:
        name = f"{teacher['role']} teacher {teacher['model']}"
        accuracies.append((name, {"clean": teacher["clean"], **_named(teacher["attacks"]), WORST: teacher["robust"]}))
        w_robust.append((name, _named(teacher["w_robust"])))
    name = f"student {student['model']}"
    accuracies.append((name, {"clean": student["clean"], **_named(student["attacks"]), WORST: student["worst_case"]}))
    w_robust.append((name, _named(student["w_robust"])))
    several = [WORST] if len(attacks) > 1 else []
    columns = ["clean", *map(attack_name, attacks), *several]
    terminal.message("")
    where = f"{student['samples']} test images of {card['data']}, {threat_text(card['threat'])}"
    accuracy_table(f"Accuracy in % on {where}", columns, accuracies, terminal)
    if attacks:
        accuracy_table("W-Robust in %: the mean of clean and attacked accuracy", columns[1 : len(attacks) + 1],
                       w_robust, terminal)  # fmt: skip
    for text in student.get("warnings", []):
        terminal.warning(text)


def show_evaluation(summary: Mapping[str, Any], threat: Mapping[str, Any], data: str, terminal: Terminal) -> None:
    """The table of `rkd eval`."""
    rows = []
    for name, (low, high) in summary["interval_95"].items():
        clean = name == "clean"
        rows.append([
            name if clean else attack_name(name),
            percent(summary["clean"] if clean else summary["attacks"][name]),
            f"{percent(low)} - {percent(high)}",
            "" if clean else percent(summary["w_robust"][name]),
            "" if clean else percent(summary["nrr"][name]),
            f"{summary['seconds'][name]:.1f}",
        ])  # fmt: skip
    if len(summary["attacks"]) > 1:
        rows.append([WORST, percent(summary["worst_case"]), "", "", "", ""])
    right = [(text, "right") for text in ("accuracy", "95 % interval", "W-Robust", "NRR", "seconds")]
    title = f"{summary['samples']} test images of {data}, {threat_text(threat)}; values in %"
    terminal.table(["", *right], rows, title)
    for text in summary["warnings"]:
        terminal.warning(text)


def threat_text(threat: Mapping[str, Any]) -> str:
    """`Linf eps 8/255`."""
    return f"{threat['norm']} eps {fraction(threat['eps'])}"


def accuracy_table(title: str, columns: Sequence[str], rows: Sequence[Row], terminal: Terminal) -> None:
    """Nets by attacks, in as many tables as the width asks for."""
    longest = max(24, terminal.width // 3)
    rows = [(name if len(name) <= longest else f"...{name[3 - longest :]}", values) for name, values in rows]
    room = terminal.width - max(len(name) for name, _ in rows)
    part: list[str] = []
    parts = [part]
    for column in columns:
        if part and sum(max(len(c), 5) + 2 for c in [*part, column]) > room:
            part = []
            parts.append(part)
        part.append(column)
    for number, part in enumerate(parts):
        cells = [[name, *(percent(values[c]) if c in values else "" for c in part)] for name, values in rows]
        terminal.table(["", *((column, "right") for column in part)], cells, title if number == 0 else "")
        terminal.result()


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {attack_name(name): value for name, value in values.items()}
