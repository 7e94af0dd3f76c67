"""Files of weights, in both formats."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from rkd.nets.fitting import load_file_into, load_into
from rkd.nets.weights import open_weights, read_weights
from rkd.testing import TinyNet

from .strange import Evil, mutated, scribbled, special, weights


def safetensors_file(rng: random.Random, folder: Path) -> None:
    """A .safetensors file for a small net."""
    file = folder / "w.safetensors"
    content = save(weights())
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    kind = rng.random()
    if kind < 0.15:  # numbers of any bits
        place = 8 + size + rng.randrange(len(content) - 8 - size)
        file.write_bytes(content[:place] + rng.randbytes(4) + content[place + 4 :])
    elif kind < 0.4:
        file.write_bytes(scribbled(rng, content))
    elif kind < 0.5:  # a header that says any length
        file.write_bytes(struct.pack("<Q", rng.choice((0, 1, size - 1, 10**8, 2**40, 2**63, 2**64 - 1))) + content[8:])
    elif kind < 0.6:
        file.write_bytes(save({name: _odd_tensor(rng, value) for name, value in weights().items()}))
    else:
        header = mutated(rng, header)
        if isinstance(header, dict) and header and rng.random() < 0.5:
            entry = header[rng.choice(list(header))]
            if isinstance(entry, dict):
                entry["shape"] = rng.choice(([2**62], [-1], [2**32, 2**32], [], [0], [10**30], "x"))
                entry["dtype"] = rng.choice(("F32", "F8_E4M3", "BOOL", "C64", "F4", "U64", "X", 3))
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    if rng.random() < 0.04:
        special(rng, file)
    elif rng.random() < 0.01:  # a header of very many empty tensors
        entries = (f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(200_000))
        text = f"{{{','.join(entries)}}}".encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text)
    load_into(TinyNet(), read_weights(file), str(file))


def _odd_tensor(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    kind = rng.randrange(7)
    if kind == 0:
        return value.double() * float("nan")
    if kind == 1:
        return value.half() * 1e9
    if kind == 2:
        return torch.zeros(0)
    return value.clone()


def torch_file(rng: random.Random, folder: Path) -> None:
    """A .pt file of torch.save, of an older torch, or of an attacker."""
    file = folder / f"w.{rng.choice(('pt', 'pth', 'th', 't7', 'tar', 'ckpt', 'bin'))}"
    odd: list[Any] = [
        weights(),
        {"state_dict": weights()},
        {"w": torch.empty(3, device="meta")},
        {"w": torch.eye(3).to_sparse()},
        {"w": torch.ones(3, dtype=torch.cfloat)},
        {"w": torch.zeros(1).expand(10**6, 10**6)},
        {"w": "text"},
        [1],
        None,
        {name: value.expand(2, *value.shape) for name, value in weights().items()},
        {1: torch.ones(1)},
        {},
        {"model": {"model": {"model": {"model": weights()}}}},
        {name: _odd_tensor(rng, v) for name, v in weights().items()},
        {"w": Evil(folder)},
        {"w": torch.ones(2, requires_grad=True)},
        {"w": torch.nn.Parameter(torch.ones(2))},
        {"state_dict": weights(), "state_dict_ema": weights(), 3: weights(), "optimizer": {"state": {0: weights()}}},
        {**{f"module.model.{name}": value for name, value in weights().items()}, "mean": torch.ones(3), "x": weights()},
        {"model": weights(), "args": argparse.Namespace(a=[Path()]), "best": np.float64(3), "at": np.arange(3)},
        {f"{prefix}conv.weight": torch.ones(1) for prefix in ("", ".", "..", "a.b.", "conv.weight.")},
    ]
    out = io.BytesIO()
    torch.save(rng.choice(odd), out, _use_new_zipfile_serialization=rng.random() < 0.6)
    content = out.getvalue()
    kind = rng.random()
    if kind < 0.4:
        content = scribbled(rng, content)
    elif kind < 0.5 and zipfile.is_zipfile(io.BytesIO(content)):
        content = _repacked(rng, content)
    elif kind < 0.6:
        content = pickle.dumps(rng.choice(({"w": Evil(folder)}, weights(), {"a": [1]})), protocol=rng.randrange(5))
    elif kind < 0.65:
        content = rng.choice(
            (b"", b"PK\x03\x04", b"\x80\x02", gzip.compress(content), b"(" * 100_000, b"\x80\x02]" * 9999)
        )
    file.write_bytes(content)
    if rng.random() < 0.04:
        special(rng, file)
    key = rng.choice(("", "", "#state_dict", "#model", "#state_dict_ema.conv", "#", "#.", "#3", "#x.y.z"))
    strip = rng.choice(("", "", "module.", "x"))
    load_file_into(TinyNet(), open_weights(f"{file}{key}", strip), str(file))


def _repacked(rng: random.Random, content: bytes) -> bytes:
    """A torch archive with compressed members, and one that unpacks to 64 MiB."""
    out = io.BytesIO()
    how = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", how) as new:
        for name in old.namelist():
            bomb = name.endswith("/0") and rng.random() < 0.5
            new.writestr(name, bytes(64 << 20) if bomb and how != zipfile.ZIP_STORED else old.read(name))
        if rng.random() < 0.3:
            new.writestr("../../outside/pwned", b"x")
    return out.getvalue()
