"""The fewest parts that fit into memory, with a net that pretends to run out of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rkd import ops
from rkd.core.errors import Refused
from rkd.testing import OneStep, tiny_dataset, tiny_run, untouched
from rkd.training.auto_batch import auto_micro_batches, out_of_memory


class Adversarial:
    """Cross-entropy, attacked and clean."""

    roles, defaults, weights = (), {}, {}

    def __call__(self, step):
        adv, clean = step.students("adv", "clean")
        return {"a": ops.cross_entropy(adv, step.y), "b": ops.cross_entropy(clean, step.y)}


def small(run, most: int, error=torch.OutOfMemoryError) -> list[int]:
    """A net that takes at most `most` images at a time in training. What it was asked for."""
    asked: list[int] = []

    def look(module, inputs) -> None:
        if module.training:
            asked.append(len(inputs[0]))
            if len(inputs[0]) > most:
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB")

    run.student.net.register_forward_pre_hook(look)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(("most", "parts"), [(16, 1), (15, 2), (8, 2), (7, 3), (5, 4), (3, 6), (2, 8)])
def test_the_fewest_parts_that_fit(most: int, parts: int) -> None:
    run = tiny_run(Adversarial(), attack=OneStep(), data=tiny_dataset(24), batch_size=16)
    asked = small(run, most)
    with untouched(run.student.net):
        assert auto_micro_batches(run) == parts
    assert max(asked) >= most


@pytest.mark.slow
def test_one_that_never_fits_and_errors_of_another_kind() -> None:
    run = tiny_run(Adversarial(), attack=OneStep(), data=tiny_dataset(24), batch_size=16)
    small(run, 1)
    with pytest.raises(Refused, match="too little memory for even 2 images"):
        auto_micro_batches(run)
    run = tiny_run(Adversarial(), attack=OneStep(), data=tiny_dataset(24), batch_size=16)
    small(run, 8, ValueError)
    with pytest.raises(ValueError):
        auto_micro_batches(run)


LIMITED = """
import resource, torch
from rkd.training.auto_batch import auto_micro_batches, out_of_memory
from rkd import ops
from rkd.data.dataset import ArraySplit, Dataset
from rkd.testing import tiny_run
torch.set_num_threads(1)

class Plain:
    roles, defaults, weights = (), {}, {}
    def __call__(self, step):
        return {"a": ops.cross_entropy(step.student("clean"), step.y)}

images = torch.zeros(128, 3, 128, 128, dtype=torch.uint8)
data = Dataset("big", ArraySplit(images, torch.arange(128) % 4), ArraySplit(images[:4], torch.arange(4)), (3, 128, 128),
               tuple("abcd"), (0.5,) * 3, (0.5,) * 3)
run = tiny_run(Plain(), data=data, batch_size=128)
auto_micro_batches(tiny_run(Plain(), data=data, batch_size=2))  # what is loaded on first use is no step's
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (240 << 20), -1))
print(auto_micro_batches(run))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are the system's own")
def test_a_process_with_a_limit() -> None:
    """A real refusal: the step on 128 images takes some 300 MiB, the process may have 240 more."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RKD_ALLOCATOR": "system"}
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert 2 <= int(done.stdout) <= 64


def test_what_running_out_looks_like() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
