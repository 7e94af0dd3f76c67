"""What all the inputs are made of: strange values, spoilt trees and bytes, a pickle that would run a command."""

from __future__ import annotations

import copy
import os
import random
import stat
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rkd.registry.catalog import Catalog, load_catalog
from rkd.testing import TinyNet

NASTY_TEXT = (
    "",
    " ",
    "\0",
    "../../x",
    "/etc/passwd",
    "..",
    "~nobody-of-that-name/x",
    "a" * 5000,
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "[bold red]x[/]",
    "{{ 7 * 7 }}",
    "\u202egnp.exe",
    "\u2028",
    "%s%n",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "nan",
    "8/0",
    "1e999",
    "ramp(0, nan)",
    "points(" + "0:0," * 500 + ")",
    "wrn" + "9" * 400 + "-1",
    "timm:../../x",
    "npz:../../x",
    "-1",
    "imagefolder:/proc/self/fd",
    "pgd",
    "digits",
    "small-cnn",
    "mtard-anl",
    "rslad",
    "\ud7ff\uffff",
    "javascript:alert(1)",
)
NASTY_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**53,
    -(2**63),
    2**63 - 1,
    True,
    False,
)


def strange(rng: random.Random, depth: int = 3) -> Any:
    """Any value that TOML can hold."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(NASTY_TEXT)
    if kind < 0.75 or depth == 0:
        return rng.choice(NASTY_NUMBERS)
    if kind < 0.87:
        return [strange(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(NASTY_TEXT) or "x": strange(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def mutated(rng: random.Random, tree: Any, times: int = 3) -> Any:
    """`tree` with some values replaced, taken away, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, times))):
        places = list(_places(tree))
        holder, key = rng.choice(places) if places else (tree, None)
        action = rng.random()
        if key is None or (action < 0.2 and isinstance(holder, dict)):
            if isinstance(holder, dict):
                holder[rng.choice((*NASTY_TEXT, "name", "options", "loss", "data", "student"))] = strange(rng)
        elif action < 0.35:
            del holder[key]
        else:
            holder[key] = strange(rng)
    return tree


def _places(tree: Any) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def scribbled(rng: random.Random, content: bytes) -> bytes:
    """`content` cut off, with bytes changed, repeated, or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        action = rng.random()
        if action < 0.5 and data:
            data[place % len(data)] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif action < 0.65:
            del data[place:]
        elif action < 0.8:
            data[place:place] = rng.choice((b"\xff" * 8, b"\0" * 8, b"[" * 3000, b'"', b"{", struct.pack("<Q", 2**62)))
        elif action < 0.9:
            data[place:place] = data[max(0, place - 64) : place]
        else:
            del data[place : place + rng.randint(1, 64)]
    return bytes(data)


def special(rng: random.Random, path: Path) -> None:
    """In the place of `path` something that is no file: a FIFO, a socket, a folder, or a link."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    kind = rng.randrange(8)
    outside = next(parent for parent in path.parents if parent.name == "input").parent / "outside"
    if kind < 3:
        os.mkfifo(path)
    elif kind == 3:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == 4:
        path.mkdir()
    else:
        links = (outside, outside / "secret.toml", outside / "new", path, Path("/dev/zero"), Path("/proc/self/mem"))
        path.symlink_to(rng.choice(links))


@cache
def catalog() -> Catalog:
    return load_catalog()


@cache
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return TinyNet().state_dict()


class Evil:
    """Unpickled, it would run a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.folder.parent}/pwned",)
