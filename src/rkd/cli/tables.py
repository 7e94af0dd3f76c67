"""Tables of results."""

from collections.abc import Mapping, Sequence
from typing import Any

from rkd.storage.text import attack_name, fraction

from .terminal import Terminal, percent

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
    if baseline := results.get("baseline"):
        name = f"no teacher, {baseline['loss']}"
        row = {"clean": baseline["clean"], **_named(baseline["attacks"]), WORST: baseline["worst_case"]}
        accuracies.append((name, row))
        w_robust.append((name, _named(baseline["w_robust"])))
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
    if baseline:
        from rkd.report import apart

        measures = {"clean": "clean", "worst_case": WORST, "w_robust": "W-Robust"}
        against = (
            f"Student less {baseline['loss']} without a teacher (95 % interval over the test images, one training)"
        )
        parts = [f"{said} {apart(*baseline['difference'][name])}" for name, said in measures.items()]
        terminal.result(f"{against}:\n  {', '.join(parts)}")
        terminal.result()
    show_warnings(student.get("warnings", []), terminal)


def show_evaluation(summary: Mapping[str, Any], threat: Mapping[str, Any], data: str, terminal: Terminal) -> None:
    """The table of `rkd eval`."""
    accuracies = {"clean": summary["clean"], **summary["attacks"], "worst_case": summary["worst_case"]}
    rounded = summary.get("rounded", {})
    rows = []
    for name, accuracy in accuracies.items():
        if name == "worst_case" and len(summary["attacks"]) < 2:
            continue
        attack = name in summary["attacks"]
        low, high = summary["interval_95"][name]
        worst_class = summary["worst_class"][name]
        rows.append([
            {"clean": "clean", "worst_case": WORST}.get(name) or attack_name(name),
            percent(accuracy),
            f"{percent(low)} - {percent(high)}",
            *([percent(rounded[name]) if name in rounded else ""] if rounded else []),
            percent(summary["w_robust"][name]) if attack else "",
            percent(summary["nrr"][name]) if attack else "",
            "" if worst_class is None else percent(worst_class),
            percent(summary["calibration"][name]["ece"]) if name in summary["calibration"] else "",
            f"{summary['seconds'][name]:.1f}" if name in summary["seconds"] else "",
        ])  # fmt: skip
    headings = ["accuracy", "95 % interval", *(["8 bits"] if rounded else []), "W-Robust", "NRR", "worst class", "ECE",
                "seconds"]  # fmt: skip
    title = f"{summary['samples']} test images of {data}, {threat_text(threat)}; values in %"
    terminal.table(["", *((text, "right") for text in headings)], rows, title)
    notes: dict[str, list[str]] = {}
    for name, search in summary["searches"].items():
        for note in search["notes"]:
            notes.setdefault(note, []).append(attack_name(name))
    for note, names in notes.items():
        terminal.message(f"{', '.join(names)}: {note}")
    _distances(summary["searches"], terminal)
    show_warnings(summary["warnings"], terminal)


def show_further(summary: Mapping[str, Any], per_class: bool, terminal: Terminal) -> None:
    """What `rkd eval` was asked for besides: classes, the curve, corruptions, transfer."""
    if per_class:
        columns = {name: values for name, values in summary["per_class"].items() if name != "worst_case"}
        rows = [
            [name, *("" if values[place] is None else percent(values[place]) for values in columns.values())]
            for place, name in enumerate(summary["classes"])
        ]
        names = ["clean" if name == "clean" else attack_name(name) for name in columns]
        _block("Accuracy in % by class", ["class", *names], rows, terminal)
    if curve := summary.get("curve"):
        points = zip(curve["eps"], curve["accuracy"], curve["interval_95"], strict=True)
        rows = [[_radius(eps, curve["norm"]), percent(a), f"{percent(low)} - {percent(high)}"]
                for eps, a, (low, high) in points]  # fmt: skip
        title = f"Accuracy in % under {attack_name(curve['attack'])} against eps ({curve['norm']})"
        _block(title, ["eps", "accuracy", "95 % interval"], rows, terminal)
    if corruptions := summary.get("corruptions"):
        rows = [[name, *map(percent, values)] for name, values in corruptions["accuracy"].items()]
        rows.append(["mean", percent(corruptions["mean"]), *[""] * 4])
        title = f"Accuracy in % by severity on {corruptions['samples']} images: {corruptions['source']}"
        _block(title, ["corruption", "1", "2", "3", "4", "5"], rows, terminal)
    if transfer := summary.get("transfer"):
        _transfer(transfer, terminal)


