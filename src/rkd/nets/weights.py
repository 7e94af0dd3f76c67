"""Weights from files that other people's scripts wrote. Weights are data, never code.

`.safetensors` is read as it is; `.pt`, `.pth`, `.th`, `.t7`, `.tar` through `torch.load(weights_only=True)`, with no
way around. What comes out is refused unless it is plain: dense real tensors that lie in the file whole, and no larger
than it (torch unpacks compressed archives, and gives a view of one number any size). Understood are the wrappers
`{"state_dict": ...}`, `{"net": ...}`, `{"model": ...}` and the prefixes that DataParallel (`module.`), torch.compile
(`_orig_mod.`) and wrapping modules leave on every key.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import WeightsError
from ..core.traits import NetTraits, declared
from ..storage.serialize import load_weights

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".t7", ".tar", ".ckpt", ".bin")
ROOM = 10_000_000
"""Parameters that a net may have beyond those that its weights file could be for."""

_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
}  # fmt: skip
_WRAPPERS = ("state_dict", "net", "model", "model_state_dict", "student")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "arch.")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The `state_dict` in a file, without wrappers and prefixes. Raises WeightsError."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        return strip_prefixes(_plain(load_weights(path), path))
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: weights are read from {', '.join(SUFFIXES)}")
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old torch versions' formats, which are told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise WeightsError(
            f"{path} cannot be read safely: it holds Python objects besides tensors{what}, or is damaged. Have its "
            "author save `model.state_dict()` alone, or convert it to .safetensors"
        ) from None
    except Exception as error:  # broken bytes raise whatever torch's readers trip over
        first = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path} is not a readable weights file ({type(error).__name__}: {first})") from None
    return strip_prefixes(_plain(_unwrap(content, path), path))


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that stand before every one of its keys."""
    state = dict(state)
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def take_normalization(
    state: Mapping[str, Tensor], net: nn.Module
) -> tuple[dict[str, Tensor], tuple[list[float], list[float]] | None]:
    """Split what a wrapper around the net stored of its input normalisation (`mean`, `std`; `mu`, `sigma`) off `state`.

    Returns the rest and (mean, std), one number a channel, or None where the file holds none.
    """
    wanted = net.state_dict()
    for names in (("mean", "std"), ("mu", "sigma")):
        keys = [[k for k in state if k.split(".")[-1] == name and k not in wanted] for name in names]
        if all(len(found) == 1 and state[found[0]].numel() in (1, 3) for found in keys):
            rest = {key: value for key, value in state.items() if key not in (keys[0][0], keys[1][0])}
            mean, std = (state[found[0]].flatten().tolist() for found in keys)
            return strip_prefixes(rest), (mean, std)
    return dict(state), None


def load_into(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` strictly. Keys under the net's `ignored_keys` (prefixes) may be left over; its `renamed_keys`
    (part of a name -> part of a name) translate other authors' names.

    Raises WeightsError that names the keys that are missing, left over or of another shape.
    """
    traits = declared(net, NetTraits)
    ignored = tuple(traits.ignored_keys)
    wanted = net.state_dict()
    if not any(key in wanted for key in state) and all(key.startswith("1.") for key in state):
        state = {key[2:]: value for key, value in state.items()}  # Sequential(normalisation, net)
    for theirs, ours in traits.renamed_keys.items():
        state = {key if key in wanted else key.replace(theirs, ours): value for key, value in state.items()}
    state = _fitting(state, wanted)
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(ignored)}
    missing = [key for key in wanted if key not in state]
    # Checkpoints older than torch 0.4.1 do not count batches; the counter takes no part in eval mode.
    counters = {key: wanted[key] for key in missing if key.endswith("num_batches_tracked")}
    state |= counters
    missing = [key for key in missing if key not in counters]
    extra = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(wanted[key].shape)} in the net"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken and not (missing or extra or shapes):
        raise WeightsError(f"{source} holds values that are not numbers (NaN or infinity), in {_some(broken)}")
    if missing or extra or shapes:
        problems = []
        if shapes:
            problems.append(f"{len(shapes)} of another shape: {_some(shapes)}")
        if missing:
            problems.append(f"{len(missing)} that the net needs are missing: {_some(missing)}")
        if extra:
            problems.append(f"{len(extra)} that the net does not have: {_some(extra)}")
        hint = ""
        if shapes and not missing and not extra:
            hint = "; the architecture fits, but the number of classes or channels, or the width, differs"
        raise WeightsError(f"{source} does not fit this architecture: {'; '.join(problems)}{hint}")
    net.load_state_dict(state)


@contextmanager
def built_for(state: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Inside, no net is built that is much larger than the weights in `state`, which are meant for it.

    What a stranger's run says of its architecture ends here, before it takes memory without end. Raises WeightsError.
    """
    there = sum(value.numel() for value in state.values())
    limit = 4 * there + ROOM
    counted = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal counted
        # Each counts as a thousand numbers at least: as modules they take as much memory.
        counted += max(parameter.numel(), 1000) if parameter is not None else 0
        if counted > limit + 1000 * len(state):
            raise WeightsError(f"{source} holds {there:,} numbers, but the net that it is said to be for has far more")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise WeightsError(f"{source}: the net that it is said to be for does not fit into memory") from None
    finally:
        hook.remove()


def _check_archive(path: Path) -> None:
    """Refuse an archive whose members are compressed: torch.save stores them, and a megabyte unpacks to gigabytes."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # broken archives raise all kinds of errors
        raise WeightsError(f"{path} is not a readable weights file ({type(error).__name__}: {error})") from None
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path} is a compressed archive, which torch.save never writes; it is not unpacked")


def _plain(state: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """`state`, unless something in it is no dense tensor of real numbers that the file holds."""
    size = path.stat().st_size
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            kind = f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", "")
            raise WeightsError(f"{path}: {name} is no dense tensor of real numbers ({kind})")
        if value.numel() * value.element_size() > size:
            raise WeightsError(f"{path}: {name} {tuple(value.shape)} is larger than the file")
    return state


def _fitting(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` with or without prefixes, whichever fits more: a net's own names may begin with `net.` or `model.`."""
    bare = strip_prefixes(state)
    first = next(iter(wanted), "")
    own = first.removesuffix(next(iter(strip_prefixes(wanted)), ""))
    candidates = (state, bare, {own + key: value for key, value in bare.items()})
    return max(candidates, key=lambda names: sum(key in wanted for key in names))


def without_download(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options for a net whose weights are loaded next: none need be fetched."""
    return {**options, "pretrained": False} if "pretrained" in options else dict(options)


def _unwrap(content: Any, path: Path) -> Mapping[str, Tensor]:
    for _ in range(3):
        if (
            isinstance(content, Mapping)
            and content
            and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
        ):
            return content
        inner = next((content[k] for k in _WRAPPERS if isinstance(content, Mapping) and k in content), None)
        if inner is None:
            break
        content = inner
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found += f" with the keys {_some([str(key) for key in content])}"
    raise WeightsError(f"{path} holds no state_dict but {found}; expected tensors by name, or {', '.join(_WRAPPERS)}")


def _some(items: list[str], limit: int = 4) -> str:
    shown = ", ".join(items[:limit])
    return shown + (f", ... ({len(items)} in all)" if len(items) > limit else "")
