"""How many micro-batches a batch has to be computed in to fit into memory: tried out, on copies of all that changes.

The batch of one step of the optimiser stays what it is (`--grad-accumulation`). A GPU refuses memory that it does not
have, and so can be asked. A CPU's system hands out more than there is and kills who uses it: there only limits of the
process itself (`ulimit -v`) are seen.
"""

import gc

import torch

from ..core.errors import Refused
from ..core.random import forked, key
from ..core.run import Run
from ..distributed.ranks import ALONE, Ranks
from .accumulation import SMALLEST, Accumulation
from .dry_run import trial_of, with_few_steps

RESERVE = 0.05
"""Share of a GPU's memory that is left free in the trials: fragments, and what extensions keep."""

ON_A_CPU = ("can't allocate memory", "could not create a primitive")
"""torch's own words, and oneDNN's, who has the same ones for what it does not know. A dry step comes before a trial."""


def auto_micro_batches(run: Run, ranks: Ranks = ALONE) -> int:
    """The smallest number of micro-batches with which a step fits into memory; of several processes the largest of
    theirs.

    The run is left as it was. Raises Refused if not even the smallest micro-batches fit.
    """
    samples = max(SMALLEST, -(-run.loader.batch_size // ranks.size))
    limit = max(1, samples // SMALLEST)
    failed, count = 0, 1
    while not _fits(run, samples, count):
        if count == limit:
            raise Refused(
                f"{run.device} has too little memory for even {SMALLEST} images a time: take a smaller student or "
                "teacher, smaller images, or --precision bf16"
            )
        failed, count = count, min(2 * count, limit)
    while count - failed > 1:
        middle = (failed + count) // 2
        failed, count = (failed, middle) if _fits(run, samples, middle) else (middle, count)
    return max(ranks.objects(count))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in ON_A_CPU)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _fits(run: Run, samples: int, count: int) -> bool:
    fits = True
    try:
        _try(run, samples, count)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fits = False
    # Only here: what the error's traceback held is free now.
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _try(run: Run, samples: int, count: int) -> None:
    """A step's gradient, beside as much memory as the rest of a training needs."""
    trial = trial_of(with_few_steps(run), Accumulation(count))
    if run.device.type == "cuda":
        total = torch.cuda.get_device_properties(run.device).total_memory
        weights = sum(p.numel() * p.element_size() for net in run.nets.values() for p in net.parameters())
        # The trial has a copy of the weights more, a training the optimiser's one or two and what extensions keep.
        kept = torch.empty(int(RESERVE * total) + 2 * weights, dtype=torch.uint8, device=run.device)
    else:
        kept = torch.empty(0)
    batch = run.loader.batch(torch.arange(min(samples, len(run.loader.split))), 0)
    with forked(key(run.seed, "dry"), run.device):
        trial.backward(trial, trial.step(batch))
    del kept
