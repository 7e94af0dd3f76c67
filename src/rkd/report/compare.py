"""Several runs side by side: one row a group of runs that differ by seed alone, and reasons not to compare them.

Saved evaluations stand among them. How its net was trained an evaluation does not say; but of a run's student it holds
a key of the run's settings (`storage.card`), and those of one key, evaluated alike, are seeds of one another.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rkd.core.errors import RkdError
from rkd.storage.card import ALIKE
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import attack_name

from .data import Net, RunData
from .read import read_run
from .values import radius, setting, shortened, table, text

WORST = "worst_case"
LOOKS = ("batch_size", "rounded", "checks", "curve", "engine", "examples", "corruptions", "transfer")
"""Settings of the evaluation that leave its accuracies as they are."""

MOST_DIFFERENCES = 60


@dataclass(frozen=True)
class Run:
    """One finished run."""

    data: RunData
    net: Net

    @property
    def name(self) -> str:
        return self.data.name

    def measure(self, name: str) -> float | None:
        return self.net.accuracy(name)


@dataclass(frozen=True)
class Value:
    """An accuracy of a group. `std` (of the sample, n - 1) where there are several runs, `interval` where it is one."""

    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Against:
    """How far a group's students are from their baselines, students without teachers by `loss`: by measure the mean
    difference with the ends of its 95 % interval, over `seeds` or, of one run, over its test images."""

    loss: str
    seeds: int
    difference: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed alone."""

    name: str
    runs: list[Run]

    @property
    def first(self) -> RunData:
        return self.runs[0].data

    @property
    def seeds(self) -> list[int | None]:
        return [run.data.training_seed for run in self.runs]

    def value(self, name: str) -> Value | None:
        """By `clean`, `worst_case` or an attack's name; None unless every run of the group has it."""
        found = [run.measure(name) for run in self.runs]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        if len(known) == 1:
            return Value(known[0], None, self.runs[0].net.intervals.get(name))
        return Value(statistics.fmean(known), statistics.stdev(known))

    def against(self) -> Against | None:
        """None unless every run of the group has a baseline, and all by the same loss."""
        baselines = [run.data.baseline for run in self.runs if run.data.baseline is not None]
        losses = {baseline.loss for baseline in baselines}
        if len(baselines) < len(self.runs) or len(losses) != 1:
            return None
        shared = [name for name in baselines[0].difference if all(name in b.difference for b in baselines)]
        if len(baselines) == 1:
            return Against(losses.pop(), 1, {name: baselines[0].difference[name] for name in shared})
        values = {name: [baseline.difference[name][0] for baseline in baselines] for name in shared}
        return Against(losses.pop(), len(baselines), {name: _paired(found) for name, found in values.items()})


@dataclass(frozen=True)
class Comparison:
    """`attacks`: every attack that some run has, in order. `robust`: the measure that all runs share (`worst_case` or
    an attack's name), on which W-Robust, NRR and the trade-off rest; None if there is none. `differences`: settings
    in which the groups differ, by dotted key a value for each group."""

    groups: list[Group]
    attacks: list[str]
    robust: str | None
    differences: dict[str, list[str]]
    warnings: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def robust_name(self) -> str:
        return "worst case" if self.robust == WORST else attack_name(self.robust or "")

    def combined(self, group: Group) -> tuple[Value | None, Value | None]:
        """W-Robust and NRR of a group, of each run first."""
        pairs = [(run.measure("clean"), run.measure(self.robust or "")) for run in group.runs]
        known = [(clean, robust) for clean, robust in pairs if clean is not None and robust is not None]
        if not known or len(known) < len(pairs):
            return None, None
        return (
            _value([(clean + robust) / 2 for clean, robust in known]),
            _value([2 * clean * robust / (clean + robust) if clean + robust else 0.0 for clean, robust in known]),
        )


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's distribution for 1 to 10 degrees of freedom."""


