"""Batch norm over all processes. (What several processes come to together is in test_ranks.)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rkd.distributed.ranks import ALONE
from rkd.distributed.sync_batchnorm import synchronised


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("affine", [True, False])
def test_of_one_process_it_is_batch_norm(group: None, affine: bool) -> None:
    norms = [nn.BatchNorm2d(3, affine=affine) for _ in range(2)]
    x = torch.randn(6, 3, 5, 5) * 2 + 1
    results = []
    for norm, ranks in zip(norms, (ALONE, replace(ALONE, size=2)), strict=True):
        images = x.clone().requires_grad_()
        with synchronised(ranks):
            y = norm(images)
        (y * torch.arange(6.0).view(-1, 1, 1, 1)).square().sum().backward()
        norm.eval()
        results.append([y, images.grad, norm.running_mean, norm.running_var, norm(x)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_norms_that_do_not_learn_wait_for_nobody() -> None:
    """Without a process group, to wait would be an error."""
    norm = nn.BatchNorm2d(3).eval()
    with synchronised(replace(ALONE, size=2)):
        assert norm(torch.ones(1, 3, 2, 2)).shape == (1, 3, 2, 2)
