"""What a run that is continued must have in common with its beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rkd.core.errors import RkdError
from rkd.storage.runfolder import RunFolder

TOLD = ("python", "torch", "torchvision", "numpy")
"""Packages whose version may change the last bits of a result."""


def before_of(folder: RunFolder) -> dict[str, Any]:
    """The manifest of a run's earlier part; empty where there is none that can be read."""
    try:
        found = folder.read_json(folder.manifest)
    except RkdError:
        return {}
    forms = {"teachers": dict, "versions": dict, "hardware": dict, "plugins": dict, "resumed": int, "started": str}
    table = found if isinstance(found, dict) else {}
    return {key: value for key, value in table.items() if isinstance(value, forms.get(key, object))}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Words on what may keep a continued run from ending bit for bit where it would have.

    Raises RkdError for a teacher that is another one now.
    """
    for role, weights in now["teachers"].items():
        old = before.get("teachers", {}).get(role, weights)
        if old != weights:
            raise RkdError(
                f"the {role} teacher's weights have changed since this run began: put the old ones back, or start a "
                "new run"
            )
    notes = []
    versions = before.get("versions", {})
    changed = [f"{p} {versions[p]} -> {now['versions'][p]}" for p in TOLD
               if p in versions and versions[p] != now["versions"][p]]  # fmt: skip
    hardware = before.get("hardware", {})
    changed += [f"{what} {hardware[what]} -> {now['hardware'][what]}" for what in ("cpu_threads", "device", "processes")
                if what in hardware and hardware[what] != now["hardware"][what]]  # fmt: skip
    if changed:
        notes.append(
            f"since the run began: {', '.join(changed)}; it may end with other last bits than it would have otherwise"
        )
    return notes
