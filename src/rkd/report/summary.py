"""A run in facts: the figures, lines and commands that its page shows."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rkd.storage.text import attack_name, command

from .data import Baseline, Export, Net, RunData, Size
from .gallery import Gallery
from .values import (
    between,
    grouped,
    items,
    magnitude,
    milliseconds,
    number,
    percent,
    radius,
    setting,
    shortened,
    table,
    text,
    whole,
)


def badge(run: RunData) -> tuple[str, str]:
    """(words, kind) on how the run stands."""
    status = run.status
    if run.finished:
        return "finished", "good"
    if status.startswith("failed"):
        return shortened(status, 120), "bad"
    return "unfinished" if status in ("", "finished") else f"unfinished: {shortened(status, 60)}", "open"


def place(run: RunData) -> str:
    """How its folder is called, as commands name it: an evaluation's own name is its net's."""
    return shortened(text(run.folder.resolve().name), 100) if run.evaluated else run.name


def facts(run: RunData) -> list[str]:
    started = text(run.manifest.get("started"), 40)[:10]
    samples = f"{run.student.samples:,} test images" if run.student and run.student.samples else ""
    seed = f"seed {run.seed}" if run.seed is not None else ""
    if run.evaluated:
        several = f"under {len(run.student.attacks)} attacks" if run.student and len(run.student.attacks) > 1 else ""
        found = [started, samples, several, seed]
    else:
        done = int(run.history[-1]["epoch"]) if run.history else 0
        epochs = run.epochs or done
        found = [started, f"{epochs} epochs" if run.finished else f"{done} of {epochs} epochs", seed, samples]
    return [fact for fact in found if fact]


def evaluated(run: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, value)]) on what an evaluation was of: the net, its images, the attacker."""
    net, card, rules = run.student, run.card, table(run.config.get("evaluate"))
    assert net is not None
    trained, data = table(card.get("trained")), table(run.manifest.get("data"))
    limited = rules.get("limit") is not None
    epochs, seed = whole(trained.get("epochs")), whole(trained.get("seed"))
    training = [
        text(trained.get("method")),
        f"on {text(trained.get('data'))}" if text(trained.get("data")) else "",
        radius(text(table(trained.get("threat")).get("norm"), 20), number(table(trained.get("threat")).get("eps"))),
        f"{epochs} epochs" if epochs else "",
        f"seed {seed}" if seed is not None else "",
    ]
    options = [f"{key} = {setting(key, value)}" for key, value in list(table(card.get("options")).items())[:64]]
    shape = " × ".join(text(side) for side in items(card.get("shape"))[:3])
    corrupted, others = text(rules.get("corruptions")), items(rules.get("transfer"))
    found = [
        ("the net", [
            ("from", text(card.get("source"), 400)),
            ("model", net.model),
            ("options", shortened(", ".join(options), 400)),
            ("parameters", grouped(count) if (count := whole(card.get("parameters"))) else ""),
            ("weights", text(card.get("weights"), 40)),
            ("trained by", ", ".join(filter(None, training))),
            ("normalised", net.normalization),
            ("mean", setting("mean", card.get("mean"))),
            ("std", setting("std", card.get("std"))),
        ]),
        ("the images", [
            ("data", run.data),
            ("fingerprint", text(data.get("fingerprint"))),
            ("test images", f"{net.samples:,}{' (a fixed subset)' if limited else ''}" if net.samples else ""),
            ("shape", shape),
            ("classes", f"{len(run.classes):,}" if run.classes else ""),
            ("corruptions", "rkd's own" if corrupted == "own" else corrupted),
        ]),
        ("the attacker", [
            ("threat", radius(*run.threat)),
            ("attacks", ", ".join(attack_name(name) for name in net.attacks) or "none"),
            ("seed", str(run.seed) if run.seed is not None else ""),
            ("self-checks", text(rules.get("checks"))),
            ("engine", text(rules.get("engine"))),
            ("transfer", shortened(", ".join(text(other) for other in others[:64]), 400)),
        ]),
    ]  # fmt: skip
    return [(heading, [(name, value) for name, value in lines if value]) for heading, lines in found]


@dataclass(frozen=True)
class Tile:
    """A number that the page begins with: its name, value (a fraction), unit, and a line beneath."""

    name: str
    value: float
    line: str
    kind: str = ""
    signed: bool = False


