"""How ways to run a net are timed."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from rkd.engine.measure import race


def test_who_is_beaten_after_two_rounds_leaves_the_race() -> None:
    asked = {"quick": 0, "slow": 0}

    def net(name: str, x: Tensor) -> Tensor:
        asked[name] += 1
        time.sleep(0.3 if name == "slow" else 0.03)
        return x.flatten(1)

    x = torch.rand(2, 1, 2, 2)
    quick, slow = race([(lambda x: net("quick", x), x), (lambda x: net("slow", x), x)], budget=60.0)
    assert asked == {"quick": 5, "slow": 2} and quick < slow
