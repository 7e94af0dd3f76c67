"""The card of a finished student, `student.json`: all that is needed to use its weights.

Whoever made the run wrote it, so every value is checked before anything is built from it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ..core.errors import RkdError
from ..core.types import Norm, Shape, ThreatModel
from .runfolder import RunFolder

MOST_NUMBERS = 1 << 22
"""Numbers of one image (channels x height x width) that a student may be for: 3 x 1182 x 1182."""

MOST_CLASSES = 100_000

ALIKE = ("seed", "name", "device", "prepare_minutes", "trackers", "baseline")
"""Settings that do not make two runs different: they say which draw it was, its folder, where it ran, what watched it,
and what it is shown beside."""


@dataclass(frozen=True)
class Card:
    """`options` are the model's; `mean` and `std` have one number a channel, or one for all."""

    model: str
    options: dict[str, Any]
    shape: Shape
    classes: tuple[str, ...]
    mean: list[float]
    std: list[float]
    threat: ThreatModel


def read_card(folder: RunFolder) -> Card:
    """The card of a run's student. Raises RkdError if there is none, or a value in it cannot be used."""
    content = folder.read_json(folder.card)
    if not isinstance(content, Mapping):
        raise RkdError(f"{folder.card} is not a student's card: it holds no table")
    problem = next((f"{key}: {what}" for key, (fits, what) in _RULES.items() if not fits(content.get(key))), None)
    if problem is None and not {len(content["mean"]), len(content["std"])} <= {1, content["shape"][0]}:
        problem = f"mean, std: expected one number for each of {content['shape'][0]} channels"
    if problem is not None:
        raise RkdError(f"{folder.card} is not a student's card: {problem}")
    channels, height, width = content["shape"]
    threat = content["threat"]
    return Card(
        content["model"],
        dict(content["options"]),
        (channels, height, width),
        tuple(content["classes"]),
        [float(value) for value in content["mean"]],
        [float(value) for value in content["std"]],
        ThreatModel(threat["norm"], float(threat["eps"]), float(threat["step_size"])),
    )


def training_key(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that follow from a run's settings without those of its evaluation and those that say
    which draw it was: equal for runs that differ by seed alone."""
    trained = {key: value for key, value in config.items() if key not in (*ALIKE, "evaluate")}
    return hashlib.sha256(json.dumps(trained, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _shape(value: Any) -> bool:
    whole = isinstance(value, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    return whole and len(value) == 3 and min(value) > 0 and math.prod(value) <= MOST_NUMBERS


def _classes(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_CLASSES and all(isinstance(n, str) for n in value)


def _numbers(value: Any, low: float = -1e6) -> bool:
    return isinstance(value, list) and bool(value) and all(_number(inner, low) for inner in value)


def _threat(value: Any) -> bool:
    known = isinstance(value, Mapping) and value.get("norm") in get_args(Norm)
    return known and _number(value.get("eps"), 0) and _number(value.get("step_size"), 0)


_RULES = {
    "model": (lambda value: isinstance(value, str), "expected a model's name"),
    "options": (lambda value: isinstance(value, Mapping), "expected a table"),
    "shape": (_shape, f"expected [channels, height, width], at most {MOST_NUMBERS:,} numbers in all"),
    "classes": (_classes, f"expected the classes' names, at most {MOST_CLASSES:,}"),
    "mean": (_numbers, "expected a number for each channel"),
    "std": (lambda value: _numbers(value, 1e-6), "expected a positive number for each channel"),
    "threat": (_threat, f"expected a norm ({', '.join(get_args(Norm))}), eps and step_size"),
}
