"""Teachers that can be had: listed, fetched into the cache, and held to the accuracy that their authors publish."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.core.errors import ConfigError, RkdError, WeightsError
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog
from rkd.registry.zoo import ZooTeacher
from rkd.storage.download import Told
from rkd.storage.files import write_atomic
from rkd.storage.remote import Messages, Remote, is_kept, is_remote, keep, read_remote
from rkd.storage.text import command, parse_json, read_text

if TYPE_CHECKING:  # a catalogue is listed without torch
    import torch
    from torch import nn

    from rkd.data.dataset import Dataset

CHECKED = 512
"""Test images on which a teacher's accuracy is compared with the published one: a minute of a CPU for a WRN-28-10."""
ERRORS = 4.0
"""Standard errors of that sample that are allowed beyond the tolerance."""
MOST_NUMBERS = 50_000_000
"""Numbers in those images: fewer large ones are taken."""


def zoo_reference(
    text: str, role: str, catalog: Catalog, options: Mapping[str, Any], more: Mapping[str, Any]
) -> TeacherReference:
    """`zoo:NAME` as a teacher's reference; what is given by hand goes before what the catalogue says. Raises
    UnknownName, ConfigError for one that no program can fetch."""
    name = text.removeprefix("zoo:")
    known: ZooTeacher = catalog.create("zoo", name)
    if problem := known.problem(name):
        raise ConfigError(problem)
    options = {**known.options, **options}
    catalog.create("model", known.model, options, f"teacher {role}")
    strip = more.get("strip") or known.strip
    return TeacherReference(
        text, role, known.model, known.address, options, **{**more, "strip": strip}, normalize=known.normalize
    )


def is_published(net: str) -> bool:
    """Whether a net is named by its address or by its name in the catalogue, and is neither a file nor a run."""
    return is_remote(net) or net.startswith("zoo:")


def known_teacher(text: str, catalog: Catalog) -> ZooTeacher | None:
    """What the catalogue says of a reference; None where it is of something else."""
    return catalog.create("zoo", text.removeprefix("zoo:")) if text.startswith("zoo:") else None


def fetched(reference: TeacherReference, catalog: Catalog, told: Told) -> TeacherReference:
    """The reference with a file in the place of an address. Raises RkdError."""
    if not (reference.weights and is_remote(reference.weights)):
        return reference
    known = known_teacher(reference.text, catalog)
    remote = _remote(known) if known else read_remote(reference.weights)
    return replace(reference, weights=keep(remote, told).reference)


def local_file(weights: str, tell: Callable[[str], None]) -> str:
    """A file for `FILE` or an address. Raises RkdError."""
    return keep(read_remote(weights), Messages(tell)).reference if is_remote(weights) else weights


def fetch(reference: str, catalog: Catalog, told: Told) -> dict[str, Any]:
    """Bring a teacher of the catalogue, by its name, or the file at an address into the cache. Raises RkdError."""
    if is_remote(reference):
        kept = keep(read_remote(reference), told)
        return {"file": kept.reference, "sha256": kept.sha256}
    name = reference.removeprefix("zoo:")
    known: ZooTeacher = catalog.create("zoo", name)
    if not known.url:
        raise RkdError(known.problem(name))
    kept = keep(_remote(known), told)
    found: dict[str, Any] = {"name": name, "file": kept.reference, "sha256": kept.sha256}
    if known.model:
        words = ["eval", kept.reference, "--model", known.model, "--dataset", known.data]
        found["evaluate"] = command(*words, *(("--normalize", known.normalize) if known.normalize != "auto" else ()))
    return found


def listed(catalog: Catalog, data: str | None = None) -> list[dict[str, Any]]:
    """The teachers of the catalogue as plain values, those that can be had by their name first, the most robust of a
    data set before the others."""
    rows = []
    for name in catalog.names("zoo"):
        known: ZooTeacher = catalog.create("zoo", name)
        if data in (None, known.data):
            rows.append({"name": name, **known.model_dump(), "ready": not known.problem(name),
                         "cached": bool(known.url) and is_kept(_remote(known))})  # fmt: skip
    return sorted(rows, key=lambda row: (not row["ready"], row["data"], -(row["autoattack"] or 0), row["name"]))


def accuracy_notes(
    net: nn.Module, reference: TeacherReference, data: Dataset, catalog: Catalog, device: torch.device
) -> list[str]:
    """How a teacher's clean accuracy compares with the published one, a sentence. Raises WeightsError if it is further
    off than the tolerance and `ERRORS` standard errors of the sample."""
    known = known_teacher(reference.text, catalog)
    if known is None:
        return []
    if known.clean is None:
        return [f"{reference.text}: its authors' clean accuracy is not known here, and cannot be compared"]
    if data.name != known.data or reference.classes:
        return [f"{reference.text}: its published {known.clean:.2%} are for {known.data} and all its classes, and are "
                f"not compared with {data.name}"]  # fmt: skip
    kept = _remote(known).folder / "accuracy.json"
    asked = [data.fingerprint, reference.model, dict(reference.options), _normalization(net)]
    share, n = _kept(kept, asked) or _measured(net, data, device, kept, asked)
    allowed = known.tolerance + ERRORS * (known.clean * (1 - known.clean) / n) ** 0.5
    words = f"{share:.1%} of {n} test images right, {known.clean:.2%} as published (within {allowed:.1%})"
    if abs(share - known.clean) > allowed:
        raise WeightsError(
            f"{reference.text}: {words}: it is not the net that it should be. Likely causes: another normalisation of "
            f"its images (--set teachers.{reference.role}.normalize=none, data, ...), another order of the data's "
            f"classes, another architecture. To use it nevertheless: --teacher {reference.role}={known.model}@FILE"
        )
    return [f"{reference.text}: {words}"]


def _measured(net: nn.Module, data: Dataset, device: torch.device, kept: Path, asked: list[Any]) -> tuple[float, int]:
    from rkd.nets.first_look import answers, first_images

    count = min(CHECKED, max(1, MOST_NUMBERS // math.prod(data.shape)))
    said = answers(net, first_images(data.test, device, count))
    write_atomic(kept, json.dumps({"asked": asked, "share": said.share, "images": len(said.labels)}).encode())
    return said.share, len(said.labels)


def _kept(path: Path, asked: list[Any]) -> tuple[float, int] | None:
    """What was measured before, of the same net and images."""
    try:
        content = parse_json(read_text(path))
        return (float(content["share"]), int(content["images"])) if content["asked"] == asked else None
    except (OSError, RkdError, ValueError, LookupError, TypeError):
        return None


def _normalization(net: nn.Module) -> list[list[float]]:
    from rkd.nets.net import Net

    return [net.mean.flatten().tolist(), net.std.flatten().tolist()] if isinstance(net, Net) else []


def _remote(known: ZooTeacher) -> Remote:
    return read_remote(known.address, known.size, known.page)
