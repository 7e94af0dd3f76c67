"""Weights from files that other people's scripts wrote. Weights are data, never code.

`.safetensors` is read as it is; `.pt`, `.pth`, `.th`, `.t7`, `.tar` through `torch.load(weights_only=True)`, with no
way around: a few harmless types that scripts save beside their weights (`INERT`) are read as empty objects, everything
else is refused. What comes out is refused unless it is plain: dense real tensors that lie in the file whole, and no
larger than it (torch unpacks compressed archives, and gives a view of one number any size).

A checkpoint may hold several state_dicts (`{"state_dict": ..., "state_dict_ema": ...}`): all are found, and which one
is meant is settled by the net that they shall fit (`rkd.nets.fitting`), or by the user with `FILE#key`. A key is one
of the checkpoint's, or the beginning of names in a state_dict: `w.ckpt#model_ema`, `w.ckpt#student.backbone`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import WeightsError
from ..storage.serialize import load_weights
from ..storage.text import expanded, file_of

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".t7", ".tar", ".ckpt", ".bin")

INERT = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
    *("datetime.datetime", "datetime.timedelta", "collections.defaultdict", "collections.deque"),
)
"""Types whose objects stand beside weights: scores and settings of the training."""

_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
}  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "arch.")
_NO_WEIGHTS = re.compile("optim|sched|scaler|callback|rng_state|hparam|hyper_param", re.IGNORECASE)
"""Entries of a checkpoint that hold other tensors than a net's."""
_DEEPEST = 16
"""Tables in tables, below which no state_dict lies."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """The state_dicts of a file by the key that leads to each; the key "" is the file itself."""

    name: str
    states: Mapping[str, State]

    @property
    def largest(self) -> State:
        """The state_dict with the most numbers: no net for this file has far more."""
        return max(self.states.values(), key=lambda state: sum(value.numel() for value in state.values()))

    def several(self, keys: list[str]) -> str:
        """That it holds several nets' weights, and how to choose."""
        return (
            f"{self.name} holds several sets of weights, {', '.join(keys)}: say which with FILE#KEY, as in "
            f"{self.name}#{keys[-1]}"
        )


def read_weights(reference: Path | str) -> State:
    """The one state_dict in `FILE` or `FILE#key`, without wrappers and prefixes. Raises WeightsError."""
    file = open_weights(reference)
    if len(file.states) > 1:
        raise WeightsError(file.several(list(file.states)))
    return strip_prefixes(file.largest)


def open_weights(reference: Path | str, strip: str = "") -> WeightsFile:
    """All state_dicts in `FILE`, or those that `FILE#key` names. `strip`: the beginning of names that is taken off;
    names without it are left out. Raises WeightsError."""
    path = file_of(reference)
    text, sharp, key = str(reference).partition("#") if expanded(reference) != path else (str(reference), "", "")
    if not text or (sharp and not key):
        raise WeightsError(f"{reference}: an empty part; expected FILE or FILE#KEY (is a variable of the shell unset?)")
    content = _content(path)
    states = _chosen(content, key, path) if key else dict(_states(content))
    if not states:
        while isinstance(content, Mapping) and len(content) == 1 and isinstance(next(iter(content.values())), Mapping):
            content = next(iter(content.values()))
        found = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            found += f" with the keys {some([str(name) for name in content])}"
            if any(isinstance(value, _Inert) for value in content.values()):
                found += ", whose values are objects of NumPy (torch.from_numpy makes tensors of arrays)"
        raise WeightsError(f"{path} holds no state_dict but {found}; expected tensors by name, or a table of such")
    for state in states.values():
        _check_plain(state, path)
    if strip:
        states = {name: _below(state, strip) for name, state in states.items()}
        states = {name: state for name, state in states.items() if state}
        if not states:
            raise WeightsError(f"{path}: no tensor's name begins with {strip!r}")
    return WeightsFile(str(reference), _distinct(states))


def strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """`state` without the prefixes that stand before every one of its keys."""
    state = dict(state)
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = _below(state, prefix)
    return state


def some(items: list[str], limit: int = 4) -> str:
    """The first of `items`, and how many there are."""
    shown = ", ".join(items[:limit])
    return shown + (f", ... ({len(items)} in all)" if len(items) > limit else "")


