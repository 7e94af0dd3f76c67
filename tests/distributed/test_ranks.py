"""Several processes train and evaluate as one: every method, with four real processes over gloo.

Tolerance: 1e-4 relative, 1e-5 absolute in float32 weights after three updates; what differs is the order of sums.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rkd.distributed.ranks import ALONE, Ranks, join
from rkd.storage.serialize import load_state

from .distributed_cases import METHODS, end, everything, to_be_continued

# Every test here looks at one run of four processes.
pytestmark = pytest.mark.slow

PROCESSES = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(ALONE, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def many(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    module = ["-m", "tests.distributed.distributed_cases"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *module, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def close(one: Any, other: Any, where: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            close(one[name], other[name], f"{where}, {name}", rtol, atol)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            close(a, b, f"{where}, {place}", rtol, atol)
    elif isinstance(one, Tensor):
        torch.testing.assert_close(other, one, rtol=rtol, atol=atol, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=rtol, abs=atol), where
    else:
        assert one == other, where


CASES = [f"{kind} {method}" for kind in ("linear", "sync") for method in METHODS] + [
    "schedulers, 1 parts", "schedulers, 2 parts", "awp and ema", "swa", "mixup", "clipped", "auxiliary norms",
    "validation", "uninterrupted", "interrupted",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_four_processes_are_one(case: str, alone: dict[str, Any], many: list[dict[str, Any]]) -> None:
    close(alone[case], many[0][case], case)


def test_all_processes_end_alike(many: list[dict[str, Any]]) -> None:
    """Bit for bit: weights, statistics, what schedulers set and saw, histories, evaluations."""
    for rank in range(1, PROCESSES):
        assert many[rank].keys() == many[0].keys()
        for case in many[0]:
            close(many[0][case], many[rank][case], f"process {rank}, {case}", 0, 0)


def test_one_process_goes_on_where_four_stopped(
    folder: Path, alone: dict[str, Any], many: list[dict[str, Any]]
) -> None:
    run = to_be_continued(ALONE)
    state = load_state(folder / "state.safetensors")
    assert (state["epoch"], state["done"]) == (1, 2)
    run.load_state_dict(state)
    close(alone["uninterrupted"], end(run), "continued")


def test_own_statistics_are_not_those_of_one_process(alone: dict[str, Any], many: list[dict[str, Any]]) -> None:
    with pytest.raises(AssertionError):
        close(alone["local"]["state"], many[0]["local"]["state"], "local")


def test_an_evaluation_is_shared_without_counting_twice(alone: dict[str, Any], many: list[dict[str, Any]]) -> None:
    for what in ("found", "again", "few"):
        close(alone["evaluations"][what], many[0]["evaluations"][what], what, 0, 1e-6)


def test_who_does_what() -> None:
    for size in (1, 2, 3, 4):
        for samples in (1, 2, 3, 7, 8, 9, 64):
            ranks = [Ranks(rank, size) for rank in range(size)]
            rows = [list(range(samples))[r.rows(samples)] for r in ranks]
            assert [len(row) for row in rows] == ranks[0].sizes(samples)
            counted = [row for r, part in zip(ranks, rows, strict=True) if r.counted(samples) for row in part]
            assert counted == list(range(samples)), "each sample counts once"
            if ranks[0].shared(samples):
                assert [row for part in rows for row in part] == list(range(samples))
                assert size == 1 or min(map(len, rows)) >= 2
            else:
                assert all(row == list(range(samples)) for row in rows)


def test_without_torchrun_one_is_alone() -> None:
    assert join({}) is ALONE
    assert join({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost"}) is ALONE


def test_nothing_is_sent_by_one_alone() -> None:
    tensor = torch.ones(3)
    ALONE.sum_([tensor])
    assert torch.equal(ALONE.gather(tensor, [3]), torch.ones(3)) and ALONE.objects("a") == ["a"]
    assert ALONE.once(lambda: 3) == 3 and ALONE.from_first(4) == 4 and ALONE.fails_first() and ALONE.first


def test_an_error_of_a_lost_connection() -> None:
    two = Ranks(0, 2)
    for text in (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711",
        "Read error [127.0.0.1]:4711: Connection reset by peer",
        "NCCL communicator was aborted on rank 1",
    ):
        assert two.lost(RuntimeError(text))
        assert not Ranks().lost(RuntimeError(text)) and not two.lost(ValueError(text))
    assert not two.lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
