"""A matrix of runs: its points, the state of each, and the words of `rkd run` that carry it out."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from rkd.core.errors import ConfigError, RkdError
from rkd.storage.files import check_no_link, whole_folder, write_atomic
from rkd.storage.runfolder import RunFolder, safe_name
from rkd.storage.text import flattened, parse_toml, read_text, shown

OPTIONS = (
    "loss", "baseline", "student", "teacher", "dataset", "attack", "objective", "scheduler", "augment", "with",
    "epochs", "batch-size", "lr", "seed", "evaluate", "device", "precision", "limit-train",
)  # fmt: skip
"""Axes that are options of `rkd run`; `recipe` is its argument, and any other axis a setting (`--set`)."""

MOST_RUNS = 10_000
"""Runs of a sweep, and values of an axis."""

State = Literal["finished", "begun", "new"]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its name, and what it sets."""

    name: str
    values: Mapping[str, str]


@dataclass
class Sweep:
    """`axes`: the values of each; the runs are their product. `settings` and `recipe` are common to all."""

    axes: dict[str, list[str]]
    recipe: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def points(self) -> list[Point]:
        """All runs, the last axis fastest. Raises ConfigError."""
        if not self.axes:
            raise ConfigError(["a sweep needs an axis, such as --grid seed=0..4"])
        if (count := math.prod(map(len, self.axes.values()))) > MOST_RUNS:
            raise ConfigError([f"the sweep has {count:,} runs; at most {MOST_RUNS:,} are carried out"])
        points = []
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            points.append(Point("_".join(f"{_short(axis)}={_slug(value)}" for axis, value in point.items()), point))
        names = Counter(safe_name(point.name) for point in points)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError([f"two runs of the sweep would be called {twice[0]}: an axis has a value twice"])
        return points

    def words(self, point: Point, folder: Path, more: Sequence[str] = ()) -> list[str]:
        """The words after `rkd` that carry out a point whose run goes into `folder`; `more`: further options.

        Whoever wrote the sweep's file decides no option: each value is joined to its own by `=`, and the recipe stands
        after `--`. Raises ConfigError for a recipe that looks like an option all the same, RkdError where the run's
        folder is a link: what it leads to is not the sweep's.
        """
        path = folder / point.name
        check_no_link(path)
        if state_of(path) == "begun":
            return ["run", f"--resume={path}", *more]
        values = {**self.settings, **point.values}
        recipe = values.pop("recipe", self.recipe)
        options = [f"--{key}={value}" if key in OPTIONS else f"--set={key}={value}" for key, value in values.items()]
        if recipe and recipe.startswith("-"):
            raise ConfigError([f"recipe: {shown(recipe)} is an option, and no recipe's name or file"])
        place = [f"--name={point.name}", f"--out={folder}"]
        return ["run", *options, *place, *more, *(["--", recipe] if recipe else [])]

    def text(self) -> str:
        """The sweep as TOML, as `read_sweep` reads it."""
        recipe = {"recipe": self.recipe} if self.recipe else {}
        return tomli_w.dumps({**recipe, "set": self.settings, "grid": self.axes})

    def default_name(self) -> str:
        """A name that the same sweep gets again."""
        digest = hashlib.sha256(self.text().encode()).hexdigest()[:6]
        return _slug(f"sweep-{'-'.join(_short(axis) for axis in self.axes)}-{digest}")


def state_of(path: Path) -> State:
    """Where a run stands."""
    folder = RunFolder(path)
    if folder.finished and not folder.lacks_report:
        return "finished"
    return "begun" if folder.config.is_file() else "new"


def read_sweep(path: Path) -> Sweep:
    """A sweep from TOML: `recipe`, a table `set`, a table `grid` of lists or texts (`"0..4"`). Raises ConfigError."""
    try:
        table = parse_toml(read_text(path))
    except FileNotFoundError:
        raise RkdError(f"there is no file {path}") from None
    except ValueError as error:
        raise ConfigError([f"{path} cannot be read as TOML: {error}"]) from None
    problems = [f"{path}: there is no setting {key!r}; there is recipe, set, grid"
                for key in table if key not in ("recipe", "set", "grid")]  # fmt: skip
    for name in ("set", "grid"):
        if not isinstance(table.get(name, {}), Mapping):
            problems.append(f"{path}: {name} must be a table")
    if problems:
        raise ConfigError(problems)
    axes = {key: _values(key, value) for key, value in flattened(table.get("grid", {}))}
    recipe = table.get("recipe")
    return Sweep(
        axes, None if recipe is None else str(recipe), {k: _text(v) for k, v in flattened(table.get("set", {}))}
    )


def is_sweep_file(path: Path) -> bool:
    """Whether a path is a TOML file with a grid, and so no recipe."""
    if path.suffix != ".toml" or not path.is_file():
        return False
    try:
        return "grid" in parse_toml(read_text(path))
    except (RkdError, ValueError):
        return False  # told when it is read as a recipe


def axes_of(texts: Iterable[str], option: str = "--grid") -> dict[str, list[str]]:
    """`["loss=ard,rslad seed=0..4"]` by axis. `option`: where they come from, for messages. Raises ConfigError."""
    axes: dict[str, list[str]] = {}
    problems = []
    for text in _split(" ".join(texts), " "):
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            problems.append(f"{option} {text}: expected KEY=VALUE,VALUE,... such as loss=ard,rslad or seed=0..4")
        elif key in axes:
            problems.append(f"{option} {text}: {key!r} is there already")
        else:
            axes[key] = _values(key, values)
    if problems:
        raise ConfigError(problems)
    return axes


def begin(sweep: Sweep, folder: Path) -> None:
    """Make the sweep's folder, or find the same sweep in it. Raises RkdError."""
    file = folder / "sweep.toml"
    text = sweep.text()
    if file.is_file():
        if read_text(file) != text:
            raise RkdError(f"{folder} holds another sweep (see {file}); choose another --name")
        return
    try:
        with whole_folder(folder) as work:
            write_atomic(work / file.name, text.encode())
    except FileExistsError:
        raise RkdError(f"{folder} is there and is no sweep; choose another --name") from None
    except OSError as error:
        raise RkdError(f"cannot make the folder {folder}: {error.strerror}") from None


def _values(key: str, given: Any) -> list[str]:
    values: list[str] = []
    if given == []:
        raise ConfigError([f"{key}: an axis without values, so there is no run"])
    for part in given if isinstance(given, list) else _split(_text(given), ","):
        if isinstance(given, list):
            values.append(_text(part))
        elif match := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part):
            first, last = int(match[1]), int(match[2])
            if last < first or last - first >= MOST_RUNS:
                raise ConfigError([f"{key}={part}: a range goes up, over at most {MOST_RUNS:,} values"])
            values += [str(number) for number in range(first, last + 1)]
        elif re.fullmatch(r"\d*\.\.\d*", part):
            raise ConfigError([f"{key}={part}: a range has two ends, such as 0..4"])
        else:
            values.append(part)
        if len(values) > MOST_RUNS:
            raise ConfigError([f"{key}: an axis has at most {MOST_RUNS:,} values"])
    return values


def _split(text: str, by: str) -> list[str]:
    """`text` cut at `by`, but not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += (c in "([{") - (c in ")]}")
        if c == by and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def _text(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(axis: str) -> str:
    return axis.split(".")[-1]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "x"
