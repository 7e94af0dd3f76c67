"""A cache of teachers' logits on clean images: each version of each image is asked about once in a training.

Without augmentation every epoch shows a teacher the same images; crop and flip make 162 versions of each
(`data.variants`), some of which come again. `cached_teachers` puts a `CachedTeacher` in a teacher's place where that
pays; its `LogitStore` keeps the logits in memory or in a file.

**Exact.** In its last bits a net's answer to an image depends on the batch around it (kernels, order of sums), and a
run that was killed must end bit for bit as one that was not, whichever answers it finds, on however many processes. So
a teacher is asked in blocks of one size, filled up, and cached only if its answer to an image has the same bits
wherever the image stands in such a block and whatever the others are. Whether it is cached follows from the
configuration and the teacher alone, never from what is kept, measured, or free on the disk.

**No waiting.** Which samples are new is known on the host (`Batch.version`). Their logits are copied there while the
step goes on, and stored by a later step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..core.errors import Refused
from ..core.interfaces import Teacher
from ..core.random import forked
from ..core.run import Run
from ..core.types import Batch
from ..data.augment import Variants, expected_repeats
from ..data.loader import Loader
from ..data.prefetch import HostCopy, send
from ..evaluation.journal import fingerprint
from ..nets.net import PLAIN, NetTeacher, TensorVersions
from ..storage.files import make_room
from .accumulation import Accumulation
from .logit_store import LogitStore, Rows, answer_bytes, size_of

BLOCK = 32
"""Images in a block, or as many as a step asks about at once, if these are fewer. Of a batch's new images half a block
is lost on average by filling up; smaller blocks take longer for each image."""
LEAST_REPEATS = 0.2
"""Of a training's samples that come again at least, for `auto`."""
PROBED = 256
"""Training images, at most, that say whose a file is."""
IN_MEMORY = 64 * 2**20
"""Bytes of a teacher's answers up to which they are kept in memory, not in a file."""

