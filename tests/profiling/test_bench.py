"""What `rkd bench` says: each part gets its own, and operations are counted as a plain loop counts them."""

from __future__ import annotations

import torch
from torch import nn

from rkd import ops
from rkd.data.loader import Loader
from rkd.profiling.bench import PARTS, Operations, Watch, bench, peaks
from rkd.registry.catalog import load_catalog
from rkd.testing.tiny import tiny_dataset, tiny_run

CATALOG = load_catalog()


def test_nested_parts_get_what_no_part_inside_gets() -> None:
    clock = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    watch = Watch()

    def work() -> None:
        with watch.part("student"):
            pass_by(1)
            with watch.part("attacks"):
                pass_by(10)
                with watch.part("teachers"):
                    pass_by(100)
                pass_by(10)
            pass_by(1)
        pass_by(5000)

    assert watch.read(lambda: clock, work) == dict.fromkeys(PARTS, 0) | {"student": 2, "attacks": 20, "teachers": 100}
    work()  # nobody reads: nothing is counted
    assert watch.read(lambda: clock, lambda: None) == dict.fromkeys(PARTS, 0)


def test_operations_of_forward_and_backward() -> None:
    layer, x = nn.Linear(5, 7), torch.rand(3, 5, requires_grad=True)
    with Operations() as counter:
        loss = layer(x).sum()
        assert counter.count == 2 * 3 * 5 * 7
        loss.backward()  # by the weights, and by the images
    assert counter.count == 3 * 2 * 3 * 5 * 7


def test_a_runs_step() -> None:
    attack = CATALOG.create("attack", "pgd", {"steps": 3})
    run = tiny_run(CATALOG.create("loss", "rslad"), attack=attack)
    data = tiny_dataset()
    run.loader = Loader(data.train, 8, seed=0)
    found = bench(run, seconds=0, least=2)
    assert (found.images, found.rounds) == (8, 2)
    assert set(found.parts) == set(found.flops) == set(PARTS)
    assert all(seconds > 0 for seconds in found.parts.values())
    # A stub teacher is one matrix product of 3 * 8 * 8 pixels by 4 classes.
    assert found.flops["teachers"] == 2 * 8 * 3 * 8 * 8 * 4
    convolution, head = 2 * 8 * 64 * 3 * 9 * 6, 2 * 8 * 24 * 4
    assert found.flops["attacks"] == 3 * 2 * (convolution + head)  # forwards, and backwards by the images
    # Two views: forward, backward by the weights, and by what comes before the head.
    assert found.flops["student"] == 2 * (2 * convolution + 3 * head)
    assert found.flops["data"] == found.flops["optimiser"] == 0
    assert found.rate > 0 and found.peak_bytes > 0


def test_the_machines_own_peaks() -> None:
    rates = peaks(torch.device("cpu"), torch.float32, seconds=0.01)
    assert set(rates) == {"matrix product", "convolution"} and min(rates.values()) > 1e8


def test_losses_without_an_attack() -> None:
    run = tiny_run(lambda step: {"clean": ops.cross_entropy(step.student(), step.y)})
    found = bench(run, seconds=0, least=1)
    assert found.parts["attacks"] == found.parts["teachers"] == 0
