"""State in files: tensors as safetensors, everything else as JSON inside the same file, written atomically.

No pickle: a file from a stranger is data, never code. Each file holds a checksum (SHA-256) of everything in it, so that
a torn or bit-flipped one is found out.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open, save
from torch import Tensor

from ..core.errors import WeightsError
from .files import check_safetensors, write_atomic

CHECKSUM = "rkd_sha256"


def pack(tensors: Mapping[str, Tensor], text: str | None = None) -> bytes:
    """Tensors and a text as the bytes of a safetensors file with a checksum of both."""
    # Tied weights share memory, which safetensors refuses: give each name its own.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {} if text is None else {"rkd_state": text}
    return save(own, metadata={**metadata, CHECKSUM: _digest(own, text or "")})


def unpack(path: Path, foreign: bool = False) -> tuple[dict[str, Tensor], str | None]:
    """What `pack` made. `foreign`: files of others, without a checksum, are welcome.

    Raises ValueError if the checksum is missing or wrong, OSError or SafetensorError if the file cannot be read.
    """
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # Copies: what safetensors returns may lie at odd places in memory, and sums may depend on that.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    text = metadata.get("rkd_state")
    expected = metadata.get(CHECKSUM)
    if expected is None and not foreign:
        raise ValueError("it has no checksum")
    if expected is not None and expected != _digest(tensors, text or ""):
        raise ValueError("its checksum is wrong: the file was damaged after it was written")
    return tensors, text


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state of dicts, lists, numbers, strings and tensors."""
    write_atomic(path, pack_state(state))


def pack_state(state: Mapping[str, Any]) -> bytes:
    """The file of a nested state of dicts, lists, numbers, strings and tensors."""
    tensors: dict[str, Tensor] = {}
    tree = _split(state, tensors, "")
    return pack(tensors, json.dumps(tree))


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises WeightsError if the file is not one of these, or is damaged."""
    try:
        tensors, text = unpack(path)
        if text is None:
            raise ValueError("it holds no state")
        state = _join(json.loads(text), tensors)
        if not isinstance(state, dict):
            raise ValueError("its state is no table")
        return state
    except FileNotFoundError:
        raise WeightsError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable checkpoint: {error}") from None


def peek(path: Path) -> dict[str, Any]:
    """The plain values at the top of a state: numbers and strings, without reading its tensors. Raises WeightsError."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})["rkd_state"])
        return {key: value for key, value in tree["$dict"] if isinstance(value, (int, float, str))}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable checkpoint: {error}") from None


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a net's `state_dict` as plain safetensors."""
    write_atomic(path, pack(state))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A `state_dict` from `.safetensors`. Raises WeightsError, also where a checksum says that it is damaged."""
    try:
        return unpack(path, foreign=True)[0]
    except FileNotFoundError:
        raise WeightsError(f"there is no weights file {path}") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # odd types of numbers
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _split(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # numbered: keys that hold slashes, or 1 beside "1", make equal paths
        tensors[name] = value
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
