"""Where the time of a training step goes, and how near it comes to what the machine can do."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.interfaces import Attack, Teacher
from ..core.run import Run
from ..core.trainer import advance
from ..core.traits import traits_of
from ..core.types import Batch
from ..nets.net import PLAIN, NetTeacher
from ..nets.student import NetStudent

PARTS = ("data", "teachers", "attacks", "student", "optimiser")
COUNTED = 4
"""Images that operations are counted on; their number is proportional to the images."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Seconds of a training step on `images` images: medians over `rounds` steps.

    `step` is a whole one as a run takes it, with getting its batch. `parts` are of other steps, with a stop at each
    border: getting the batch, teachers, searches without what they ask of teachers, the optimiser, and as `student` all
    else: its forwards and backwards, the loss, the loop around them. `flops`: operations of the convolutions and matrix
    products of each part, a multiplication and an addition counted as two. `peak_bytes`: see `peak_bytes`.
    """

    images: int
    step: float
    parts: Mapping[str, float]
    flops: Mapping[str, int]
    peak_bytes: int
    rounds: int

    @property
    def rate(self) -> float:
        """Operations a second, over the whole step."""
        return sum(self.flops.values()) / self.step


def bench(run: Run, seconds: float = 10.0, least: int = 3) -> Bench:
    """Time steps of `run`, whole ones and watched ones in turn, for about `seconds` and at least `least` of each.

    The run is used up: its weights move. Raises TrainingFailed if they diverge.
    """
    run.hooks.hook.rkd_run_start(run=run)
    watch = Watch()
    watched = _watched(run, watch)
    index = torch.arange(run.loader.batch_size)

    stream = _stream(run)

    def step(run: Run) -> None:
        with watch.part("student"):
            with watch.part("data"):
                batch = next(stream)
            advance(run, batch)
            run.state.batch = 0

    def small_step() -> None:
        with watch.part("student"):
            advance(watched, run.loader.batch(some, 0))
            watched.state.batch = 0

    some = index[:COUNTED]
    # On a whole batch first: buffers are made, and the engine copies nets.
    step(run)
    with _as_they_are(run), Operations() as counter:
        flops = watch.read(lambda: counter.count, small_step)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)

    def clock() -> float:
        wait(run.device)
        return time.perf_counter()

    whole: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    started = time.perf_counter()
    while len(whole) < least or time.perf_counter() - started < seconds:
        begun = clock()
        step(run)
        whole.append(clock() - begun)
        for part, taken in watch.read(clock, lambda: step(watched)).items():
            parts[part].append(taken)
    return Bench(
        len(index), statistics.median(whole), {part: statistics.median(taken) for part, taken in parts.items()},
        {part: round(count * len(index) / len(some)) for part, count in flops.items()}, peak_bytes(run.device),
        len(whole),
    )  # fmt: skip


@contextmanager
def _as_they_are(run: Run) -> Iterator[None]:
    """Inside, nets run without the engine: its copies compute in other ways, of which torch knows no formulas."""
    nets = [net for net in (run.student, *run.teachers.values()) if isinstance(net, (NetStudent, NetTeacher))]
    before = [net.accelerator for net in nets]
    for net in nets:
        net.accelerator = PLAIN
    try:
        yield
    finally:
        for net, accelerator in zip(nets, before, strict=True):
            net.accelerator = accelerator


class Operations(TorchDispatchMode):
    """Counts operations by torch's own formulas. (`FlopCounterMode` itself cannot stand `autograd.grad`.)"""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # brings Triton, 70 MiB that training never needs

        super().__init__()
        self.count = 0
        self._formulas = flop_registry

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operator(*arguments, **(options or {}))
        formula = self._formulas.get(operator.overloadpacket)
        if formula is not None:
            self.count += formula(*arguments, **(options or {}), out_val=result)
        return result


class Watch:
    """Divides what a reading (a clock, a counter) grows by among nested parts: each gets what none inside it gets."""

    def __init__(self) -> None:
        self._reading: Callable[[], float] | None = None
        self._open: list[str] = []
        self._shares: dict[str, float] = {}
        self._last = 0.0

    def read(self, reading: Callable[[], float], work: Callable[[], None]) -> dict[str, float]:
        """Do `work` and return each part's share of what `reading` grew by meanwhile."""
        self._shares = dict.fromkeys(PARTS, 0)
        self._reading = reading
        try:
            work()
        finally:
            self._reading = None
        return self._shares

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, what the reading grows by belongs to `name`."""
        self._border()
        self._open.append(name)
        try:
            yield
        finally:
            self._border()
            self._open.pop()

    def _border(self) -> None:
        if self._reading is not None:
            now = self._reading()
            if self._open:
                self._shares[self._open[-1]] += now - self._last
            self._last = now


@dataclass
class _WatchedTeacher:
    teacher: Teacher
    watch: Watch

    def __post_init__(self) -> None:
        self.role = self.teacher.role

    def logits(self, x: Tensor) -> Tensor:
        with self.watch.part("teachers"):
            return self.teacher.logits(x)


class _WatchedAttack:
    def __init__(self, attack: Attack, watch: Watch) -> None:
        self._attack, self._watch = attack, watch
        self.traits = traits_of(attack)
        self.mode = self.traits.mode

    def __call__(self, x: Tensor, target: Any) -> Tensor:
        with self._watch.part("attacks"):
            return self._attack(x, target)


def _stream(run: Run) -> Iterator[Batch]:
    """Whole batches as a training gets them, without end: reading them ahead is part of what is measured."""
    epoch = 0
    while True:
        for number, batch in enumerate(run.loader.batches(epoch)):
            if run.loader.size(number) == run.loader.batch_size:
                yield batch
        epoch += 1


def _watched(run: Run, watch: Watch) -> Run:
    """The same run, with its teachers, searches and optimiser watched."""
    other = replace(
        run,
        teachers={role: _WatchedTeacher(teacher, watch) for role, teacher in run.teachers.items()},
        attacks={view: replace(plan, attack=_WatchedAttack(plan.attack, watch)) for view, plan in run.attacks.items()},
    )
    inside: list[Any] = []

    def before(*ignored: Any) -> None:
        inside.append(watch.part("optimiser"))
        inside[-1].__enter__()

    def after(*ignored: Any) -> None:
        inside.pop().__exit__(None, None, None)

    run.optimizer.register_step_pre_hook(before)
    run.optimizer.register_step_post_hook(after)
    return other


def peaks(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> dict[str, float]:
    """What the machine reaches itself, in operations a second: a large matrix product, and a 3x3 convolution of 64 to
    64 planes on 32x32 images, in the layout that suits it."""
    large = device.type == "cuda"
    side, images = (8192, 256) if large else (1024, 16)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    layout: Any = torch.channels_last
    x = torch.randn(images, 64, 32, 32, device=device, dtype=dtype).to(memory_format=layout)
    w = torch.randn(64, 64, 3, 3, device=device, dtype=dtype).to(memory_format=layout)
    with torch.no_grad():
        return {
            "matrix product": 2 * side**3 / _fastest(lambda: a @ b, device, seconds),
            "convolution": 2 * images * 32 * 32 * 64 * 64 * 9
            / _fastest(lambda: F.conv2d(x, w, padding=1), device, seconds),
        }  # fmt: skip


def _fastest(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - begun)
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU, what tensors took of it; of the CPU, what the process had of it, libraries
    included (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
