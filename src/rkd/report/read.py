"""A run's folder as typed values. Whatever cannot be used is left out, and `RunData.left_out` says why."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import MOST_JSON, parse_json, parse_toml, read_text

from .data import (
    MOST_CLASSES,
    Baseline,
    Calibration,
    Corruptions,
    Curve,
    Doubt,
    Example,
    Export,
    ExportedNet,
    Net,
    RunData,
    Search,
    Seen,
    Transfer,
    size_of,
)
from .values import block, interval, items, number, percent, setting, shallow, share, shortened, table, text, whole

T = TypeVar("T")

MOST = 64
"""Entries of one table (attacks, teachers, loss terms) that are read."""

MOST_NETS = 32
"""Nets of a transfer matrix that are shown: it has as many rows as columns."""

MOST_BYTES = 64 << 20
"""Size of a history that is read."""

MOST_EPOCHS = 200_000


def read_run(folder: RunFolder) -> RunData:
    """Read a run, finished or not, or a saved evaluation. Raises RkdError if a run has no readable configuration, an
    evaluation no readable result, or the folder links out of itself."""
    folder.check_links()
    if folder.is_evaluation:
        return _read_evaluation(folder)
    left_out: list[str] = []
    config_text = _text_of(folder.config)
    try:
        config = shallow(parse_toml(config_text))
    except ValueError as error:
        raise RkdError(f"cannot read {folder.config}: {_reason(error)}") from None
    name = shortened(text(folder.path.resolve().name) or "run", 100)
    manifest = _json_of(folder.manifest, left_out)
    card = _json_of(folder.card, left_out)
    evaluation = _json_of(folder.evaluation, left_out)
    student = None
    if "student" in evaluation:
        student = _Reader(left_out, "the student's").net(evaluation["student"])
    teachers = []
    if "teachers" in evaluation and not isinstance(evaluation["teachers"], list):
        left_out.append("the teachers: evaluation.json does not list them")
    for place, teacher in enumerate(items(evaluation.get("teachers"))[:MOST]):
        if (found := _Reader(left_out, f"teacher {place + 1}'s").net(teacher)) is not None:
            teachers.append(found)
    return RunData(
        name, folder.path, table(config), block(config_text), manifest, card, _history(folder, left_out),
        student, teachers, left_out, baseline=_baseline(evaluation.get("baseline"), left_out),
        exports=_exports(folder, left_out),
    )  # fmt: skip


def _baseline(value: Any, left_out: list[str]) -> Baseline | None:
    reader = _Reader(left_out, "the baseline's")
    if value is None or (net := reader.net(value)) is None:
        return None
    return Baseline(text(value.get("loss")), net, reader._each(value, "difference", _difference))


def _difference(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    middle, low, high = (number(each, -1, 1) for each in value)
    return None if middle is None or low is None or high is None else (middle, low, high)


def _exports(folder: RunFolder, left_out: list[str]) -> list[Export]:
    """What `rkd export` wrote into the run's folder. Nothing is read through links."""
    found = []
    for path in sorted(folder.path.glob("exports/*/export.json"))[:MOST]:
        if any(place.is_symlink() for place in (path, *path.parents[:2])):
            left_out.append(f"exports/{text(path.parent.name)}: it is a link")
            continue
        content = _json_of(path, left_out)
        rows = [_exported(table(row)) for row in items(content.get("rows"))[:MOST] if table(row)]
        if rows:
            told = [text(line, 400) for line in items(content.get("changes"))[:MOST]]
            found.append(Export(text(content.get("to")) or text(path.parent.name), rows, [t for t in told if t]))
    return found


def _exported(row: Mapping[str, Any]) -> ExportedNet:
    reader, whole_set = _Reader([], "the export's"), table(row.get("whole_test_set"))
    return ExportedNet(
        text(row.get("name")), share(whole_set.get("clean")), whole(whole_set.get("samples")),
        whole(row.get("samples")), reader._each(row, "accuracy", share), reader._each(row, "interval_95", interval),
        size_of(table(row.get("size"))), text(row.get("runtime")),
    )  # fmt: skip


