"""A run's folder: the one place that knows its files.

Reports read it without torch: what holds tensors imports it inside.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RkdError, WeightsError
from .files import append_line, remove_temporary, sync_folder, whole_folder, write_atomic
from .text import MOST_JSON, command, parse_json, read_text, shown

if TYPE_CHECKING:
    from torch import Tensor


MOST_HISTORY = 64 << 20
"""Bytes of metrics.jsonl that are read."""
MOST_LINE = 1 << 20
"""Characters of one of its lines that are read."""
LONGEST_NAME = 200
"""Characters of a run's name: file systems allow 255, and files beside it have longer names."""


class RunFolder:
    """Paths of one run. Nothing in it needs pickle.

    `config.toml` the resolved configuration; `manifest.json` versions, hardware, time; `metrics.jsonl` one line an
    epoch; `student.safetensors` and `student.json` the result; `trackers.json` which points trackers have been told;
    `evaluation.json`, with the images of its gallery in `examples.safetensors`;
    `checkpoints/` with `last.safetensors`, `previous-1.safetensors` (the one before it; more of them if more are kept)
    while the run goes on, and `best.safetensors`, the weights of the best epoch so far.

    What `rkd eval --save` writes is a folder without `config.toml`: `evaluation.json` and the images of its gallery;
    `evaluation.toml` the evaluation's settings; `net.json` which net it was; `manifest.json`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_settings = self.path / "evaluation.toml"
        self.net_card = self.path / "net.json"
        self.examples = self.path / "examples.safetensors"
        self.trackers = self.path / "trackers.json"
        self.weights = self.path / "student.safetensors"
        self.card = self.path / "student.json"
        self.page = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        # Held by the one process that works on the run; gone when it is finished.
        self.lock = self.path / ".lock"

    @classmethod
    def create(cls, path: Path | str, config: str | None = None) -> RunFolder:
        """Make the folder, with its configuration in it from the first moment on.

        Raises RkdError if it exists or cannot be made.
        """
        folder = cls(path)
        try:
            if folder.path.exists():
                raise FileExistsError
            with whole_folder(folder.path) as work:
                cls(work).checkpoints.mkdir()
                if config is not None:
                    cls(work).write_config(config)
        except OSError as error:
            if folder.path.exists():
                raise RkdError(
                    f"{folder.path} exists already; choose another --name, or continue it with "
                    f"`{command('run', '--resume', folder.path)}`"
                ) from None
            raise RkdError(
                f"cannot make the folder {folder.path}: {error.strerror}; choose another place with --out DIR"
            ) from None
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run. Raises RkdError if it is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise RkdError(f"{folder.path} is not a run: it has no {folder.config.name}")
        folder.check_links()
        return folder

    @classmethod
    def open_results(cls, path: Path | str) -> RunFolder:
        """An existing run, or the folder of a saved evaluation. Raises RkdError if it is neither."""
        folder = cls(path)
        if not folder.is_evaluation:
            return cls.open(path)
        folder.check_links()
        return folder

    @property
    def is_evaluation(self) -> bool:
        """Whether it is what `rkd eval --save` wrote, and no run."""
        return self.evaluation.is_file() and not self.config.exists()

    def check_links(self) -> None:
        """Raise RkdError for a link out of the folder: a stranger's run would have other files read, shown or written.

        The folder itself may be a link.
        """
        inside = self.path.resolve()
        for folder in (self.path, self.checkpoints, self.checkpoints / "evaluation"):
            if not folder.is_dir():
                continue
            for entry in folder.iterdir():
                replaced = entry.name == "report.html" or entry.name.endswith(".tmp")  # and never read
                if entry.is_symlink() and not replaced and not _within(entry, inside):
                    raise RkdError(
                        f"{entry} is a link to somewhere else: nothing is read or written through it; "
                        "put the file itself in its place"
                    )

    @property
    def finished(self) -> bool:
        """Whether the run has its results."""
        return self.card.is_file() and self.evaluation.is_file()

    @property
    def lacks_report(self) -> bool:
        """Whether a finished run was to have a page, and was killed before it was written."""
        if not self.finished or self.page.exists():
            return False
        with contextlib.suppress(RkdError, AttributeError):
            return bool(self.read_json(self.manifest).get("report"))
        return False

    def write_json(self, path: Path, content: Any) -> None:
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, path: Path) -> Any:
        try:
            return parse_json(read_text(path, MOST_JSON))
        except FileNotFoundError:
            raise RkdError(
                f"{self.path} has no {path.name}: that run did not finish; "
                f"continue it with `{command('run', '--resume', self.path)}`"
            ) from None
        except ValueError as error:
            raise RkdError(f"cannot read {path}: {error}") from None

    def write_config(self, text: str) -> None:
        self.write_text(self.config, text)

    def write_text(self, path: Path, text: str) -> None:
        write_atomic(path, text.encode())

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append_line(self.metrics, json.dumps(line))

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line torn by a crash is left out."""
        return [line for line in self.lines() if isinstance(line, dict)]

    def lines(self) -> list[Any]:
        """Whatever JSON values the lines of metrics.jsonl hold. Raises RkdError for a file that is too large."""
        found = []
        if self.metrics.is_file():
            for line in read_text(self.metrics, MOST_HISTORY, errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(parse_json(line) if len(line) <= MOST_LINE else None)
        return found

    def rewrite_history(self, history: list[dict[str, Any]]) -> None:
        """metrics.jsonl as it was when a checkpoint was taken: a resumed run writes the lines after it again."""
        write_atomic(self.metrics, "".join(json.dumps(line) + "\n" for line in history).encode())

    def readable(self) -> RunFolder:
        """The same folder for a process that writes nothing into it."""
        return _ReadOnly(self.path)

    # Checkpoints

    def saved(self) -> list[Path]:
        """The checkpoints that are there, the newest first."""
        older = {int(match[1]): path for path in self.checkpoints.glob("previous-*.safetensors")
                 if (match := re.fullmatch(r"previous-(\d+)\.safetensors", path.name))}  # fmt: skip
        newest = [self.last] if self.last.exists() else []
        return newest + [older[number] for number in sorted(older)]

    def save(self, state: Mapping[str, Any], keep: int = 2) -> None:
        """Write a checkpoint and keep the `keep` newest. Whatever happens meanwhile, a good one is there."""
        from .serialize import pack_state

        content = pack_state(state)
        fresh = self.checkpoints / "next.safetensors"
        write_atomic(fresh, content)  # whole and on the disk before anything else is touched
        try:
            older = self.saved()
            for path in older[max(keep - 1, 0) :]:
                path.unlink(missing_ok=True)
            for place, path in reversed(list(enumerate(older[: max(keep - 1, 0)], 1))):
                path.replace(self._previous(place))
            fresh.replace(self.last)
        except OSError as error:
            raise RkdError(f"cannot write {self.last}: {error.strerror or error}") from None
        sync_folder(self.checkpoints)

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that is whole (None if there never was one), and words on those that are not.

        Damaged ones are deleted, unless all are: then WeightsError is raised.
        """
        from .serialize import load_state

        damaged: dict[Path, str] = {}
        for path in self.saved():
            try:
                state = load_state(path)
            except WeightsError as error:
                damaged[path] = str(error)
                continue
            for broken in damaged:  # or the next checkpoint would make a good one make room for it
                broken.unlink(missing_ok=True)
            return state, list(damaged.values())
        if damaged:
            there = " ".join(str(path) for path in damaged)
            raise WeightsError(f"{'; '.join(damaged.values())}. To start from the beginning: rm {there}")
        return None, []

    def place(self) -> tuple[int, int, int] | None:
        """What the newest checkpoint comes after: finished epochs, steps of the next one, steps of an epoch."""
        state = self.peek()
        return (state["epoch"], state["done"], state["batches"]) if state else None

    def peek(self) -> dict[str, Any] | None:
        """Numbers and texts at the top of the newest checkpoint whose head can be read."""
        from .serialize import peek

        for path in self.saved():
            with contextlib.suppress(WeightsError):
                state = peek(path)
                if all(isinstance(state.get(key), int) for key in ("epoch", "done", "batches")):
                    return state
        return None

    def prune(self) -> None:
        """The run is finished: the checkpoints before the last one are needed no more."""
        for path in self.saved()[1:]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process was writing. Only for who holds the run alone."""
        for folder in (self.path, self.checkpoints):
            remove_temporary(folder)
        (self.checkpoints / "next.safetensors").unlink(missing_ok=True)

    def _previous(self, number: int) -> Path:
        return self.checkpoints / f"previous-{number}.safetensors"

    def save_weights(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """`rkd.storage.serialize.save_weights`."""
        from .serialize import save_weights

        save_weights(path, state)

    def load_weights(self, path: Path) -> dict[str, Tensor]:
        """`rkd.storage.serialize.load_weights`."""
        from .serialize import load_weights

        return load_weights(path)


class _ReadOnly(RunFolder):
    """The folder as all processes but the first see it."""

    def write_json(self, path: Path, content: Any) -> None: ...

    def log(self, line: dict[str, Any]) -> None: ...

    def rewrite_history(self, history: list[dict[str, Any]]) -> None: ...

    def save(self, state: Mapping[str, Any], keep: int = 2) -> None: ...

    def save_weights(self, path: Path, state: Mapping[str, Tensor]) -> None: ...

    def prune(self) -> None: ...

    def tidy(self) -> None: ...


def _within(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to itself
        return False


def safe_name(name: str) -> str:
    """Raise RkdError unless `name` can be a folder of its own: no separators, no `..`, nothing hidden."""
    if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_.+=-]{{0,{LONGEST_NAME - 1}}}", name):
        raise RkdError(
            f"{shown(name, 240)} cannot be a run's name; use letters, digits and . _ + = - (no slashes), at most "
            f"{LONGEST_NAME} of them"
        )
    return name
