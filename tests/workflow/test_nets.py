"""Nets by name and weights: seeds, and what a weights file's net was fed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rkd.data.dataset import fetch
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.testing import untouched
from rkd.workflow.nets import build_net, settle_normalization
from rkd.workflow.resolve import resolve


def test_weights_follow_from_the_seed_alone(catalog: Catalog) -> None:
    data = resolve({}, catalog).data
    with untouched():
        nets = [build_net("small-cnn", {}, data, catalog, seed) for seed in (1, 1, 2)]
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert isinstance(nets[0], Net)
    assert nets[0].mean.flatten().tolist() == pytest.approx(list(data.mean))


def trained(normalised: bool, catalog: Catalog) -> tuple[Net, Any]:
    """An MLP that has learned digits a little, fed with normalised images or with plain ones."""
    data = resolve({}, catalog).data
    net = build_net("mlp", {}, data, catalog)
    if not normalised:
        net = Net(net.arch)
    batch = fetch(data.train, torch.arange(600))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return net.eval(), data


@pytest.mark.parametrize("normalised", [True, False])
def test_the_better_normalisation_is_found(normalised: bool, catalog: Catalog) -> None:
    net, data = trained(normalised, catalog)
    loaded = Net(net.arch, data.mean, data.std)
    said: list[str] = []
    settle_normalization(loaded, "auto", "teacher x", data, said.append)
    expected = list(data.mean) if normalised else [0.0]
    assert loaded.mean.flatten().tolist() == pytest.approx(expected)
    assert f"normalize={'data' if normalised else 'none'}" in said[0]


def test_a_normalisation_that_was_asked_for(catalog: Catalog) -> None:
    net, data = trained(True, catalog)
    for choice, expected in (("data", data.mean[0]), ("none", 0.0)):
        loaded = Net(net.arch, data.mean, data.std)
        settle_normalization(loaded, choice, "teacher x", data, pytest.fail)
        assert float(loaded.mean) == pytest.approx(expected)
