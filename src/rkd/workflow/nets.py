"""Nets by name and weights: untrained, of a finished run, of a weights file, or from an installed source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core import ops
from rkd.core.errors import Refused
from rkd.core.random import forked, key
from rkd.data.dataset import Dataset, fetch
from rkd.nets.modes import running
from rkd.nets.net import Net, check_logits
from rkd.nets.sources import TeacherReference
from rkd.nets.weights import built_for, load_into, read_weights, take_normalization, without_download
from rkd.registry.catalog import Catalog
from rkd.storage.card import Card, read_card
from rkd.storage.runfolder import RunFolder


def build_net(name: str, options: Mapping[str, Any], data: Dataset, catalog: Catalog, seed: int = 0) -> Net:
    """An untrained net, normalised for the data. Its weights follow from the seed."""
    factory = catalog.create("model", name, options, "student")
    with forked(key(seed, "init")):
        return Net(factory(data.shape, len(data.classes)), data.mean, data.std)


@dataclass(frozen=True)
class LoadedNet:
    """The student of a finished run, which takes images in [0, 1], with the card of that run."""

    net: Net
    card: Card


def load_run(path: Path | str, catalog: Catalog) -> LoadedNet:
    """The student of a finished run, in eval mode and frozen. Raises RkdError, WeightsError."""
    folder = RunFolder.open(path)
    card = read_card(folder)
    state = folder.load_weights(folder.weights)
    with built_for(state, str(folder.weights)):
        arch = catalog.create("model", card.model, without_download(card.options), "student")(
            card.shape, len(card.classes)
        )
    load_into(arch, state, str(folder.weights))
    return LoadedNet(Net(arch, card.mean, card.std).eval().requires_grad_(False), card)


def load_file(
    path: Path | str, model: str, shape: tuple[int, int, int], classes: int, catalog: Catalog,
    mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), options: Mapping[str, Any] | None = None,
) -> Net:  # fmt: skip
    """A net of architecture `model` with weights from a file. Raises WeightsError, UnknownName."""
    factory = catalog.create("model", model, options or {}, "model")
    state = read_weights(path)
    with built_for(state, str(path)):
        arch = factory(shape, classes)
    state, normalization = take_normalization(state, arch)
    load_into(arch, state, f"{path} (for {model})")
    mean, std = normalization or (mean, std)
    return Net(arch, mean, std).eval().requires_grad_(False)


def from_sources(
    reference: TeacherReference, data: Dataset, catalog: Catalog, source: str | None = None
) -> nn.Module | None:
    """The net of the first source (hook `rkd_teachers`) that knows the reference, or None. `source`: ask only that one.

    Raises what a source raises: RkdError, WeightsError.
    """

    def untrained(name: str, options: Mapping[str, Any] | None = None) -> Net:
        return build_net(name, options or {}, data, catalog)

    sources = (catalog.create("teacher", name) for name in ([source] if source else catalog.names("teacher")))
    return next((net for load in sources if (net := load(reference, untrained, data)) is not None), None)


def normalize(
    net: nn.Module, reference: TeacherReference, choice: str, name: str, data: Dataset, tell: Callable[[str], None]
) -> None:
    """Settle what a net normalises with, if it comes from a weights file that leaves it open."""
    if not reference.weights or not isinstance(net, Net):
        return
    if net.mean.flatten().tolist() == torch.tensor(data.mean).tolist():  # else its file said it
        settle_normalization(net, choice, name, data, tell)


def settle_normalization(net: Net, choice: str, name: str, data: Dataset, tell: Callable[[str], None]) -> None:
    """Set what `net` normalises with: as `choice` says (`data`, `none`), or by which classifies better (`auto`).

    A weights file does not say how its net's inputs were normalised: most robust checkpoints of the field take [0, 1].
    """
    if choice == "data":
        return
    plain = Net(net.arch, (0.0,), (1.0,)).to(net.mean.device)
    if choice == "auto":
        batch = fetch(data.train, torch.arange(min(512, len(data.train))), net.mean.device)
        accuracy = {}
        for option, candidate in (("data", net), ("none", plain)):
            with running(candidate, "eval"), torch.no_grad():
                chunks = zip(batch.x.split(64), batch.y.split(64), strict=True)
                accuracy[option] = float(torch.cat([ops.correct(candidate(x), y) for x, y in chunks]).float().mean())
        choice = "none" if accuracy["none"] > accuracy["data"] else "data"
        tell(
            f"{name}: {max(accuracy.values()):.1%} of {len(batch)} training images right with normalize={choice} "
            f"({min(accuracy.values()):.1%} with the other)"
        )
        if choice == "data":
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