def tiles(run: RunData) -> list[Tile]:
    net = run.student
    assert net is not None
    found = []
    if net.clean is not None:
        found.append(Tile("clean accuracy", net.clean, between(net.intervals.get("clean")), "clean"))
    counted = [name for name in net.attacks if name not in net.searches or net.searches[name].counts]
    if net.worst_case is not None and counted:
        several = f"under {len(counted)} attacks" if len(counted) > 1 else f"under {attack_name(counted[0])}"
        band = between(net.intervals.get("worst_case"))
        found.append(Tile("worst case", net.worst_case, f"{band} {several}".strip(), "attacked"))
        rivals = [t for t in run.teachers if t.worst_case is not None]
        if rivals:
            best = max(rivals, key=lambda t: t.worst_case or 0)
            assert best.worst_case is not None
            line = f"worst case; the {best.role} teacher keeps {percent(best.worst_case)}".replace("the  ", "the ")
            found.append(Tile("against its teacher", net.worst_case - best.worst_case, line, signed=True))
    if run.baseline and (apart := run.baseline.difference.get("w_robust")):
        low, high = (f"{100 * end:+.1f}" for end in apart[1:])
        line = f"W-Robust, {low} to {high}; {run.baseline.loss} without a teacher: {_w_robust(run.baseline.net)}"
        found.append(Tile("what teaching brings", apart[0], line, signed=True))
    measure, under = ("worst_case", "worst case") if net.attacks else ("clean", "clean")
    worst = [(a, place) for place, a in enumerate(net.per_class.get(measure, [])) if a is not None]
    if len(worst) > 1:
        share, place = min(worst)
        name = run.classes[place] if place < len(run.classes) else str(place)
        found.append(Tile("weakest class", share, f"class {shortened(name, 24)}, {under}"))
    return found


def _w_robust(net: Net) -> str:
    known = net.clean is not None and net.worst_case is not None
    return percent(((net.clean or 0) + (net.worst_case or 0)) / 2 if known else None)


@dataclass(frozen=True)
class Row:
    """A line of the table of results; `values` are the other nets', `counts`: the attack is part of the worst case."""

    name: str
    value: float | None
    interval: tuple[float, float] | None
    w_robust: float | None
    nrr: float | None
    rounded: float | None
    values: list[float | None]
    kind: str
    counts: bool


@dataclass(frozen=True)
class Results:
    others: list[str]
    rows: list[Row]
    rounded: bool


def results(net: Net, teachers: Sequence[Net], baseline: Baseline | None = None) -> Results:
    names = ["clean", *net.attacks]
    if len(net.attacks) > 1 and net.worst_case is not None:
        names.append("worst_case")
    rows = [
        Row(
            "worst case" if name == "worst_case" else attack_name(name),
            net.accuracy(name),
            net.intervals.get(name),
            net.w_robust.get(name),
            net.nrr.get(name),
            net.rounded.get(name),
            [other.accuracy(name) for other in (*teachers, *([baseline.net] if baseline else []))],
            "clean" if name == "clean" else "attacked",
            name not in net.searches or net.searches[name].counts,
        )
        for name in names
    ]
    heads = [f"{teacher.role} teacher".strip() for teacher in teachers]
    heads += [f"no teacher, {baseline.loss}"] if baseline else []
    return Results(heads, rows, any(row.rounded is not None for row in rows))


@dataclass(frozen=True)
class Warned:
    """One check's warning: (whose, finding) for each net that it is about; "" is the student."""

    check: str
    findings: list[tuple[str, str]]
    meaning: str
    advice: str


def doubts(run: RunData) -> list[Warned]:
    """The student's warnings first; one that the teachers have too is told once."""
    nets = [("", run.student)] if run.student else []
    nets += [(f"{teacher.role} teacher".strip(), teacher) for teacher in run.teachers]
    found: dict[tuple[str, str, str], Warned] = {}
    for whose, net in nets:
        for doubt in net.doubts:
            said = (doubt.check or doubt.finding, doubt.meaning, doubt.advice)
            warned = found.setdefault(said, Warned(doubt.check, [], doubt.meaning, doubt.advice))
            warned.findings.append((whose, doubt.finding))
    return list(found.values())


@dataclass(frozen=True)
class Cost:
    """Forwards and backwards per training step by net, (what, seconds) of the parts of the run, and the nets' sizes:
    `compression` is how many times the parameters of the student a net has."""

    steps: list[tuple[str, int | None, int | None]]
    times: list[tuple[str, float]]
    sizes: list[tuple[str, Size, float | None]]


def cost(run: RunData) -> Cost:
    steps = []
    for name, counts in list(table(run.manifest.get("cost")).items())[:64]:
        entry = table(counts)
        steps.append((name, whole(entry.get("forwards")), whole(entry.get("backwards"))))
    times = []
    if (training := _training_seconds(run.history)) is not None:
        times.append((f"training, {len(run.history)} epochs", training))
        times.append(("one epoch, on average", training / len(run.history)))
    if run.student and run.student.seconds:
        times.append(("evaluation of the student", sum(run.student.seconds.values())))
    if run.seconds is not None:
        times.append(("the whole run, with preparing and evaluating", run.seconds))
    return Cost([step for step in steps if step[1:] != (None, None)], times, sizes(run))


KINDS = {
    "clean": "clean",
    "transferred": "transferred",
    "straight_through": "straight through",
    "black_box": "black-box",
    "worst_case": "worst case",
}
"""Accuracies of an export, in order, and how they are headed."""


