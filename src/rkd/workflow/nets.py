"""Nets by name and weights: untrained, of a finished run, of a weights file, or from an installed source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core.errors import ConfigError, Refused
from rkd.core.random import forked, key
from rkd.data.dataset import Dataset, fetch
from rkd.nets.first_look import Answers, InputNormalization, answers, compare, first_images
from rkd.nets.fitting import built_for, load_into, net_from_file, room_for, without_download
from rkd.nets.modes import running
from rkd.nets.net import Net, Outputs, check_logits
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog
from rkd.registry.config import StudentConfig
from rkd.registry.normalization import NAMED, normalization
from rkd.storage.card import Card, read_card
from rkd.storage.download import Told
from rkd.storage.runfolder import RunFolder

from .choosing.zoo import fetched, local_file
from .plan import Silent


def build_net(
    name: str, options: Mapping[str, Any], data: Dataset, catalog: Catalog, seed: int = 0, classes: int | None = None
) -> Net:
    """An untrained net for the data's images and classes, or so many `classes`, normalised for the data. Its weights
    follow from the seed."""
    factory = catalog.create("model", name, options, "student")
    with forked(key(seed, "init")), room_for(name):
        return Net(factory(data.shape, classes or len(data.classes)), data.mean, data.std)


def new_student(config: StudentConfig, data: Dataset, catalog: Catalog, seed: int, tell: Callable[[str], None]) -> Net:
    """An untrained student, or one that starts from weights; `tell` is told of these. What it normalises with is then
    settled in `config`: a run that is repeated or goes on shall not look again. Raises ConfigError, WeightsError."""

    def build(classes: int | None = None) -> Net:
        options = without_download(config.options) if config.weights else config.options
        return build_net(config.model, options, data, catalog, seed, classes)

    net = build()
    if config.weights:
        loaded = net_from_file(
            local_file(config.weights, tell), config.model, build, len(data.classes), config.strip, True
        )
        own, theirs = net.arch.state_dict(), loaded.arch.state_dict()
        fitting = {name: theirs[name] for name, value in own.items() if value.shape == theirs[name].shape}
        net.arch.load_state_dict({**own, **fitting})
        tell(f"the student starts from {config.weights}")
        if new := [name for name in own if name not in fitting]:
            tell(f"untrained stays what is for other classes there: {', '.join(new)}")
            if loaded.settled is None and "normalize" not in config.model_fields_set:
                raise Refused(
                    f"{config.weights} does not say how images are normalised, and its answers, for other classes, "
                    "cannot tell: type --set student.normalize=none, data, half, imagenet, ... or MEAN,.../STD,..."
                )
        loaded.arch = net.arch
        reference = TeacherReference(f"{config.model}@{config.weights}", "student", config.model, config.weights)
        choice = config.normalize if "normalize" in config.model_fields_set else "auto"
        for note in settle(loaded, reference, choice, data, "--set student.normalize").notes:
            tell(note)
        if loaded.settled is not None:
            config.normalize = loaded.settled.choice
    return Net(net.arch, *_numbers(config.normalize, data, "student.normalize"))


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


def from_sources(
    reference: TeacherReference, data: Dataset, catalog: Catalog, source: str | None = None, told: Told | None = None
) -> nn.Module | None:
    """The net of the first source (hook `rkd_teachers`) that knows the reference, or None. `source`: ask only that one.
    Weights that have an address are fetched, if they are not in the cache, and `told` is told of it.

    Raises what a source raises: RkdError, WeightsError.
    """
    reference = fetched(reference, catalog, told or Silent())

    def untrained(name: str, options: Mapping[str, Any] | None = None, classes: int | None = None) -> Net:
        return build_net(name, options or {}, data, catalog, classes=classes)

    sources = (catalog.create("teacher", name) for name in ([source] if source else catalog.names("teacher")))
    net = next((net for load in sources if (net := load(reference, untrained, data)) is not None), None)
    if isinstance(net, Net) and reference.classes:
        net.arch = nn.Sequential(net.arch, Outputs(reference.classes))
    return net


@dataclass
class Settled:
    """What is known of a net that others trained: sentences for the user, and its answers where they were asked for."""

    notes: list[str] = field(default_factory=list)
    answers: Answers | None = None


def settle(
    net: nn.Module, reference: TeacherReference, choice: str, data: Dataset, setting: str, must: bool = True
) -> Settled:
    """Settle what a net from a weights file normalises with: as `choice` says, else as its file says, else what its
    answers to training images say. `setting` is what the user types; `must`: whether a wrong one does harm.

    Raises Refused where it cannot be told, and does.
    """
    settled, name = Settled(list(net.notes) if isinstance(net, Net) else []), reference.text
    if not isinstance(net, Net) or not (reference.weights or net.settled):
        return settled
    if choice == "auto" and net.settled is None:
        choice = reference.normalize
    if choice != "auto":
        mean, std = _numbers(choice, data, setting)
        if net.settled is not None and net.settled.known == "file" and net.settled.choice != choice:
            settled.notes.append(f"{name}: normalize={choice}, as asked, though its file says {net.settled.choice}")
        other = (data.mean, data.std) if choice == "none" else NAMED["none"]
        net.settle(InputNormalization(mean, std, choice, "told", other=other))
    elif net.settled is not None and net.settled.known == "file":
        settled.notes.append(f"{name}: normalised as its file says, {net.settled.choice}")
    elif net.settled is None:
        settled.answers, note = _compared(net, name, data, setting, must)
        settled.notes.append(note)
    return settled


def _numbers(choice: str, data: Dataset, setting: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that `choice` says for the data. Raises ConfigError."""
    try:
        mean, std = normalization(choice, data.mean, data.std)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None
    return tuple(mean), tuple(std)


