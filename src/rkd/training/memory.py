"""Which teachers get a memory of their answers to clean images (`remember`), and why the others get none.

That follows from the configuration and the teacher alone, never from what is kept, measured or free on the disk: with a
memory a teacher is asked in other blocks, and a run that goes on must not change its last bits. Where the disk fails,
teachers are asked in the same blocks, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch

from ..core.errors import Refused
from ..core.interfaces import Teacher
from ..core.trainer import Run
from ..nets.net import NetTeacher
from ..profiling.bench import Operations
from .shelf import IN_MEMORY, Shelf, size_of
from .teacher_cache import Remembering, RememberingVariants
from .variants import Variants, share_met_before

MOST_BYTES = 512 * 2**20
"""Of the answers to images that never change, of one teacher, on the device of the training."""
BLOCK = 32
"""Of versions, or as many as a step asks about at once, if these are fewer. Blocks are filled up: of a batch's images
that miss, half a block is lost on average. Smaller ones are slower by the image."""
SHARE = 0.2
"""Of a training's samples that come again at least, for it to pay."""
TRIVIAL = 10_000_000
"""Operations of a teacher's forward of one image, below which little is saved: on two cores a batch of 128 images takes
40 ms then, and looking its answers up 5."""


def remembering(
    run: Run, how: Literal["auto", "on", "off"] = "auto", *, roles: Iterable[str] | None = None, most: int = 2**32,
    folder: Path | None = None, tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Teacher]:  # fmt: skip
    """The run's teachers, with a memory of clean images where one is possible and pays.

    `how`: `auto`, `on` for wherever it is possible, `off`. `roles`: of the teachers that are asked about clean images
    (None: all); a promise to another would take the room of one that is. `most`: bytes of versions' answers in all, and
    of the files in `folder`. `tell` is told why a teacher has none.
    """
    if how == "off":
        return run.teachers
    shelf = Shelf(most, folder, tell)
    teachers = dict(run.teachers)
    for role in run.teachers if roles is None else [role for role in run.teachers if role in set(roles)]:
        try:
            teachers[role] = _with_memory(run.teachers[role], run, how == "on", shelf)
        except Refused as error:
            tell(f"teacher {role}: asked in each step: {error}")
    if any(isinstance(teacher, RememberingVariants) for teacher in teachers.values()):
        run.loader.variants = _variants(run)
    return teachers


def tell_of_memory(run: Run, tell: Callable[[str], None]) -> None:
    """After a training: how many answers were looked up."""
    for role, teacher in run.teachers.items():
        if isinstance(teacher, RememberingVariants) and teacher.asked + teacher.found:
            share = teacher.found / (teacher.asked + teacher.found)
            tell(f"teacher {role}: {share:.0%} of the answers to clean images were looked up")


def _with_memory(teacher: Teacher, run: Run, wanted: bool, shelf: Shelf) -> Teacher:
    """Raises Refused with the reason why it is left as it is."""
    loader, classes = run.loader, len(run.data.classes)
    if type(teacher) is not NetTeacher:
        raise Refused("it is a teacher of its own kind")
    if run.ranks.size > 1:
        raise Refused("of several processes each would have to know what the others found")
    if run.epochs == 1:
        raise Refused("no image comes again in a single epoch")
    if not loader.augments and 4 * len(loader.split) * classes <= MOST_BYTES:
        kept = Remembering(teacher, loader)
        kept.again, kept.in_memory = 1 - 1 / run.epochs, 4 * len(loader.split) * classes
        return kept
    variants = _variants(run)
    size = size_of(len(loader.split) * variants.count, classes)
    if shelf.promised + size > shelf.most:
        raise Refused(
            f"answers to {variants.count} versions of {len(loader.split)} images take {size / 2**30:.3g} GiB, and "
            f"{(shelf.most - shelf.promised) / 2**30:.3g} are left of teacher_cache_gib"
        )
    again = share_met_before(variants.count, run.epochs)
    if not wanted:
        if again < SHARE:
            raise Refused(
                f"of {variants.count} versions of each image {again:.0%} come again in {run.epochs} epochs, too few "
                "for it to pay"
            )
        if run.device.type == "cuda":
            raise Refused("on a GPU the step would wait for what is looked up")
        if (count := _operations(teacher, run)) < TRIVIAL:
            raise Refused(f"looking its answers up saves little ({count / 1e6:.2g} million operations an image)")
    shelf.promised += size
    block = min(BLOCK, -(-loader.batch_size // run.grad_accumulation))
    shelf.tell(f"teacher {teacher.role}: about {again:.0%} of the clean images come again, and are looked up")
    found = RememberingVariants(teacher, loader, variants, block, shelf)
    found.again, found.in_memory = again, size if size <= IN_MEMORY else 0
    return found


def _variants(run: Run) -> Variants:
    return Variants.of(run.loader.augments, run.data.shape)


def _operations(teacher: NetTeacher, run: Run) -> int:
    """Of a forward of one image."""
    with torch.no_grad(), Operations() as counter:
        teacher.net(torch.zeros(1, *run.data.shape, device=run.device))
    return counter.count