def exported(export: Export) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of an export's table."""
    kinds = [kind for kind in KINDS if any(kind in row.accuracy for row in export.rows)]
    heads = ["clean, all images", *(KINDS[kind] for kind in kinds), "size", "ms, one image", "run by"]
    rows = []
    for row in export.rows:
        accuracies = [f"{percent(row.accuracy.get(kind))} {between(row.intervals.get(kind))}".strip() for kind in kinds]
        size = row.size
        rows.append([row.name, percent(row.clean), *accuracies, magnitude(size.bytes, "B"),
                     milliseconds(size.latency, size.quartiles), row.runtime])  # fmt: skip
    return heads, rows


def sizes(run: RunData) -> list[tuple[str, Size, float | None]]:
    """(net, size, compression) of the student and its teachers."""
    small = run.sizes[""].parameters if "" in run.sizes else None
    return [
        (
            f"{role} teacher" if role else "the net" if run.evaluated else "student",
            size,
            size.parameters / small if role and small and size.parameters is not None else None,
        )
        for role, size in run.sizes.items()
    ]


def _training_seconds(history: Sequence[Mapping[str, float]]) -> float | None:
    """`seconds` counts from the start of the process: a resumed run begins again from zero."""
    marks = [line["seconds"] for line in history if line.get("seconds", -1) >= 0]
    if not marks:
        return None
    ends = [mark for mark, after in zip(marks, [*marks[1:], 0.0], strict=True) if after < mark]
    return sum(ends)


@dataclass(frozen=True)
class Command:
    why: str
    text: str


def commands(run: RunData) -> list[Command]:
    if run.evaluated:
        return _commands_evaluated(run)
    plugins = table(run.manifest.get("plugins"))
    files = [word for key in plugins if key.startswith("file/") for word in ("--plugin", text(plugins[key]))]
    found = []
    if not run.finished:
        found.append(Command("go on where it stopped", command("run", "--resume", run.name, *files)))
    found.append(
        Command("repeat it, from the folder that holds this run", command("run", f"{run.name}/config.toml", *files))
    )
    words = [text(word, 500) for word in items(run.manifest.get("command"))[:200]]
    if len(words) > 1:
        program = "rkd" if PurePath(words[0]).name in ("rkd", "__main__.py") else words[0]
        found.append(Command("how it was started", shlex.join([program, *words[1:]])))
    if run.finished:
        found.append(
            Command("attack it with something stronger", command("eval", run.name, "--attack", "autoattack", *files))
        )
    found.append(Command("what to cite", command("cite", run.name, *files)))
    return found


def _commands_evaluated(run: RunData) -> list[Command]:
    """From the words that started it: what they do not say is written out in evaluation.toml."""
    words = _without_save([text(word, 500) for word in items(run.manifest.get("command"))[:200]][1:])
    found = []
    if words:
        found.append(Command("repeat it, from the folder that it was started in", command(*words)))
    found.append(Command("beside other evaluations or runs", command("compare", place(run), "OTHER")))
    found.append(Command("what to cite", command("cite", place(run))))
    return found


def _without_save(words: list[str]) -> list[str]:
    """A folder that exists is refused, so that what repeats the command names none."""
    kept, left = [], iter(words)
    for word in left:
        if word == "--save":
            next(left, None)
        elif not word.startswith("--save="):
            kept.append(word)
    return kept


def machine(run: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, value)]) of all that the manifest says of software and hardware."""
    manifest = run.manifest
    plugins = table(manifest.get("plugins"))
    foreign = [(key, text(value)) for key, value in plugins.items() if not key.startswith("rkd-toolkit/")]
    data = table(manifest.get("data"))
    about = [
        ("started", text(manifest.get("started"), 40)),
        ("precision", text(manifest.get("precision"))),
        ("data", " ".join(filter(None, (text(data.get("name")), text(data.get("fingerprint")))))),
        ("threat", radius(*run.threat)),
        ("git revision", text(manifest.get("git"), 60)),
    ]
    if run.evaluated:  # what it was of has a section of its own
        about = [(name, value) for name, value in about if name not in ("data", "threat")]
    found = [
        ("evaluation" if run.evaluated else "run", [(name, value) for name, value in about if value]),
        ("versions", [(k, text(v)) for k, v in list(table(manifest.get("versions")).items())[:64] if v is not None]),
        (
            "hardware",
            [(k, setting(k, v)) for k, v in list(table(manifest.get("hardware")).items())[:64] if v is not None],
        ),
        ("other plugins", foreign[:64]),
    ]
    return [(heading, lines) for heading, lines in found if lines]


def absent(run: RunData, gallery: Gallery | None) -> list[str]:
    """What the evaluation did not measure. A run's own never looks at other nets."""
    net = run.student
    if net is None:
        return []
    parts: dict[str, object] = {
        "accuracy against eps": net.curve,
        "accuracy by class": net.per_class,
        "calibration": net.calibration,
        "accuracy on corrupted images": net.corruptions,
        "accuracy after rounding to 8 bits": net.rounded,
        "a gallery": gallery,
    } | ({"transfer to other nets": net.transfer} if run.evaluated else {})
    return [name for name, value in parts.items() if not value]
