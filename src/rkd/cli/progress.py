"""What a run shows while it goes: an extension that watches the training, and the reporter that draws it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rkd import hookimpl
from rkd.storage.text import attack_name

from .signals import Interrupts
from .terminal import Terminal, duration, memory, percent, safe

if TYPE_CHECKING:
    from rkd.workflow.plan import Run, StepCost

READ_EVERY = 0.5
"""Seconds between two looks at the losses: each look waits for the device."""
LINE_EVERY = 5.0
"""Seconds between two lines where nothing can be drawn over."""
LINE_WITHIN_EPOCH = 60.0
"""The same within one epoch."""


class Training:
    """Run-time hooks that follow one training."""

    def __init__(self, title: str, terminal: Terminal, interrupts: Interrupts | None = None) -> None:
        self.title = safe(title)
        self.terminal = terminal
        self.interrupts = interrupts or Interrupts()
        self.epoch = self.epochs = self.batch = self.batches = self.first = 0
        self.values: dict[str, float] = {}
        self.checked: dict[str, float] = {}
        self.started = self.read = self.told = time.monotonic()

    @hookimpl
    def rkd_run_start(self, run: Run) -> None:
        self.interrupts.gentle = True
        self.epoch, self.batch = run.state.epoch, run.state.batch
        self.epochs, self.batches = run.epochs, len(run.loader)
        self.first = self.epoch * self.batches + self.batch
        self.started = self.told = time.monotonic()
        if self.terminal.animated:
            self.terminal.live(self.draw)
        else:
            self.terminal.doing(f"{self.title}: training")

    @hookimpl
    def rkd_stop(self, run: Run) -> bool | None:
        return self.interrupts.asked or None

    @hookimpl
    def rkd_notice(self, run: Run, text: str) -> None:
        self.terminal.warning(text)

    @hookimpl
    def rkd_after_update(self, run: Run) -> None:
        self.epoch, self.batch = run.state.epoch, run.state.batch + 1
        now = time.monotonic()
        if now - self.read >= READ_EVERY:
            self.read = now
            self.values = _values(run)
        if not self.terminal.animated and now - self.told >= LINE_WITHIN_EPOCH:
            where = f"epoch {self.epoch + 1}/{self.epochs}, step {self.batch}/{self.batches}"
            self._tell(f"{where}, {_losses(self.values)}")

    @hookimpl
    def rkd_epoch_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self.epoch, self.batch = run.state.epoch, 0
        self.values = {k: v for k, v in metrics.items() if k.startswith("loss") or k in run.state.knobs}
        if "val.clean" in metrics:
            self.checked = {name: metrics[f"val.{name}"] for name in ("clean", "robust") if f"val.{name}" in metrics}
            self.checked["epoch"] = run.state.epoch
        line = f"epoch {run.state.epoch}/{run.epochs}, {_losses(self.values)}{_weights(self.values)}"
        line += f", {self._validation()}" if "val.clean" in metrics else ""
        late = not self.terminal.animated and time.monotonic() - self.told >= LINE_EVERY
        if late or self.terminal.verbosity > 0 or run.state.epoch == run.epochs:
            self._tell(line)

    def draw(self) -> Table:
        """Three lines: where it is, what it does, how good it is."""
        done, total = self.epoch * self.batches + self.batch, self.epochs * self.batches
        lines = Table.grid(expand=True)
        head = Table.grid(expand=True, padding=(0, 1, 0, 0))
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
        head.add_column(ratio=1, min_width=5)
        for _ in range(2):
            head.add_column(no_wrap=True, justify="right")
        epoch = min(self.epoch + 1, self.epochs)
        where = Text.assemble((self.title, "bold"), f"  epoch {epoch}/{self.epochs}")
        busy = f"step {self.batch}/{self.batches}" if self.batch < self.batches else "validating"
        where.append(f"  {busy}" if self.epoch < self.epochs else "  done")
        head.add_row(where, ProgressBar(total=total, completed=done), Text(f"{100 * done // max(total, 1)} %"),
                     Text(self._left()))  # fmt: skip
        lines.add_row(head)
        for text in (_losses(self.values) + _weights(self.values), self._validation()):
            lines.add_row(Text(f"  {safe(text)}", "dim", no_wrap=True, overflow="ellipsis"))
        return lines

    def _tell(self, line: str) -> None:
        self.told = time.monotonic()
        left = self._left()
        self.terminal.message(f"{self.title}: {line}" + (f", {left}" if left else ""))

    def _left(self) -> str:
        done = self.epoch * self.batches + self.batch - self.first
        rest = self.epochs * self.batches - self.first - done
        if done <= 0 or rest <= 0:
            return ""
        return f"{duration((time.monotonic() - self.started) / done * rest)} left"

    def _validation(self) -> str:
        if not self.checked:
            return ""
        robust = f", robust {percent(self.checked['robust'])} %" if "robust" in self.checked else ""
        return f"validation after epoch {int(self.checked['epoch'])}: clean {percent(self.checked['clean'])} %{robust}"


class Display:
    """The reporter of the command line (`rkd.workflow.plan.Reporter`)."""

    def __init__(self, terminal: Terminal, interrupts: Interrupts | None = None) -> None:
        self.terminal = terminal
        self.interrupts = interrupts or Interrupts()
        self.told = 0.0

    def message(self, text: str) -> None:
        self.terminal.message(text)

    def warning(self, text: str) -> None:
        self.terminal.warning(text)

    def detail(self, text: str) -> None:
        self.terminal.detail(text)

    def doing(self, text: str) -> None:
        self.terminal.doing(text)

    def cost(self, title: str, run: Run, card: StepCost, seconds: float) -> None:
        for line in cost_lines(title, run, card, seconds):
            self.terminal.message(line, wrap=True)

    def training(self, title: str) -> Mapping[str, Any]:
        return {"rkd progress display": Training(title, self.terminal, self.interrupts)}

    def evaluating(self, title: str) -> Callable[[str, int, int], None]:
        title = safe(title)
        self.interrupts.gentle = False  # each batch is kept when it is done, and the next may take minutes
        self.interrupts.check()
        state: dict[str, Any] = {"name": "clean", "done": 0, "total": 1, "first": 0, "since": time.monotonic()}
        self.told = time.monotonic()

        def left() -> str:
            """Of the attack that is running: how long each takes is not known before."""
            done, rest = state["done"] - state["first"], state["total"] - state["done"]
            if done <= 0 or rest <= 0:
                return ""
            return f", {duration((time.monotonic() - state['since']) / done * rest)} left"

        def draw() -> Table:
            line = Table.grid(expand=True, padding=(0, 1, 0, 0))
            line.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
            line.add_column(ratio=1, min_width=5)
            line.add_column(no_wrap=True, justify="right")
            text = Text.assemble("evaluating ", (title, "bold"), f"  {_column(state['name'])}")
            line.add_row(text, ProgressBar(total=state["total"], completed=state["done"]),
                         Text(f"{state['done']}/{state['total']}{left()}"))  # fmt: skip
            return line

        def progress(name: str, done: int, total: int) -> None:
            self.interrupts.check()
            if name != state["name"] or done < state["done"]:
                state.update(first=done, since=time.monotonic())
            state.update(name=name, done=done, total=total)
            if not self.terminal.animated and time.monotonic() - self.told >= LINE_EVERY:
                self.told = time.monotonic()
                self.terminal.message(f"evaluating {title}: {_column(name)} {done}/{total}{left()}")

        if self.terminal.animated:
            self.terminal.live(draw)
        else:
            self.terminal.doing(f"evaluating {title}")
        return progress


def cost_lines(title: str, run: Run, card: StepCost, seconds: float) -> list[str]:
    """What a training will cost, for people."""
    size = sum(parameter.numel() for parameter in run.student.net.parameters())
    counts = ", ".join(f"{name} {count.forwards}/{count.backwards}" for name, count in card.counts.items())
    counts = counts.replace("teacher ", "")
    images = f"{len(run.loader)} steps of {run.loader.batch_size} images"
    return [
        f"{title}: {size:,} parameters, {run.epochs} {'epoch' if run.epochs == 1 else 'epochs'} of {images}",
        f"  forwards/backwards a step: {counts}",
        f"  about {duration(seconds)} on {run.device}" + (f", {memory(card.memory)}" if card.memory else ""),
    ]


def _values(run: Run) -> dict[str, float]:
    """Losses and adaptive weights now, read from the device in one go."""
    import torch

    tensors = {"loss": run.loss_value, **{f"loss.{name}": term.mean() for name, term in run.terms.items()}}
    values: dict[str, float] = {}
    for name, value in run.state.knobs.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            tensors[name] = value
        elif isinstance(value, (int, float)):
            values[name] = float(value)
    stacked = torch.stack([tensor.detach().reshape(()).float().to(run.device) for tensor in tensors.values()])
    return dict(zip(tensors, stacked.tolist(), strict=True)) | values


def _losses(values: Mapping[str, float]) -> str:
    if "loss" not in values:
        return ""
    terms = ", ".join(f"{k.removeprefix('loss.')} {v:.3f}" for k, v in values.items() if k.startswith("loss."))
    return f"loss {values['loss']:.3f}" + (f" ({terms})" if "," in terms else "")


def _weights(values: Mapping[str, float]) -> str:
    weights = ", ".join(f"{k.removeprefix('weight.')} {v:.3f}" for k, v in values.items() if k.startswith("weight."))
    return f"; weights {weights}" if "," in weights else ""


def _column(name: str) -> str:
    return name if name == "clean" else safe(attack_name(name))
