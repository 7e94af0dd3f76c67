"""The contract of exporters: a student goes in, files that others run come out."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.errors import Refused
from ..nets.net import Net
from ..storage.card import Card


@dataclass(frozen=True)
class Exported:
    """A student to be written in some format.

    `net`: images `(B, C, H, W)` in [0, 1] to logits `(B, K)`, normalisation inside; in eval mode, frozen, on the CPU.
    `card`: its model with options, shape and classes of its data. `calibration (N, C, H, W)`: training images, for
    formats that round by what they see.
    """

    net: Net
    card: Card
    calibration: Tensor

    def program(self, batch: int | None = None) -> torch.export.ExportedProgram:
        """The net as torch.export's graph, for any number of images, or for `batch`. Raises Refused for a net that has
        none."""
        x = torch.zeros(batch or 2, *self.card.shape)
        shapes = {"x": {0: torch.export.Dim("batch")}} if batch is None else None
        return translated(
            lambda: torch.export.export(self.net, (x,), dynamic_shapes=shapes, strict=False),
            self.card.model, "torch.export",
        )  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """What an exporter wrote. `net`: the files as their runtime reads them back, images `(B, C, H, W)` in [0, 1] to
    logits `(B, K)`; `files`: their names in the folder, what is shipped; `runtime`: what ran them, with its version;
    `usage`: lines of Python that run them without rkd; `about`: further facts for the card, a sentence each."""

    net: nn.Module
    files: tuple[str, ...]
    runtime: str
    usage: str
    about: tuple[str, ...] = ()


@runtime_checkable
class Exporter(Protocol):
    """A format. Its options are dataclass fields; one that can round to eight bits has the field `int8: bool = False`.

    @dataclass
    class StateDict:
        '''Weights alone, by torch.save.'''
        def __call__(self, student, folder):
            torch.save(student.net.state_dict(), folder / "weights.pt")
            again = copy.deepcopy(student.net)
            again.load_state_dict(torch.load(folder / "weights.pt"))
            return Artefact(again, ("weights.pt",), f"torch {torch.__version__}", "torch.load('weights.pt')")
    """

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        """Write into `folder`, an existing one, and read back. Raises RkdError for a net that the format cannot hold,
        with the operator that is in the way."""


def translated(translate: Callable[[], Any], model: str, tool: str) -> Any:
    """What `translate()` returns. Raises Refused with the first lines of whatever `tool` lets out: the operator that it
    does not know is named there."""
    try:
        with quiet():
            return translate()
    except (MemoryError, Refused):
        raise
    except Exception as error:  # torch.export and the ONNX exporter have no common class of errors
        raise Refused(f"{model} cannot be exported: {tool} says {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The line of an exporter's error that says what is wrong: of the innermost cause, without its decoration."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" *") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("#", "=", "The above"))]
    return f"{type(error).__name__}: {telling[0][:400] if telling else 'nothing more'}"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warnings and log lines of an exporter: they are about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
