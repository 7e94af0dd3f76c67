"""A comparison as JSON, CSV and LaTeX."""

import csv
import io
from dataclasses import asdict
from typing import Any

from rkd.storage.text import attack_name

from .compare import WORST, Comparison, Group, Run, Value
from .data import Size
from .values import grouped, magnitude, milliseconds, percent, plain, radius

NO_SIZE = Size(None, None, None, None, None, None)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values. `runs`: every run; `groups`: runs that differ by seed alone; accuracies are fractions."""
    return {
        "robust": comparison.robust,
        "attacks": comparison.attacks,
        "groups": [_group(group, comparison) for group in comparison.groups],
        "runs": [
            {
                "run": run.name,
                "group": group.name,
                "method": run.data.method,
                "student": run.data.student_name,
                "data": run.data.data,
                "norm": run.data.threat[0],
                "eps": run.data.threat[1],
                "seed": run.data.training_seed,
                "epochs": run.data.epochs,
                "seconds": run.data.seconds,
                "samples": run.net.samples,
                "clean": run.net.clean,
                "attacks": run.net.attacks,
                "worst_case": run.net.worst_case,
                "interval_95": {name: list(found) for name, found in run.net.intervals.items()},
                "sizes": {role or "student": asdict(size) for role, size in run.data.sizes.items()},
                "warnings": [doubt.finding or doubt.meaning for doubt in run.net.doubts],
            }
            for group in comparison.groups
            for run in group.runs
        ],
        "differences": {
            key: dict(zip([group.name for group in comparison.groups], values, strict=True))
            for key, values in comparison.differences.items()
        },
        "warnings": comparison.warnings,
    }


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    w_robust, nrr = comparison.combined(group)
    return {
        "name": group.name,
        "runs": [run.name for run in group.runs],
        "seeds": group.seeds,
        "clean": _plain(group.value("clean")),
        "attacks": {name: _plain(group.value(name)) for name in comparison.attacks},
        "worst_case": _plain(group.value(WORST)),
        "w_robust": _plain(w_robust),
        "nrr": _plain(nrr),
        "baseline": asdict(against) if (against := group.against()) else None,
    }


def _plain(value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "std": value.std, "interval_95": list(value.interval) if value.interval else None}


def to_csv(comparison: Comparison) -> str:
    """One line a run; accuracies are fractions, each with the ends of its 95 % interval."""
    measures = ["clean", *comparison.attacks, WORST]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "run", "group", "method", "student", "data", "norm", "eps", "seed", "epochs", "seconds", "samples",
        "parameters", "bytes", "macs", "latency_ms", "teacher_parameters",
        *(_guarded(column) for name in measures for column in (name, f"{name}_low", f"{name}_high")),
    ])  # fmt: skip
    for group in comparison.groups:
        for run in group.runs:
            data = run.data
            row: list[Any] = [run.name, group.name, data.method, data.student_name, data.data, *data.threat,
                              data.training_seed, data.epochs, data.seconds, run.net.samples]  # fmt: skip
            size = data.sizes.get("", NO_SIZE)
            row += [size.parameters, size.bytes, size.macs, size.latency, largest_teacher(run)]
            for name in measures:
                row += [run.measure(name), *(run.net.intervals.get(name) or (None, None))]
            writer.writerow(["" if cell is None else _guarded(cell) for cell in row])
    return out.getvalue()


def _guarded(cell: Any) -> Any:
    """A spreadsheet takes text that begins like a formula for one: an apostrophe in front makes it text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def to_latex(comparison: Comparison) -> str:
    """A `tabular` of the groups with booktabs; values in %, ± the standard deviation or [the 95 % interval]."""
    shown = columns(comparison)
    several = any(len(group.runs) > 1 for group in comparison.groups)
    head = ["Run", *(["Seeds"] if several else []), *(latex(title) for title, _ in shown)]
    lines = []
    for place, group in enumerate(comparison.groups):
        seeds = [str(len(group.runs))] if several else []
        cells = [latex(group.name), *seeds, *(_latex_value(values[place]) for _, values in shown)]
        lines.append(" & ".join(cells) + r" \\")
    comment = f"% {where(comparison)}; values in %{basis(comparison)}. Needs \\usepackage{{booktabs}}."
    warnings = [f"% warning: {text}" for text in comparison.warnings]
    begin = r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}"
    top = [comment, *warnings, begin, r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*top, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def sizes(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the groups' sizes, as their first runs measured them; no rows where none did."""
    rows = []
    for group in comparison.groups:
        run = group.runs[0]
        size, teacher = run.data.sizes.get("", NO_SIZE), largest_teacher(run)
        compression = teacher / size.parameters if teacher and size.parameters else None
        rows.append([
            group.name, grouped(size.parameters), magnitude(size.bytes, "B"), magnitude(size.macs),
            milliseconds(size.latency, size.quartiles), grouped(teacher), plain(compression),
        ])  # fmt: skip
    heads = ["parameters", "size", "MACs", "ms, one image", "largest teacher", "compression"]
    return heads, rows if any(run.data.sizes for run in comparison.runs) else []


def against_baselines(comparison: Comparison) -> list[str]:
    """`rslad small-cnn less pgd-at without a teacher (mean of 5 seeds, 95 % interval): clean -0.3 (-0.8 to +0.2), ...`,
    a line for each group that has baselines; values in %."""
    lines = []
    for group in comparison.groups:
        if (found := group.against()) is None:
            continue
        over = f"mean of {found.seeds} seeds" if found.seeds > 1 else "one training, over its test images"
        names = {"clean": "clean", WORST: "worst case", "w_robust": "W-Robust"}
        parts = [f"{said} {apart(*found.difference[name])}" for name, said in names.items() if name in found.difference]
        told = f"{group.name} less {found.loss} without a teacher"
        lines.append(f"{told} ({over}, 95 % interval): {', '.join(parts)}")
    return lines


def apart(value: float, low: float, high: float) -> str:
    """`+1.2 (-0.3 to +2.7)`, in %."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def largest_teacher(run: Run) -> int | None:
    """Parameters of the largest teacher."""
    known = [size.parameters for role, size in run.data.sizes.items() if role and size.parameters is not None]
    return max(known, default=None)


def where(comparison: Comparison) -> str:
    """`digits, Linf eps 38/255, 359 test images`, as far as it is the same for all."""
    runs = comparison.runs
    parts = (
        {run.data.data for run in runs},
        {radius(*run.data.threat) for run in runs},
        {f"{run.net.samples:,} test images" for run in runs if run.net.samples is not None},
    )
    return ", ".join(next(iter(part)) for part in parts if len(part) == 1 and any(part)) or "different settings"


def basis(comparison: Comparison) -> str:
    """`; W-Robust and NRR of PGD-SAT` where they are not of the worst case, which they are unless somebody says so."""
    named = comparison.robust not in (None, WORST)
    return f"; W-Robust and NRR of {comparison.robust_name}" if named else ""


def columns(comparison: Comparison) -> list[tuple[str, list[Value | None]]]:
    """(title, a value for each group) of every column that holds anything."""
    groups = comparison.groups
    found = [("clean", [group.value("clean") for group in groups])]
    found += [(attack_name(name), [group.value(name) for group in groups]) for name in comparison.attacks]
    if len(comparison.attacks) > 1:
        found.append(("worst case", [group.value(WORST) for group in groups]))
    if comparison.robust:
        combined = [comparison.combined(group) for group in groups]
        found += [("W-Robust", [pair[0] for pair in combined]), ("NRR", [pair[1] for pair in combined])]
    return [(title, values) for title, values in found if any(values)]


def cells(comparison: Comparison, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of plain text, a row for each group."""
    shown = columns(comparison)
    rows = [[written(values[place], intervals) for _, values in shown] for place in range(len(comparison.groups))]
    return [title for title, _ in shown], rows


def written(value: Value | None, intervals: bool = True) -> str:
    """`93.2 ± 0.4`, `93.2 [91.0–95.1]`, or `93.2` without `intervals`."""
    if value is None:
        return ""
    if value.std is not None:
        return f"{percent(value.mean)} ± {percent(value.std)}"
    if value.interval is not None and intervals:
        return f"{percent(value.mean)} [{percent(value.interval[0])}–{percent(value.interval[1])}]"
    return percent(value.mean)


def _latex_value(value: Value | None) -> str:
    if value is None:
        return "--"
    if value.std is not None:
        return rf"${percent(value.mean)} \pm {percent(value.std)}$"
    if value.interval is not None:
        return rf"{percent(value.mean)} {{\scriptsize [{percent(value.interval[0])}, {percent(value.interval[1])}]}}"
    return percent(value.mean)


_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "{''}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""A star or a bracket at the beginning of a line would belong to the `\\\\` before it."""


def latex(value: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_SPECIAL.get(character, character) for character in value)
