"""What an attack's options only name, other nets and other attacks: found while a configuration is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core.data import Dataset, fetch
from rkd.core.errors import ConfigError, Refused, RkdError
from rkd.core.interfaces import Attack, TeacherReference
from rkd.core.modes import running
from rkd.core.nets import Net, check_logits

from .catalog import Catalog


def create_attack(name: str, options: Mapping[str, Any], where: str, parts: PlanParts) -> Attack:
    """An attack with checked options and all its parts. Raises ConfigError, UnknownName."""
    attack = parts.catalog.create("attack", name, options, where)
    if hasattr(attack, "assemble"):
        try:
            attack.assemble(parts)
        except RkdError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            raise ConfigError([f"{where}: {problem}" for problem in problems]) from None
    return attack


class PlanParts:
    """Implements `rkd.core.interfaces.Parts` for one configuration. `notes`: what the user should know of it."""

    def __init__(self, catalog: Catalog, data: Dataset) -> None:
        self.catalog = catalog
        self.data = data
        self.notes: list[str] = []
        self._nets: dict[tuple[str, str, str], nn.Module] = {}

    def attack(self, name: str, options: Mapping[str, Any] | None = None) -> Attack:
        return create_attack(name, options or {}, name, self)

    def net(self, reference: str, normalize: str = "auto", options: Mapping[str, Any] | None = None) -> nn.Module:
        wanted = (reference, normalize, str(options or {}))
        if wanted not in self._nets:
            self._nets[wanted] = self._find(self._read(reference, options or {}), normalize)
        return self._nets[wanted]

    def _find(self, reference: TeacherReference, normalize: str) -> nn.Module:
        from .build import build_net  # it needs Plan, and so this module
        from .teachers import settle_normalization

        def untrained(name: str, options: Mapping[str, Any] | None = None) -> Net:
            return build_net(name, options or {}, self.data, self.catalog)

        text = reference.text
        sources = (self.catalog.create("teacher", name) for name in self.catalog.names("teacher"))
        net = next((net for source in sources if (net := source(reference, untrained, self.data)) is not None), None)
        if net is None:
            what = "is no net with weights" if reference.model else "is not the folder of a finished run"
            raise RkdError(f"{text!r} {what}; give a run's folder, such as runs/my-run, or MODEL@WEIGHTS")
        net = net.eval().requires_grad_(False)
        stored = isinstance(net, Net) and net.mean.flatten().tolist() != torch.tensor(self.data.mean).tolist()
        if reference.weights and isinstance(net, Net) and not stored:
            settle_normalization(net, normalize, text, self.data, self.notes.append)
        self._check(net, text)
        return net

    def _read(self, text: str, options: Mapping[str, Any]) -> TeacherReference:
        """A folder, MODEL@WEIGHTS, or whatever an installed source makes of it."""
        model, at_sign, weights = text.partition("@")
        source, colon, _ = text.partition(":")
        if Path(text).is_dir() or (colon and source in self.catalog.entries["teacher"]):
            return TeacherReference(text, "source")
        if not at_sign and ("/" in text or model not in self.catalog.entries["model"]):
            return TeacherReference(text, "source")
        self.catalog.create("model", model, options, "model")
        return TeacherReference(text, "source", model, weights or None, options)

    def _check(self, net: nn.Module, text: str) -> None:
        batch = fetch(self.data.train, torch.arange(min(2, len(self.data.train))))
        try:
            with running(net, "eval"), torch.no_grad():
                check_logits(net(batch.x), len(batch), len(self.data.classes), f"the net {text!r}")
        except RuntimeError as error:
            first = str(error).split("\n")[0]
            raise Refused(
                f"the net {text!r} cannot take images {self.data.shape} of {self.data.name!r}: {first}"
            ) from None