def _read_evaluation(folder: RunFolder) -> RunData:
    """What `rkd eval --save` wrote. Only evaluation.json has to be there: it says by itself what was evaluated."""
    left_out: list[str] = []
    found = _json_of(folder.evaluation, left_out)
    if number(found.get("samples")) is None or "clean" not in found:
        why = f": {left_out[0]}" if left_out else ""
        raise RkdError(f"{folder.path} holds neither a run nor an evaluation that `rkd eval --save` wrote{why}")
    config: dict[str, Any] = {}
    config_text = ""
    if folder.evaluation_settings.exists():
        try:
            config_text = _text_of(folder.evaluation_settings)
            config = shallow(parse_toml(config_text))
        except (RkdError, OSError, ValueError) as error:
            left_out.append(f"{folder.evaluation_settings.name}: {_reason(error)}")
    card = _json_of(folder.net_card, left_out)
    about = ("model", "data", "classes", "threat", "parameters")
    # As the weights' own card says it of a run's student, so that the same pages can be made of both.
    card |= {key: found[key] for key in about if key in found}
    card["loss"] = table(card.get("trained")).get("method")
    source = text(card.get("source"), 400) or text(found.get("net"), 400)
    card["source"] = source
    name = text(card.get("name")) or PurePath(source).name or text(folder.path.resolve().name) or "net"
    config = {"seed": found.get("seed")} | table(config)
    student = _Reader(left_out, "the net's").net(found)
    return RunData(
        shortened(name, 100), folder.path, config, block(config_text), _json_of(folder.manifest, left_out), card, [],
        student, [], left_out, True,
    )  # fmt: skip


def _text_of(path: Path) -> str:
    """Raises RkdError."""
    try:
        return read_text(path)
    except FileNotFoundError:
        raise RkdError(f"there is no file {path}") from None


def _json_of(path: Path, left_out: list[str]) -> dict[str, Any]:
    """A JSON table; {} where there is none, and a line about one that cannot be read."""
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON:
            raise RkdError("it is no file, or one too large")
        content = parse_json(read_text(path, MOST_JSON))
    except (RkdError, OSError, ValueError) as error:
        left_out.append(f"{path.name}: {_reason(error)}")
        return {}
    if not isinstance(content, dict):
        left_out.append(f"{path.name}: it holds no table")
        return {}
    return shallow(content)


def _history(folder: RunFolder, left_out: list[str]) -> list[dict[str, float]]:
    """The numbers of each epoch, in order of their epochs; `epoch` counts from 1."""
    path = folder.metrics
    if not path.exists():
        return []
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise RkdError("it is no file, or one too large")
        lines = folder.lines()
    except (RkdError, OSError, ValueError, RecursionError) as error:
        left_out.append(f"{path.name}: {_reason(error)}")
        return []
    epochs: dict[int, dict[str, float]] = {}
    dropped = 0
    for line in lines[:MOST_EPOCHS]:
        epoch = whole(line.get("epoch")) if isinstance(line, Mapping) else None
        if epoch is None:
            # Lines of events other than epochs have none.
            dropped += not isinstance(line, Mapping) or "epoch" in line
            continue
        given = {key: value for key, value in list(table(line).items())[: 4 * MOST] if value is not None}
        values = {key: found for key, value in given.items() if (found := number(value)) is not None}
        dropped += len(values) < len(given)
        epochs[epoch] = values | {"epoch": epoch + 1}
    if dropped:
        left_out.append(f"{path.name}: {dropped} line(s) with values that are no finite numbers")
    return [epochs[epoch] for epoch in sorted(epochs)]