def _paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two or more seeds' differences with its 95 % interval by Student's t."""
    freedom = len(differences) - 1
    # Beyond the table: within 0.003 of the quantile.
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.4 / freedom + 2.9 / freedom**2
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def _value(values: Sequence[float]) -> Value:
    return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def compare(folders: Iterable[RunFolder], attack: str | None = None) -> Comparison:
    """Put finished runs and saved evaluations side by side. `attack`: the measure of robustness for the worst case.

    A run without an evaluation is left out with a warning. Raises RkdError if none is left, or none has the attack.
    """
    warnings: list[str] = []
    runs: list[Run] = []
    seen = set()
    for folder in folders:
        if (place := folder.path.resolve()) in seen:
            continue
        seen.add(place)
        data = read_run(folder)
        if data.student is None or data.student.clean is None:
            warnings.append(f"{data.name} is left out: it has no evaluation{_why(data)}")
        else:
            runs.append(Run(data, data.student))
    if not runs:
        raise RkdError("there is nothing to compare: none of the runs is finished")
    _name_apart(runs)
    attacks = list(dict.fromkeys(name for run in runs for name in run.net.attacks))
    robust = _robust(runs, attacks, attack, warnings)
    groups = _groups(runs)
    warnings += _incomparable(runs)
    for group in groups:
        if len(set(group.seeds)) < len(group.runs):
            names = ", ".join(run.name for run in group.runs)
            warnings.append(f"{names}: the same settings and the same seed; their spread says nothing about seeds")
    warnings += _doubts(runs)
    return Comparison(groups, attacks, robust, _differences(groups), list(dict.fromkeys(warnings)))


def _why(data: RunData) -> str:
    return f" ({shortened(data.status, 100)})" if data.status and data.status != "finished" else ""


def _name_apart(runs: Sequence[Run]) -> None:
    """Evaluations of one net, or of a run that is there itself, get their folders' names behind; folders of one name in
    different places their parents' names in front."""
    names = [run.name for run in runs]
    for run in runs:
        if run.data.evaluated and names.count(run.name) > 1:
            run.data.name = f"{run.name} ({text(run.data.folder.resolve().name, 60)})"
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            parent = text(run.data.folder.resolve().parent.name, 60)
            run.data.name = f"{parent}/{run.data.name}"


def _robust(runs: Sequence[Run], attacks: Sequence[str], wanted: str | None, warnings: list[str]) -> str | None:
    """The worst case where all runs were attacked alike, else the strongest attack that all share."""
    shared = [name for name in attacks if all(name in run.net.attacks for run in runs)]
    if wanted is not None:
        if wanted in shared or (wanted == WORST and all(run.net.worst_case is not None for run in runs)):
            return wanted
        there = f"all have {', '.join(shared)}" if shared else "they share no attack"
        raise RkdError(f"not every run was evaluated with {wanted!r}; {there}")
    if not attacks:
        return None
    alike = all(set(run.net.attacks) == set(attacks) for run in runs)
    if alike and all(run.net.worst_case is not None for run in runs):
        return WORST
    if not alike:
        basis = "their worst cases are not comparable"
        if not shared:
            warnings.append(f"the runs share no attack: {basis}, and there is no robust accuracy for all")
            return None
        warnings.append(f"the runs were evaluated with different attacks: {basis}")
    return min(shared, key=lambda name: statistics.fmean(run.net.attacks[name] for run in runs))


def _groups(runs: Sequence[Run]) -> list[Group]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_identity(run.data), []).append(run)
    rows = [row for members in found.values() for row in _drawn_apart(members)]
    groups: list[Group] = []
    labels = [_label(members) for members in rows]
    for label, members in zip(labels, rows, strict=True):
        if labels.count(label) > 1:
            label = f"{label} ({', '.join(run.name for run in members)})"
        taken = [group.name for group in groups]
        name, number = shortened(label, 80), 1
        while name in taken:
            number += 1
            name = f"{shortened(label, 74)} #{number}"
        groups.append(Group(name, members))
    return groups


def _identity(run: RunData) -> str:
    """What makes a run: its settings without the seed, its data and its threat; and a saved evaluation: those of the
    run that its net comes from, and its own. Without the first it is like no other."""
    config = {key: value for key, value in run.config.items() if key not in ALIKE}
    if "evaluate" in config:
        config["evaluate"] = {key: value for key, value in table(config["evaluate"]).items() if key not in LOOKS}
    trained = text(table(run.card.get("trained")).get("settings"), 80) if run.evaluated else ""
    if run.evaluated and not trained:
        return f"evaluation {run.folder.resolve()}"
    about = [run.evaluated, trained, config, run.data, run.threat, table(run.manifest.get("data"))]
    return json.dumps(about, sort_keys=True, default=str)


