"""A training step never asks the device for a number: on a GPU each such question stops the host.

On the CPU the same questions are seen as operators: `item()`, `float()` and `bool()` of a tensor are one, and indexing
with a mask has to know how many it picks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rkd.core.trainer import train_step
from rkd.registry.catalog import load_catalog
from rkd.testing import tiny_teachers
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve

CATALOG = load_catalog()
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal",
    "aten::_unique2",
}  # fmt: skip


class Waiting(AssertionError):
    pass


class NoWaiting(TorchDispatchMode):
    """Raises for operators that need an answer from the device before the host can go on."""

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operator.name().split(".")[0]
        masked = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name in WAITING or masked:
            raise Waiting(f"{operator.name()} waits for the device")
        return operator(*arguments, **(options or {}))


def one_update(loss: str, **parts: Any) -> None:
    table = {
        "loss": {"name": loss},
        "student": {"model": "small-cnn", "width": 4},
        "data": {"name": "digits", "validation": 0},
        "batch_size": 16,
        "epochs": 1,
        **parts,
    }
    plan = resolve(table, CATALOG)
    run = build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))
    run.hooks.hook.rkd_run_start(run=run)
    batch = run.loader.batch(torch.arange(16), 0)
    train_step(run, batch)  # the engine measures once, and that takes waiting
    with NoWaiting():
        train_step(run, batch)
        run.hooks.hook.rkd_after_update(run=run)


@pytest.mark.slow
@pytest.mark.parametrize("loss", CATALOG.names("loss"))
def test_every_loss(loss: str) -> None:
    one_update(loss)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "cw", "mifgsm", "pgd-sat"])
def test_searches_that_training_uses(attack: str) -> None:
    one_update("pgd-at", attack={"name": attack})


@pytest.mark.parametrize(
    "parts",
    [
        {"extensions": {"ema": {}, "awp": {}}},
        {"student": {"model": "small-cnn", "width": 4, "conversions": {"aux-bn": {}}}},
        {"optimizer": {"clip_gradient": 1.0}},
        {"precision": "bf16"},
        {"engine": "folded"},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_what_surrounds_a_loss(parts: dict[str, Any]) -> None:
    one_update("mtard-anl", **parts)


def test_a_question_is_seen() -> None:
    with NoWaiting():
        for ask in (lambda x: x.item(), bool, float, lambda x: x[x.reshape(1) > 0] if x.ndim else x.nonzero()):
            with pytest.raises(Waiting):
                ask(torch.ones(()))