def _reason(error: BaseException) -> str:
    """One line about an error; a path that it names is the reader's own."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return text(str(error), 300) or type(error).__name__


class _Reader:
    """Reads one net's evaluation, and notes what it leaves out."""

    def __init__(self, left_out: list[str], whose: str) -> None:
        self.left_out = left_out
        self.whose = whose

    def net(self, value: Any) -> Net | None:
        if not isinstance(value, Mapping):
            self._note("evaluation", "it is no table")
            return None
        source = table(value)
        net = Net(
            role=text(source.get("role")),
            model=text(source.get("model")),
            source=text(source.get("source"), 400),
            normalization=_normalization(table(source.get("normalization"))),
            samples=self._one(source, "samples", whole),
            clean=self._one(source, "clean", share),
            attacks=self._each(source, "attacks", share),
            w_robust=self._each(source, "w_robust", share),
            nrr=self._each(source, "nrr", share),
            worst_case=self._one(source, "worst_case", share),
            intervals=self._each(source, "interval_95", interval),
            seconds=self._each(source, "seconds", lambda v: number(v, 0)),
            checked=isinstance(source.get("warnings"), list),
            doubts=self._doubts(source),
            per_class=self._each(source, "per_class", _class_shares),
            calibration=self._each(source, "calibration", _calibration),
            searches=self._each(source, "searches", _search),
            curve=self._one(source, "curve", _curve),
            rounded=self._each(source, "rounded", share),
            corruptions=self._one(source, "corruptions", _corruptions),
            transfer=self._one(source, "transfer", _transfer),
            examples=self._examples(source),
        )
        if source.get("attacks") == {}:  # the worst of no attack is no measure of robustness
            net.worst_case = None
            for part in (net.intervals, net.per_class):
                part.pop("worst_case", None)
        # "clean" and "worst_case" have places of their own: as attacks' names they would stand for two things.
        for name in ("clean", "worst_case"):
            if net.attacks.pop(name, None) is not None:
                self._note("attacks", f"an attack is called {name!r}")
        return net

    def _note(self, what: str, why: str) -> None:
        self.left_out.append(f"{self.whose} {what}: {why}")

    def _one(self, source: Mapping[str, Any], key: str, parse: Callable[[Any], T | None]) -> T | None:
        """A value; None where there is none, or none that can be used."""
        if source.get(key) is None:
            return None
        found = parse(source[key])
        if found is None:
            self._note(key, "the value cannot be used")
        return found

    def _each(self, source: Mapping[str, Any], key: str, parse: Callable[[Any], T | None]) -> dict[str, T]:
        """A table of values, without those that are missing or cannot be used."""
        value = source.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._note(key, "it is no table")
            return {}
        found: dict[str, T] = {}
        for name, inner in list(table(value).items())[:MOST]:
            if inner is None:
                continue
            parsed = parse(inner)
            if parsed is None:
                self._note(f"{key} of {name}", "the value cannot be used")
            else:
                found[name] = parsed
        if len(value) > MOST:
            self._note(key, f"{MOST} of {len(value)} are shown")
        return found

    def _doubts(self, source: Mapping[str, Any]) -> list[Doubt]:
        found = []
        for value in items(source.get("warnings"))[:MOST]:
            if isinstance(value, Mapping):
                doubt = Doubt(*(text(value.get(key), 1000) for key in ("finding", "meaning", "advice", "check")))
            else:
                doubt = Doubt(text(value, 1000))
            if doubt.finding or doubt.meaning:
                found.append(doubt)
            else:
                self._note("warnings", "one of them says nothing")
        if source.get("warnings") is not None and not isinstance(source["warnings"], list):
            self._note("warnings", "they are no list")
        return found

    def _examples(self, source: Mapping[str, Any]) -> list[Example]:
        return [
            Example(
                whole(entry.get("index")), whole(entry.get("label")), text(entry.get("attack"), 40),
                _seen(entry.get("clean")), _seen(entry.get("adversarial")),
            )
            for entry in map(table, items(source.get("examples")))
        ]  # fmt: skip


