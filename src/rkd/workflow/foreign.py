"""Nets that were trained elsewhere: found by the installed sources, and made to fit the data they are to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rkd.core import ops
from rkd.core.errors import Refused
from rkd.data.dataset import Dataset, fetch
from rkd.nets.modes import running
from rkd.nets.net import Net, check_logits
from rkd.nets.sources import TeacherReference

from ..registry.catalog import Catalog
from .build import build_net


def from_sources(
    reference: TeacherReference, data: Dataset, catalog: Catalog, source: str | None = None
) -> nn.Module | None:
    """The net that the first source (hook `rkd_teachers`) to know the reference gives, or None. `source`: ask only that
    one. Raises what a source raises: RkdError, WeightsError."""

    def untrained(name: str, options: Mapping[str, Any] | None = None) -> Net:
        return build_net(name, options or {}, data, catalog)

    asked = (catalog.create("teacher", name) for name in ([source] if source else catalog.names("teacher")))
    return next((net for ask in asked if (net := ask(reference, untrained, data)) is not None), None)


def normalize(
    net: nn.Module, reference: TeacherReference, wish: str, name: str, data: Dataset, say: Callable[[str], None]
) -> None:
    """Settle what a net normalises with, if it comes from a weights file that leaves it open."""
    if not reference.weights or not isinstance(net, Net):
        return
    if net.mean.flatten().tolist() == torch.tensor(data.mean).tolist():  # else its file said it
        settle_normalization(net, wish, name, data, say)


def settle_normalization(net: Net, wish: str, name: str, data: Dataset, say: Callable[[str], None]) -> None:
    """Set what `net` normalises with, as far as `wish` leaves it open (`auto`, `data`, `none`).

    A weights file does not say what its net was fed with: most robust checkpoints of the field take [0, 1] as is.
    """
    if wish == "data":
        return
    plain = Net(net.arch, (0.0,), (1.0,)).to(net.mean.device)
    if wish == "auto":
        batch = fetch(data.train, torch.arange(min(512, len(data.train))), net.mean.device)
        right = {}
        for option, candidate in (("data", net), ("none", plain)):
            with running(candidate, "eval"), torch.no_grad():
                parts = zip(batch.x.split(64), batch.y.split(64), strict=True)
                right[option] = float(torch.cat([ops.correct(candidate(x), y) for x, y in parts]).float().mean())
        chosen = "none" if right["none"] > right["data"] else "data"
        say(
            f"{name}: {max(right.values()):.1%} of {len(batch)} training images right with normalize={chosen} "
            f"({min(right.values()):.1%} with the other)"
        )
        if chosen == "data":
            return
    net.mean, net.std = plain.mean, plain.std


def check_fits(net: nn.Module, name: str, data: Dataset, device: torch.device | str = "cpu") -> None:
    """Raise Refused unless the net turns the data's images into logits of the data's classes."""
    batch = fetch(data.train, torch.arange(min(2, len(data.train))), device)
    try:
        with running(net, "eval"), torch.no_grad():
            check_logits(net(batch.x), len(batch), len(data.classes), name)
    except RuntimeError as error:
        first = str(error).split("\n")[0]
        raise Refused(f"{name} cannot take images {data.shape} of {data.name!r}: {first}") from None