def _compared(net: Net, name: str, data: Dataset, setting: str, must: bool) -> tuple[Answers, str]:
    """Settle it by the training images that come out right. Returns the answers, and a sentence."""
    batch = first_images(data.train, net.mean.device)
    numbers, found = {"data": (data.mean, data.std), "none": NAMED["none"]}, {}
    for option in numbers:
        net.settle(InputNormalization(*numbers[option], option, "open"))
        found[option] = answers(net, batch)
    shares = {option: said.share for option, said in found.items()}
    clear = compare(found["data"], found["none"])
    told = f"of {len(batch)} training images {shares['data']:.1%} are right normalised with the data's mean and std, "
    told += f"{shares['none']:.1%} as they are in [0, 1]"
    if clear == 0 and must and not all(said.at_chance for said in found.values()):
        raise Refused(
            f"{name}: its file does not say how images are normalised, and it cannot be told: {told}. An attack "
            f"depends on it. Most robust nets of the field take [0, 1] (look for transforms.Normalize in their code): "
            f"type {setting}=none, or {setting}=data, or {', '.join(list(NAMED)[1:])}, or MEAN,.../STD,..."
        )
    net.settle(InputNormalization(*NAMED["half"], "half", "open"))
    if clear and must and compare(answers(net, batch), found["data" if clear > 0 else "none"]) > 0:
        raise Refused(f"{name}: {told}, but clearly more are right with mean and std 0.5: type {setting}=half, or what "
                      "its authors normalised with")  # fmt: skip
    best = "data" if clear > 0 else "none" if clear < 0 else max(shares, key=lambda option: shares[option])
    known, other = "compared" if clear else "open", numbers["none" if best == "data" else "data"]
    net.settle(InputNormalization(*numbers[best], best, known, shares, len(batch), other))
    clearly = "" if clear else ", no clear difference"
    return found[best], f"{name}: normalize={best}: {told}{clearly}; {setting} settles it"


def check_fits(net: nn.Module, name: str, data: Dataset, device: torch.device | str = "cpu") -> None:
    """Raise Refused unless the net turns the data's images into logits of the data's classes."""
    batch = fetch(data.train, torch.arange(min(2, len(data.train))), device)
    try:
        with running(net, "eval"), torch.no_grad():
            logits = net(batch.x)
            check_logits(logits, len(batch), len(data.classes), name)
    except RuntimeError as error:
        first = str(error).split("\n")[0]
        raise Refused(f"{name} cannot take images {data.shape} of {data.name!r}: {first}") from None
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits), device=device), atol=1e-4):
        raise Refused(f"{name} returns probabilities, and logits are needed: take the softmax out of it")