def _drawn_apart(members: list[Run]) -> list[list[Run]]:
    """Rows for runs that are alike. Evaluations share one only if each is of another seed's net: one net evaluated
    several times is no spread over seeds."""
    seeds = {run.data.training_seed for run in members}
    if members[0].data.evaluated and (None in seeds or len(seeds) < len(members)):
        return [[run] for run in members]
    return [members]


def _label(members: Sequence[Run]) -> str:
    if len(members) == 1:
        return members[0].name
    first = members[0].data
    return f"{first.method} {first.student_name}".strip() or first.name


def _doubts(runs: Sequence[Run]) -> list[str]:
    """What the runs' own self-checks said: each check once, with the runs that it is about."""
    found: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        for doubt in run.net.doubts:
            found.setdefault(doubt.check or doubt.finding, []).append((run.name, doubt.finding or doubt.meaning))
    lines = []
    for what, said in found.items():
        names = ", ".join(dict.fromkeys(name for name, _ in said))
        alike = len(set(finding for _, finding in said)) == 1
        lines.append(f"{names}: {said[0][1]}" if alike else f"{what} in {names}; for example: {said[0][1]}")
    return lines


def _incomparable(runs: Sequence[Run]) -> list[str]:
    """Why numbers of these runs are not measured alike."""
    found = []
    data = {r.data.data or "?" for r in runs}
    images = {found_print for r in runs if (found_print := _fingerprint(r.data)) or not r.data.evaluated}
    if len(data) > 1:
        found.append(f"the numbers are not comparable: different data sets ({', '.join(sorted(data))})")
    elif len(images) > 1:
        found.append("the numbers are not comparable: the data sets share a name, but not their images")
    threats = {radius(*r.data.threat) or "none" for r in runs}
    if len(threats) > 1:
        found.append(f"the numbers are not comparable: different threats ({', '.join(sorted(threats))})")
    samples = {r.net.samples for r in runs if r.net.samples is not None}
    if len(samples) > 1:
        counts = ", ".join(f"{count:,}" for count in sorted(samples))
        found.append(f"the runs were evaluated on different numbers of test images ({counts})")
    for name in dict.fromkeys(name for run in runs for name in run.net.searches):
        searches = [run.net.searches[name] for run in runs if name in run.net.searches]
        if len({json.dumps([s.implementation, s.options, s.objective, s.norm, s.eps]) for s in searches}) > 1:
            found.append(f"the attack {attack_name(name)} is not the same in all runs: its settings differ")
    on_test = [r.name for r in runs if table(r.data.config.get("validate")).get("on") == "test"]
    if on_test and len(on_test) < len(runs):
        found.append(f"chosen on the test images, unlike the others: {', '.join(on_test)}")
    return found


def _fingerprint(run: RunData) -> str:
    return text(table(run.manifest.get("data")).get("fingerprint"), 80)


def _differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Settings in which the groups differ: by dotted key, a value for each group, "" where it has none. What an
    evaluation does not say is no difference, nor is what leaves its accuracies as they are."""
    flat = [dict(_flat(group.first.config)) for group in groups]
    keys = dict.fromkeys(key for one in flat for key in one)
    looks = {key for key in keys if key.startswith("evaluate.") and key.split(".")[1] in LOOKS}
    told = [key for key in keys if key.split(".")[0] not in ALIKE and key not in looks]
    rows = {key: [one.get(key, "") for one in flat] for key in told}
    silent = [group.first.evaluated for group in groups]

    def said(values: list[str]) -> set[str]:
        return {value for value, unsaid in zip(values, silent, strict=True) if value or not unsaid}

    differing = {key: values for key, values in rows.items() if len(said(values)) > 1}
    return dict(list(differing.items())[:MOST_DIFFERENCES])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in table(config).items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
            for place, inner in enumerate(value):
                yield from _flat(inner, f"{prefix}{key}.{place + 1}.")
        elif value not in ({}, []):
            yield f"{prefix}{key}", setting(key, value)
