"""Nets of finished runs and of weights files, ready to be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkd.nets.net import Net
from rkd.nets.weights import built_for, load_into, read_weights, take_normalization, without_download
from rkd.storage.card import Card, read_card
from rkd.storage.runfolder import RunFolder

from ..registry.catalog import Catalog


@dataclass(frozen=True)
class Loaded:
    """A net that takes images in [0, 1], with what its run says about it."""

    net: Net
    card: Card


def load_run(path: Path | str, catalog: Catalog) -> Loaded:
    """The student of a finished run. Raises RkdError, WeightsError."""
    folder = RunFolder.open(path)
    card = read_card(folder)
    state = folder.load_weights(folder.weights)
    with built_for(state, str(folder.weights)):
        arch = catalog.create("model", card.model, without_download(card.options), "student")(
            card.shape, len(card.classes)
        )
    load_into(arch, state, str(folder.weights))
    return Loaded(Net(arch, card.mean, card.std).eval().requires_grad_(False), card)


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