def _normalization(value: Mapping[str, Any]) -> str:
    """`none (98.8 % of training images right; data: 99.4 %)`."""
    choice = text(value.get("choice"))
    shares = {text(name): found for name, of in table(value.get("shares")).items() if (found := share(of)) is not None}
    other = ", ".join(f"{name}: {percent(found)} %" for name, found in shares.items() if name != choice)
    if choice not in shares:
        return choice
    return f"{choice} ({percent(shares[choice])} % of training images right{'; ' if other else ''}{other})"


def _seen(value: Any) -> Seen:
    entry = table(value)
    return Seen(whole(entry.get("prediction")), share(entry.get("confidence")))


def _class_shares(value: Any) -> list[float | None] | None:
    return [share(inner) for inner in value[:MOST_CLASSES]] if isinstance(value, list) and value else None


def _calibration(value: Any) -> Calibration | None:
    entry = table(value)
    bins = []
    for item in items(entry.get("bins"))[:1000]:
        if isinstance(item, list) and len(item) == 3:
            count, confidence, accuracy = whole(item[0]), share(item[1]), share(item[2])
            if count and confidence is not None and accuracy is not None:
                bins.append((count, confidence, accuracy))
    found = Calibration(share(entry.get("ece")), share(entry.get("confidence")), bins)
    return found if bins or found.ece is not None else None


def _search(value: Any) -> Search | None:
    entry = table(value)
    if not entry:
        return None
    given = list(table(entry.get("options")).items())[:MOST]
    counts = ("forwards", "backwards", "attacked", "fooled", "other_forwards", "other_backwards")
    return Search(
        implementation=text(entry.get("implementation")),
        options={name: setting(name, inner) for name, inner in given if inner is not None},
        objective=text(entry.get("objective")),
        norm=text(entry.get("norm"), 20),
        eps=number(entry.get("eps"), 0, 1e6),
        seconds=number(entry.get("seconds"), 0),
        notes=[note for note in (text(inner, 500) for inner in items(entry.get("notes"))[:20]) if note],
        counts=entry.get("in_threat") is not False,
        black_box=entry.get("black_box") is True,
        **{name: whole(entry.get(name)) for name in counts},
    )


def _curve(value: Any) -> Curve | None:
    entry = table(value)
    radii, accuracies, intervals = (items(entry.get(key)) for key in ("eps", "accuracy", "interval_95"))
    if len(radii) != len(accuracies):
        return None
    points = []
    for place, (radius, accuracy) in enumerate(zip(radii[:1000], accuracies, strict=False)):
        eps, right = number(radius, 0, 1e6), share(accuracy)
        if eps is not None and right is not None:
            points.append((eps, right, interval(intervals[place]) if place < len(intervals) else None))
    points.sort(key=lambda point: point[0])
    if len(points) < 2:
        return None
    attack, norm = text(entry.get("attack"), 40), text(entry.get("norm"), 20)
    return Curve(attack, norm, *(list(column) for column in zip(*points, strict=True)))


def _corruptions(value: Any) -> Corruptions | None:
    entry = table(value)
    rows = {
        name: [share(inner) for inner in levels[:10]]
        for name, levels in list(table(entry.get("accuracy")).items())[:MOST]
        if isinstance(levels, list) and levels
    }
    return Corruptions(text(entry.get("source")), rows, share(entry.get("mean"))) if rows else None


def _transfer(value: Any) -> Transfer | None:
    entry = table(value)
    rows, clean = table(entry.get("accuracy")), table(entry.get("clean"))
    nets = list(rows)[:MOST_NETS]
    if not nets or not all(isinstance(rows[name], Mapping) for name in nets):
        return None
    found = [table(rows[name]) for name in nets]
    return Transfer(
        text(entry.get("attack"), 40),
        whole(entry.get("samples")),
        nets,
        [share(clean.get(name)) for name in nets],
        [[share(row.get(name)) for name in nets] for row in found],
    )