class _Inert:
    """Stands for an object of a type in INERT. It keeps nothing and does nothing."""

    def __new__(cls, *arguments: object, **options: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **options: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _content(path: Path) -> Any:
    """What a file holds, unpickled without running any of its code."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: weights are read from {', '.join(SUFFIXES)}")
    _check_kind(path)
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        # Old torch versions' formats warn; they are told below.
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise WeightsError(
            f"{path} cannot be read safely: it holds Python objects besides tensors{what}, or is damaged. Have its "
            "author save `model.state_dict()` alone. A whole net is a program: only if you trust it as one, load it "
            "with torch.load(FILE, weights_only=False) in a script of yours, and save its state_dict()"
        ) from None
    except Exception as error:  # broken bytes raise whatever torch's readers trip over
        first = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path} is not a readable weights file ({type(error).__name__}: {first})") from None


def _check_kind(path: Path) -> None:
    """Refuse what is no file of weights, by its first bytes, and archives whose members are compressed: torch.save
    stores them, and a megabyte unpacks to gigabytes."""
    try:
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
        members = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
    except Exception as error:  # broken archives raise all kinds of errors
        raise WeightsError(f"{path} is not a readable weights file ({type(error).__name__}: {error})") from None
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights: open its address in a browser and download again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the weights: type `git lfs pull` in its repository")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        target = path.with_name(f"{path.stem}-weights.pt")
        raise WeightsError(
            f'{path} is a TorchScript archive, which holds code. If you trust it, type: python -c "import torch; '
            f"torch.save(torch.jit.load('{path}').state_dict(), '{target}')\""
        )
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path} is a compressed archive, which torch.save never writes; it is not unpacked")


def _states(content: Any, key: str = "", seen: set[int] | None = None, depth: int = 0) -> Iterator[tuple[str, State]]:
    """(key, state_dict) of each table in `content` that holds tensors by name, and no tables."""
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or id(content) in seen or depth > _DEEPEST:
        return
    seen.add(id(content))
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tables = {
        name: value for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Mapping) and value and not _NO_WEIGHTS.search(name)
    }  # fmt: skip
    if tensors and (not tables or any("." in name for name in tensors)):
        yield key, tensors
    for name, table in tables.items():
        yield from _states(table, f"{key}.{name}" if key else name, seen, depth + 1)


def _chosen(content: Any, key: str, path: Path) -> dict[str, State]:
    """The state_dicts at `key`: a table's, or the tensors whose names begin with it."""
    if isinstance(content, Mapping):
        if isinstance(content.get(key), Mapping):
            return dict(_states(content[key], key))
        if below := _below({n: v for n, v in content.items() if isinstance(v, Tensor)}, f"{key}."):
            return {key: below}
        for name, table in content.items():
            if isinstance(name, str) and key.startswith(f"{name}.") and isinstance(table, Mapping):
                return {f"{name}.{n}": s for n, s in _chosen(table, key.removeprefix(f"{name}."), path).items()}
        inner = [_below(state, f"{key}.") for _, state in _states(content)]
        if (
            len(found := [state for state in inner if state]) == 1
        ):  # `#student` of {"state_dict": {"student.conv": ...}}
            return {key: found[0]}
    names = [str(name) for name in content] if isinstance(content, Mapping) else []
    raise WeightsError(f"{path} holds nothing under {key!r}; it holds {some(names, 10) or type(content).__name__}")


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names begin with `prefix`, without it."""
    return {
        name[len(prefix) :]: value for name, value in state.items() if isinstance(name, str) and name.startswith(prefix)
    }


def _distinct(states: Mapping[str, State]) -> dict[str, State]:
    """Without those that repeat an earlier one."""
    kept: dict[str, State] = {}
    for key, state in states.items():
        if not any(same(state, other) for other in kept.values()):
            kept[key] = state
    return kept


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two state_dicts hold the same numbers under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise WeightsError if something in `state` is no dense tensor of real numbers that the file holds."""
    size = path.stat().st_size
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            kind = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
            raise WeightsError(f"{path}: {name} is no dense tensor of real numbers ({kind})")
        if value.numel() * value.element_size() > size:
            raise WeightsError(f"{path}: {name} {tuple(value.shape)} is larger than the file")
