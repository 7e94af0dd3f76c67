"""How many parts a batch has to be computed in to fit into memory: tried out, on copies of everything that changes.

The batch of one step of the optimiser stays what it is (`grad_accumulation`). A GPU refuses memory that it does not
have, and so can be asked. A CPU's system hands out more than there is and kills who uses it: there only limits of the
process itself (`ulimit -v`) are seen.
"""

from __future__ import annotations

import gc

import torch

from ..core.errors import Refused
from ..core.objective import SMALLEST, backward
from ..core.random import forked, key
from ..core.trainer import Run
from .dry_run import trial_of

RESERVE = 0.05
"""Share of a GPU's memory that is left free in the trials: fragments, and what extensions keep."""

ON_A_CPU = ("can't allocate memory", "could not create a primitive")
"""torch's own words, and oneDNN's, who has the same ones for what it does not know. A dry step comes before a trial."""


def parts_that_fit(run: Run) -> int:
    """The smallest number of parts of a batch that fits into memory; of several processes the largest of theirs.

    The run is left as it was. Raises Refused if not even the smallest parts fit.
    """
    samples = max(SMALLEST, -(-run.loader.batch_size // run.ranks.size))
    most = max(1, samples // SMALLEST)
    failed, parts = 0, 1
    while not _fits(run, samples, parts):
        if parts == most:
            raise Refused(
                f"{run.device} has too little memory for even {SMALLEST} images a time: take a smaller student or "
                "teacher, smaller images, or --precision bf16"
            )
        failed, parts = parts, min(2 * parts, most)
    while parts - failed > 1:
        middle = (failed + parts) // 2
        failed, parts = (failed, middle) if _fits(run, samples, middle) else (middle, parts)
    return max(run.ranks.objects(parts))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in ON_A_CPU)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _fits(run: Run, samples: int, parts: int) -> bool:
    fits = True
    try:
        _try(run, samples, parts)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fits = False
    # Only here: what the error's traceback held is free now.
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _try(run: Run, samples: int, parts: int) -> None:
    """A step's gradient, beside as much memory as the rest of a training needs."""
    trial = trial_of(run)
    trial.grad_accumulation = parts
    if run.device.type == "cuda":
        total = torch.cuda.get_device_properties(run.device).total_memory
        weights = sum(p.numel() * p.element_size() for p in run.student.net.parameters())
        # The trial has a copy of the weights more, a training the optimiser's one or two and what extensions keep.
        kept = torch.empty(int(RESERVE * total) + 2 * weights, dtype=torch.uint8, device=run.device)
    else:
        kept = torch.empty(0)
    batch = run.loader.batch(torch.arange(min(samples, len(run.loader.split))), 0)
    with forked(key(run.seed, "dry"), run.device):
        backward(trial, trial.step(batch, listen=False))
    del kept