Tell: TypeAlias = Callable[[str], None]
Mode: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How a teacher will be cached. `repeats`: the share of clean images that it is expected to have seen before;
    `size`: bytes of all answers; `in_file`: whether they are kept in a file."""

    teacher: NetTeacher
    variants: Variants
    images: int
    classes: int
    block: int
    repeats: float
    size: int
    in_file: bool


def plan_caches(
    run: Run, mode: Mode = "auto", *, roles: Iterable[str] | None = None, max_bytes: int = 2**32,
    tell: Tell = lambda text: None,
) -> dict[str, CachePlan]:  # fmt: skip
    """Which of the run's teachers to cache, by role. Asks no teacher.

    `mode`: `auto` where it pays, `on` wherever it is possible, `off`. `roles`: the teachers that are asked about clean
    images (None: all). `max_bytes`: of all answers together. `tell` is told why a teacher is not cached.
    """
    plans: dict[str, CachePlan] = {}
    wanted = set(run.teachers if roles is None else roles) if mode != "off" else set()
    for role in [role for role in run.teachers if role in wanted]:
        try:
            plans[role] = _plan(run, run.teachers[role], mode, max_bytes)
            max_bytes -= plans[role].size
        except Refused as error:
            tell(f"teacher {role}: asked in each step: {error}")
    return plans


@contextlib.contextmanager
def cached_teachers(
    run: Run, mode: Mode = "auto", *, roles: Iterable[str] | None = None, max_bytes: int = 2**32,
    folder: Path | None = None, tell: Tell = lambda text: None,
) -> Iterator[None]:  # fmt: skip
    """Inside, those of the run's teachers are cached that `plan_caches` names and whose answers are exact.

    `folder` is for files of answers, together at most `max_bytes`, of which older ones make room; None keeps all in
    memory. Of several processes all call this alike, and those of one machine share the files. `tell` is told what is
    done, and at the end how many answers were looked up.
    """
    plain = run.teachers
    plans = plan_caches(run, mode, roles=roles, max_bytes=max_bytes, tell=tell)
    caches = _open_caches(run, plans, max_bytes, folder, tell)
    run.teachers = {**plain, **caches}
    watched = {
        role: (teacher, TensorVersions(teacher.net), _weights_of(teacher)) for role, teacher in plain.items()
        if isinstance(teacher, NetTeacher) and (role in caches or teacher.accelerator is not PLAIN)
    }  # fmt: skip
    if caches:
        loader_of(run).variants = next(iter(plans.values())).variants
    try:
        yield
        for role, cache in caches.items():
            asked, looked_up = (sum(counts) for counts in zip(*loader_of(run).ranks.objects(cache.counts), strict=True))
            if asked + looked_up:
                share = looked_up / (asked + looked_up)
                tell(f"teacher {role}: {share:.0%} of the answers to clean images were looked up")
        for role, (teacher, versions, weights) in watched.items():
            if versions.unchanged(teacher.net) and _weights_of(teacher) != weights:
                text = (
                    f"the weights of the teacher {role!r} were changed through .data, which torch does not track: its "
                    "answers may be older ones. Change them in place under torch.no_grad(), or train with "
                    "--set teacher_cache=off and --engine plain"
                )
                run.hooks.hook.rkd_notice(run=run, text=text)
    finally:
        run.teachers = plain
        if caches:
            loader_of(run).variants = None
        for cache in caches.values():
            cache.close()


class CachedTeacher:
    """A teacher whose logits on clean images are kept. Whatever else it is asked about goes to the teacher itself.

    `warn` is told if its weights move: from then on it is asked in each step.
    """

    def __init__(self, teacher: NetTeacher, block: int, store: LogitStore, warn: Tell = lambda text: None) -> None:
        self.role = teacher.role
        self._teacher, self._block, self._store, self._warn = teacher, block, store, warn
        self.counts = 0, 0
        """How many clean images the net was asked about, and how many were looked up."""
        self._under_way: list[tuple[Rows, HostCopy]] = []
        self._versions = TensorVersions(teacher.net)
        self._moved = False

    @property
    def net(self) -> nn.Module:
        return self._teacher.net

    @net.setter
    def net(self, net: nn.Module) -> None:
        self._teacher.net = net

    def logits(self, x: Tensor) -> Tensor:
        """`(B, K)`, differentiable in x."""
        return self._teacher.logits(x)

    def clean_logits(self, batch: Batch) -> Tensor:
        """`(B, K)` on the clean images of `batch`, without gradient."""
        if batch.version is None or self._weights_moved():
            with torch.no_grad():
                return self._teacher.logits(batch.x).detach()
        self._store_new()
        rows = batch.version.numpy()
        values, new = self._store.read(rows)
        logits = send(values, batch.x.device)
        if len(new):
            places = send(torch.from_numpy(new), batch.x.device)
            answers = ask_in_blocks(self._teacher, batch.x[places], self._block)
            logits = logits.index_copy(0, places, answers)
            self._under_way.append((rows[new], HostCopy(answers)))
        asked, looked_up = self.counts
        self.counts = asked + len(new), looked_up + len(rows) - len(new)
        return logits

    def close(self) -> None:
        """Store what is on its way, and let the file go."""
        self._store_new(wait=True)
        self._store.close()

    def _store_new(self, wait: bool = False) -> None:
        while self._under_way and (wait or self._under_way[0][1].arrived):
            rows, copy = self._under_way.pop(0)
            self._store.write(rows, copy.get())

    def _weights_moved(self) -> bool:
        if not self._moved and not self._versions.unchanged(self.net):
            self._moved = True
            self._warn(f"the weights of the teacher {self.role!r} move: from here on it is asked in each step")
        return self._moved


def _weights_of(teacher: NetTeacher) -> str:
    return fingerprint(*teacher.net.state_dict().values())


def ask_in_blocks(teacher: NetTeacher, x: Tensor, block: int) -> Tensor:
    """Logits `(B, K)` of blocks of one size; the last one is filled up with its last image."""
    answers = []
    with torch.no_grad():
        for part in x.split(block):
            filled = torch.cat([part, part[-1:].expand(block - len(part), *part.shape[1:])])
            answers.append(teacher.logits(filled.contiguous()).detach()[: len(part)])
    return torch.cat(answers)


def _plan(run: Run, teacher: Teacher, mode: Mode, max_bytes: int) -> CachePlan:
    """Raises Refused with the reason why it is not cached."""
    if type(teacher) is not NetTeacher:
        raise Refused("it is a teacher of its own kind")
    if run.epochs == 1:
        raise Refused("no image comes again in a single epoch")
    loader, classes = loader_of(run), len(run.data.classes)
    variants, images = Variants.of(loader.augments, run.data.shape), len(loader.split)
    size = answer_bytes(images * variants.count, classes)
    if size > max_bytes:
        raise Refused(
            f"answers to {variants.count} versions of {images} images take {size / 2**30:.3g} GiB, and "
            f"{max_bytes / 2**30:.3g} are left of teacher_cache_gib"
        )
    repeats = expected_repeats(variants.count, run.epochs)
    if mode == "auto" and repeats < LEAST_REPEATS:
        raise Refused(
            f"of {variants.count} versions of each image {repeats:.0%} come again in {run.epochs} epochs, too few for "
            "it to pay"
        )
    micro_batches = run.backward.micro_batches if isinstance(run.backward, Accumulation) else 1
    block = min(BLOCK, -(-loader.batch_size // micro_batches))
    in_file = size > IN_MEMORY or loader.ranks.size > 1  # through a file processes share what each has asked
    return CachePlan(teacher, variants, images, classes, block, repeats, size, in_file)


def loader_of(run: Run) -> Loader:
    """The run's loader. Raises Refused if it is of another kind: its batches say nothing of their variants."""
    if not isinstance(run.loader, Loader):
        raise Refused("its batches do not say which variant of an image each sample is")
    return run.loader


