"""A run's folder: the one place that knows its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .checkpoint import load_state, load_weights, save_state, save_weights, write_atomic
from .errors import RkdError


class RunFolder:
    """Paths of one run. Nothing in it needs pickle.

    `config.toml` the resolved configuration; `manifest.json` versions, hardware, time; `metrics.jsonl` one line an
    epoch; `student.safetensors` and `student.json` the result; `evaluation.json`, with the images of its gallery in
    `examples.safetensors`; `checkpoints/`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Make the folder. Raises RkdError if it exists or cannot be made."""
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True)
            folder.checkpoints.mkdir()
        except FileExistsError:
            raise RkdError(
                f"{folder.path} exists already; choose another --name, or continue it with --resume {folder.path}"
            ) from None
        except OSError as error:
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
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def examples(self) -> Path:
        return self.path / "examples.safetensors"

    @property
    def weights(self) -> Path:
        return self.path / "student.safetensors"

    @property
    def card(self) -> Path:
        return self.path / "student.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.safetensors"

    def write_json(self, path: Path, content: Any) -> None:
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise RkdError(
                f"{self.path} has no {path.name}: that run did not finish; "
                f"continue it with `rkd run --resume {self.path}`"
            ) from None
        except (OSError, ValueError) as error:
            raise RkdError(f"cannot read {path}: {error}") from None

    def write_config(self, text: str) -> None:
        write_atomic(self.config, text.encode())

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RkdError(f"cannot write {self.metrics}: {error.strerror or error}") from None

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line torn by a crash is left out."""
        lines = []
        if self.metrics.is_file():
            for line in self.metrics.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
        return lines

    def trim(self, epochs: int) -> None:
        """Drop the lines of epochs from `epochs` on: a resumed run writes them again."""
        kept = [line for line in self.history() if line.get("epoch", 0) < epochs]
        write_atomic(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    save_state = staticmethod(save_state)
    load_state = staticmethod(load_state)
    save_weights = staticmethod(save_weights)
    load_weights = staticmethod(load_weights)


def safe_name(name: str) -> str:
    """Raise RkdError unless `name` can be a folder of its own: no separators, no `..`, nothing hidden."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", name):
        raise RkdError(f"{name!r} cannot be a run's name; use letters, digits and . _ + = - (no slashes)")
    return name