def _distances(searches: Mapping[str, Any], terminal: Terminal) -> None:
    """How far the nearest images that fool the net are, of attacks that look for them."""
    quantiles = ("p10", "p25", "median", "p75", "p90")
    rows = []
    for name, search in searches.items():
        if found := search.get("distance"):
            values = [*(found[quantile] for quantile in quantiles), found["mean"]]
            rows.append([attack_name(name), search["measure"], f"{found['found']} of {found['samples']}",
                         *("" if value is None else f"{value:.4g}" for value in values)])  # fmt: skip
    if rows:
        title = "Distance to the nearest image that fools the net: the radius within which so many of the images fall"
        _block(title, ["", "norm", "found", "10 %", "25 %", "median", "75 %", "90 %", "mean of found"], rows, terminal)


def _radius(eps: float, norm: str) -> str:
    """As `fraction`, and in 255ths also where these are no whole number, but what else is said takes many digits."""
    text = fraction(eps)
    return f"{255 * eps:.4g}/255" if norm == "Linf" and "/" not in text and len(text) > 5 else text


def _transfer(transfer: Mapping[str, Any], terminal: Terminal) -> None:
    names = list(transfer["accuracy"])
    short = {name: f"net {place}" for place, name in enumerate(names, 1)}
    rows = [["clean images", *(percent(transfer["clean"][name]) for name in names)]]
    rows += [[f"{short[source]}: {source}", *(percent(values[name]) for name in names)]
             for source, values in transfer["accuracy"].items()]  # fmt: skip
    title = f"Accuracy in % of each net on images made by {attack_name(transfer['attack'])} on the net of the row"
    _block(title, ["made on", *short.values()], rows, terminal)


def _block(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], terminal: Terminal) -> None:
    terminal.result()
    terminal.table([columns[0], *((column, "right") for column in columns[1:])], rows, title)


def show_warnings(warnings: Sequence[Mapping[str, str]], terminal: Terminal) -> None:
    """Why a number may not be what it seems: one line each."""
    for warning in warnings:
        terminal.warning(f"{warning['finding']}: {warning['meaning']}; {warning['advice']}")


def threat_text(threat: Mapping[str, Any]) -> str:
    """`Linf eps 8/255`."""
    return f"{threat['norm']} eps {fraction(threat['eps'])}"


def accuracy_table(title: str, columns: Sequence[str], rows: Sequence[Row], terminal: Terminal) -> None:
    """Nets by attacks."""
    cells = [[name, *(percent(values[column]) if column in values else "" for column in columns)]
             for name, values in rows]  # fmt: skip
    terminal.table(["", *((column, "right") for column in columns)], cells, title)
    terminal.result()


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {attack_name(name): value for name, value in values.items()}


EXPORTED = ("transferred", "straight_through", "black_box", "worst_case")
"""Accuracies of an export under attack, in order."""


def show_export(facts: Mapping[str, Any], terminal: Terminal) -> None:
    """The table of `rkd export`."""
    rows, threat = facts["rows"], facts["threat"]
    columns = [name for name in EXPORTED if any(name in row["accuracy"] for row in rows)]
    whole = rows[0]["whole_test_set"]["samples"]
    cells = []
    for row in rows:
        size, latency = row["size"], row["size"]["latency"]
        accuracies = [percent(row["accuracy"][name]) if name in row["accuracy"] else "" for name in columns]
        low, high = latency["quartiles"]
        cells.append([row["name"], percent(row["whole_test_set"]["clean"]), *accuracies, bytes_text(size["bytes"]),
                      f"{size['macs'] / 1e6:,.2f}", f"{latency['median']:.2f} ({low:.2f} - {high:.2f})"])  # fmt: skip
    heads = ["clean", *(name.replace("_", " ") for name in columns), "size", "MMACs", "ms, one thread"]
    title = f"{facts['to']}: clean on all {whole:,} test images of {facts['data']['name']}"
    if columns:
        title += f", attacked on {rows[0]['samples']:,}, {threat_text(threat)}"
    terminal.table(["", *((text, "right") for text in heads)], cells, f"{title}; accuracy in %")
    for row in rows[1:]:
        files = ", ".join(row["files"])
        terminal.message(f"{row['name']}: {files}, by {row['runtime']}; logits within {row['difference']:.1e} of the "
                         "net's, as a share of the largest")  # fmt: skip


def bytes_text(count: int) -> str:
    """`120.3 kB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"