def _open_caches(
    run: Run, plans: Mapping[str, CachePlan], max_bytes: int, folder: Path | None, tell: Tell
) -> dict[str, CachedTeacher]:
    if not plans:
        return {}
    owners: dict[str, int] = {}
    notice, ranks = run.hooks.hook.rkd_notice, loader_of(run).ranks
    for role, plan in plans.items():
        owner, problem = _try(run, plan)
        if problem := next(filter(None, ranks.objects(problem)), ""):  # one for all
            tell(f"teacher {role}: asked in each step: {problem}")
        else:
            owners[role] = owner
    paths = {role: folder / f"{owners[role]:016x}.answers" for role in owners if folder and plans[role].in_file}
    if folder and paths:
        if ranks.local == 0:
            missing = sum(plans[role].size - size_of(path) for role, path in paths.items())
            make_room(folder, "*.answers", missing, max_bytes, set(paths.values()))
        ranks.objects(None)  # nobody opens a file before the others have made room
    caches = {}
    for role, owner in owners.items():
        plan, path, who = plans[role], paths.get(role), f"teacher {role}"
        tell(f"{who}: about {plan.repeats:.0%} of the clean images come again, and are looked up")
        if path is not None:
            tell(f"{who}: answers to clean images are kept in {path}, at most {plan.size / 2**30:.2g} GiB")

        def failed(why: str, who: str = who, path: Path | None = path) -> None:
            tell(f"{who}: its answers are not kept any more ({path}: {why})")

        store = LogitStore(plan.images * plan.variants.count, plan.classes, owner, path, failed)
        caches[role] = CachedTeacher(plan.teacher, plan.block, store, lambda text: notice(run=run, text=text))
    return caches


def _try(run: Run, plan: CachePlan) -> tuple[int, str]:
    """A number for this very teacher on these very images; why it cannot be cached, if it cannot."""
    teacher, block = plan.teacher, plan.block
    # The same images whenever it is tried: a run that goes on must not come to another end than before.
    loader = loader_of(run)
    x = loader.prefetcher.images(torch.arange(block) % plan.images)
    with forked(None, run.device):  # a net that draws random numbers leaves the student's as they were
        first = ask_in_blocks(teacher, x, block)
        if first.ndim != 2 or first.dtype != torch.float32 or not bool(first.isfinite().all()):
            return 0, "its logits are not finite float32 numbers"
        if not torch.equal(ask_in_blocks(teacher, x, block), first):
            return 0, "it says something else the second time"
        order = torch.arange(block - 1, -1, -1).roll(block // 3).to(x.device)
        alone = torch.equal(ask_in_blocks(teacher, x[order], block), first[order])
        # Either half beside other images: what depends on the largest number of a block changes with one of them.
        second = torch.arange(block, device=x.device) >= block // 2
        for mine in (second, ~second):
            for others in (1 - x, torch.zeros_like(x), torch.ones_like(x)):
                beside = ask_in_blocks(teacher, torch.where(mine[:, None, None, None], x, others), block)
                alone &= torch.equal(beside[mine], first[mine])
    if not alone:
        return 0, "its answer to an image depends on the images beside it"
    # Answers and images stand for what no list of settings has: the code of the net and of augmentations, and the
    # machine's way to compute.
    spread = torch.arange(0, plan.images, -(-plan.images // PROBED))
    owner = fingerprint(
        *teacher.net.state_dict().values(), block, first, plan.images, plan.variants.names, run.data.fingerprint,
        loader.split.labels, loader.batch(spread, 0).x,
    )  # fmt: skip
    return int(owner[:16], 16), ""
