"""Runs that differ by seed alone: which settings say no more than which draw it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ALIKE = ("seed", "name", "device", "prepare_minutes")
"""Settings that do not make two runs different: they say which draw it was, its folder, and where it ran."""


def training_key(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that follow from a run's settings without those of its evaluation and those that say
    which draw it was: equal for runs that differ by seed alone."""
    trained = {key: value for key, value in config.items() if key not in (*ALIKE, "evaluate")}
    return hashlib.sha256(json.dumps(trained, sort_keys=True, default=str).encode()).hexdigest()[:16]
