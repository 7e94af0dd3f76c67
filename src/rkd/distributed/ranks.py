"""Several processes that train one net: who does which samples, and what they tell one another.

Started by torchrun, each process (a *rank*) does its part of every batch and holds the same weights. All it takes is
in `Ranks`; `ALONE` is one process, for which nothing is sent and nothing changes.

Gradients are summed by `torch.distributed.all_reduce` after the backward, not by DistributedDataParallel: a training
step here has several forwards of one net, some of them inside searches with frozen weights, some in parts, and a
loss whose mean is over the whole batch though parts may be of unequal size. DDP expects one forward before each
backward and divides by the number of processes (pytorch/pytorch#62474, #175024).
"""

import datetime
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..core.errors import RkdError
from ..core.run import Processes

T = TypeVar("T")

BUCKET = 25 << 20
"""Bytes that are sent at once, as DistributedDataParallel does by default."""

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others. One that dies is noticed by torchrun at once, not by this."""


@dataclass(frozen=True)
class Ranks(Processes):
    """This process among those that work together. Every method that sends must be called by all of them alike."""

    rank: int = 0
    size: int = 1
    local: int = 0
    launch: str | None = None
    """Names this start of all processes; torchrun's restarts of them keep it."""
    attempt: int = 0
    """How often torchrun has restarted them."""
    store: dist.Store | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sizes(self, samples: int) -> list[int]:
        """How many of a batch's samples each process does. Two or more each, in order, equal but for one; a batch
        too small for that is done by every process whole (`shared` is then false)."""
        if not self.shared(samples):
            return [samples] * self.size
        least, more = divmod(samples, self.size)
        return [least + (rank < more) for rank in range(self.size)]

    def shared(self, samples: int) -> bool:
        """Whether a batch of so many samples is divided among the processes. Batch norm needs two samples each."""
        return self.size == 1 or samples >= 2 * self.size

    def counted(self, samples: int) -> bool:
        return self.shared(samples) or self.first

    def rows(self, samples: int) -> slice:
        """Which of a batch's samples this process does."""
        if not self.shared(samples):
            return slice(0, samples)
        sizes = self.sizes(samples)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    # Tensors

    def gather(self, mine: Tensor, sizes: list[int]) -> Tensor:
        """Each process's `(sizes[rank], ...)` one after another: the same tensor for all."""
        if self.size == 1:
            return mine
        padded = mine.new_zeros((max(sizes), *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over the processes; `mine` stays as it is."""
        total = mine.clone()
        self.sum_([total])
        return total

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, many at once."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, whole in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(whole.view_as(tensor))

    def any(self, mine: bool) -> bool:
        """Whether any process says yes."""
        if self.size == 1:
            return mine
        any_yes = torch.tensor([int(mine)])
        dist.all_reduce(any_yes, dist.ReduceOp.MAX)
        return bool(any_yes)

    # Anything that can be pickled; between processes of one job, never in a file

    def objects(self, mine: T) -> list[T]:
        """What each process says, in order."""
        if self.size == 1:
            return [mine]
        objects: list[Any] = [None] * self.size
        dist.all_gather_object(objects, mine)
        return objects

    def from_first(self, value: T) -> T:
        """What the first process says."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def once(self, do: Callable[[], T]) -> T:
        """Let the first process do something and all have its result, or raise its RkdError."""
        if self.size == 1:
            return do()
        outcome: tuple[Any, RkdError | None] = (None, None)
        if self.first:
            try:
                outcome = (do(), None)
            except RkdError as error:
                outcome = (None, error)
        result, failed = self.from_first(outcome)
        if failed is not None:
            raise failed
        return result

    # Nets

    def share_step(self, nets: Iterable[nn.Module], share: float, loss: Tensor) -> Tensor:
        """After the backward of each process's part: sum the gradients of `nets`, average their running statistics by
        `share`, this process's part of the batch. Returns the sum of the losses."""
        if self.size == 1:
            return loss
        gradients = []
        nets = list(nets)
        for parameter in (parameter for net in nets for parameter in net.parameters()):
            if parameter.requires_grad:
                if parameter.grad is None:
                    # Sent as zeros, so that all send alike; it stays None where no process has one (see `same`).
                    gradients.append(torch.zeros_like(parameter))
                else:
                    gradients.append(parameter.grad)
        statistics = [buffer.mul_(share) for net in nets for buffer in _running(net)]
        loss = loss.reshape(1).clone()
        with torch.no_grad():
            self.sum_([*gradients, *statistics, loss])
        return loss.reshape(())

    def same(self, state: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors in which the processes differ: none, or something went wrong."""
        if self.size == 1:
            return []
        names = list(state)
        sums = torch.stack([state[name].detach().double().sum() for name in names]).cpu()
        others = self.objects(sums)
        equal = torch.stack([torch.isclose(o, others[0], rtol=0, atol=0, equal_nan=True) for o in others]).all(0)
        return [name for name, same in zip(names, equal.tolist(), strict=True) if not same]

    def lost(self, error: BaseException) -> bool:
        """Whether an error means that another process has died: gloo and NCCL say that a connection broke."""
        broken = re.search(r"(closed|reset) by peer|broken pipe|connection.*(closed|refused|timed out)|NCCL",
                           str(error), re.IGNORECASE)  # fmt: skip
        return self.size > 1 and isinstance(error, RuntimeError) and broken is not None

    def fails_first(self) -> bool:
        """Whether this process is the first to fail: it alone tells of it, the others fail because it did."""
        if self.store is None:
            return True
        try:
            return self.store.add("failed", 1) == 1
        except RuntimeError:
            return True  # the store went down with the process that kept it: better twice than not at all


ALONE = Ranks()


def join(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Meet the processes that torchrun started. `ALONE` without torchrun, or for a single process."""
    if dist.is_available() and dist.is_initialized():  # by the script that calls rkd, or by a call before
        local = int(environment.get("LOCAL_RANK", "0"))
        return Ranks(dist.get_rank(), dist.get_world_size(), local) if dist.get_world_size() > 1 else ALONE
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in environment or "MASTER_ADDR" not in environment:
        return ALONE
    if not dist.is_available():
        raise RkdError("this build of torch cannot connect several processes; start one, without torchrun")
    local = int(environment.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local % gpus)
    try:
        base, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun's store outlives a restart: the addresses of the processes before must not be found in it.
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        store = dist.PrefixStore(f"rkd/{attempt}", base)
        # Objects and CPU tensors go through gloo, tensors on GPUs through NCCL.
        backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise RkdError(f"process {environment['RANK']} cannot meet the other {size - 1}: {first}") from None
    # The first process's parent is torchrun, which lives as long as the job.
    ranks = Ranks(rank, size, local, store=store)
    launch = ranks.from_first(f"{environment.get('TORCHELASTIC_RUN_ID', '')}-{os.getppid()}")
    return replace(ranks, launch=launch, attempt=attempt)


def leave(ranks: Ranks) -> None:
    """The work is done. Not for after an error: the others may not come."""
    if ranks.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _running(net: nn.Module) -> list[Tensor]:
    """The running means and variances of all norms: batch norm's, and those of norms like it."""
    statistics = []
    for module in net.modules():
        if isinstance(module, _NormBase):
            statistics += [b for b in (module.running_mean, module.running_var) if b is not None]
    return statistics


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors of one type and device each, about `BUCKET` bytes together."""
    waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = waiting.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(t.numel() * t.element_size() for t in bucket) >= BUCKET:
            yield waiting.pop((tensor.dtype, tensor.device))
    yield from waiting.values()
