"""State in files: tensors as safetensors, everything else as JSON inside the same file, written atomically.

No pickle: a file from a stranger is data, never code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save
from torch import Tensor

from .errors import RkdError, WeightsError


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RkdError(f"cannot write {path}: {error.strerror or error}") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state of dicts, lists, numbers, strings and tensors."""
    tensors: dict[str, Tensor] = {}
    tree = _split(state, tensors, "")
    write_atomic(path, save(tensors, metadata={"rkd_state": json.dumps(tree)}))


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises WeightsError if the file is not one of these."""
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})["rkd_state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return _join(tree, tensors)
    except FileNotFoundError:
        raise WeightsError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} is not a readable checkpoint: {error}") from None


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a net's `state_dict` as plain safetensors."""
    # Tied weights share memory, which safetensors refuses: give each name its own.
    write_atomic(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A `state_dict` from `.safetensors`. Raises WeightsError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"there is no weights file {path}") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None


def _split(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # numbered: keys that hold slashes, or 1 beside "1", make equal paths
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        # Optimisers key their state by integers, JSON by strings: pairs keep both.
        pairs = [[key, _split(inner, tensors, f"{path}/{key}")] for key, inner in value.items()]
        return {"$dict": pairs}
    if isinstance(value, (list, tuple)):
        return [_split(inner, tensors, f"{path}/{place}") for place, inner in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state may hold dicts, lists, numbers, strings and tensors, not {type(value).__name__} ({path})")


def _join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {key: _join(inner, tensors) for key, inner in tree["$dict"]}
    if isinstance(tree, list):
        return [_join(inner, tensors) for inner in tree]
    return tree


def to_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a `state_dict` that later updates do not reach."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every float in a `state_dict` is a number."""
    return all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
