"""Images on their way to a training: on the device already, or read ahead while the step before runs.

Whichever way they come, the same batches come: an image follows from its position alone.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.errors import RkdError
from .dataset import Split, as_images, in_memory, pixels

AHEAD = 2
"""Batches that are read while a step runs, of each worker."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SHARE = 0.25
"""Images are kept on a GPU if they take at most this share of its free memory: the training needs the rest."""


class Prefetcher:
    """The images of a split, batch by batch, for a training on `device`.

    Images in memory go to a GPU once, as they are kept (8-bit ones as bytes), if they fit there. All others are read
    ahead: by a thread, or by `workers` processes (for files whose decoding holds Python's lock), into pinned memory for
    a GPU. Images in the memory of a CPU that trains need none of that.
    """

    def __init__(self, split: Split, device: torch.device, workers: int = 0) -> None:
        self.split = split
        self.device = device
        self.workers = workers
        self._pin = device.type == "cuda"
        self.direct = in_memory(split)
        """Whether a batch is there when it is asked for, without reading ahead."""
        self._kept: Tensor | None = None
        if self.direct and device.type != "cpu":
            self._kept = _kept(split, device)
            self.direct = self._kept is not None

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images at each of `indices`, `(B, C, H, W)` float32 in [0, 1] on the device, in order."""
        if self.direct:
            for index in indices:
                yield self.images(index)
        else:
            stored = self._by_workers(indices) if self.workers else self._by_a_thread(indices)
            for raw in stored:
                yield as_images(raw.to(self.device, non_blocking=True))

    def images(self, index: Tensor) -> Tensor:
        """The images at `index (B,)`, at once."""
        if self._kept is not None:
            return as_images(self._kept[send(index, self.device)])
        return as_images(send(pixels(self.split, index), self.device))

    def _by_a_thread(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1, "rkd-prefetch") as pool:
            pending: deque[Future[Tensor]] = deque()
            try:
                for index in indices:
                    pending.append(pool.submit(self._read, index))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _by_workers(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        ending = multiprocessing.Event()
        # A generator of its own: DataLoader would draw its workers' seeds from the global one.
        loader = DataLoader(
            _Pixels(self.split),
            sampler=indices,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            pin_memory=self._pin,
            worker_init_fn=partial(_outlive_signals, ending),
            generator=torch.Generator(),
        )
        try:
            with _signals_held():
                batches = iter(loader)  # starts the workers
            yield from batches
        # Without a connection: it died between announcing an image and handing it over.
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and "worker" not in str(error).lower():
                raise
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise RkdError(
                f"a process that reads images died (killed, or out of memory?): {first}; "
                "continue with fewer of them (rkd run --resume RUN --accept-changes --set data.workers=1) or none (0)"
            ) from None
        finally:
            ending.set()

    def _read(self, index: Tensor) -> Tensor:
        raw = pixels(self.split, index)
        return raw.pin_memory() if self._pin else raw


@contextmanager
def _signals_held() -> Iterator[None]:
    """Inside, signals wait; also for processes that are started here, until they `_outlive_signals`."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(ending: Event, number: int) -> None:
    """Ctrl-C and SIGTERM reach a whole group of processes, some of them twice: the training is to end its step, and
    needs its images for that. It ends its workers itself, and by SIGTERM one that is stuck."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class _Pixels(Dataset[Tensor]):
    """A split for DataLoader, a batch at a time. What a file's reader raises comes back as it is."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> Tensor:
        return pixels(self.split, index)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; the host does not wait for a GPU to get it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class HostCopy:
    """A copy of a device's tensor in the host's memory, under way: the host does not wait for it until `get`."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._done = tensor.to("cpu", non_blocking=True), None  # into pinned memory
        if tensor.device.type != "cpu":
            self._done = torch.Event(tensor.device)
            self._done.record()

    @property
    def arrived(self) -> bool:
        """Whether `get` would not wait."""
        return self._done is None or self._done.query()

    def get(self) -> Tensor:
        """The copy."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def _kept(split: Split, device: torch.device) -> Tensor | None:
    """All images on the device; None if they would take too much of its memory."""
    one = pixels(split, torch.zeros(1, dtype=torch.int64))
    if one.nbytes * len(split) > SHARE * free_bytes(device):
        return None
    return pixels(split, torch.arange(len(split))).to(device)


def free_memory() -> int:
    """Bytes of memory that are free, of the machine and of the control group that a container or a batch system has put
    this process into; 4 GiB where the system tells of neither."""
    found = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")))
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with suppress(OSError, ValueError):  # "max": no limit
            group = Path("/sys/fs/cgroup") / ("memory" if "_in_" in limit else "")
            found.append(int((group / limit).read_text()) - int((group / used).read_text()))
    return max(0, min(found)) if found else 4 << 30


def free_bytes(device: torch.device) -> float:
    """Free memory of a device; without bound where it does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
