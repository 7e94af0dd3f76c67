"""What an attack's options only name, other nets and other attacks: found while a configuration is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rkd.core.errors import ConfigError, RkdError
from rkd.core.interfaces import Attack
from rkd.data.dataset import Dataset
from rkd.nets.sources import TeacherReference

from ..registry.catalog import Catalog


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
        from . import foreign  # it builds nets, for which Plan is needed, and so this module

        text = reference.text
        net = foreign.from_sources(reference, self.data, self.catalog)
        if net is None:
            what = "is no net with weights" if reference.model else "is not the folder of a finished run"
            raise RkdError(f"{text!r} {what}; give a run's folder, such as runs/my-run, or MODEL@WEIGHTS")
        net = net.eval().requires_grad_(False)
        foreign.normalize(net, reference, normalize, text, self.data, self.notes.append)
        foreign.check_fits(net, f"the net {text!r}", self.data)
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
