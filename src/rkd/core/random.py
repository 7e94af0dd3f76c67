"""Random numbers that follow from (key, sample index) alone.

An attack draws from `Noise`, never from the global generator: the same sample gets the same start whatever the
batch size, the order, the device or the number of processes. The generator is SplitMix64 (Steele et al., "Fast
splittable pseudorandom number generators", OOPSLA 2014) as a counter-based hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# The published constants, as the signed 64-bit integers that torch holds.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def key(*parts: object) -> int:
    """A 63-bit key from anything with a stable `str`: `key(seed, epoch, "adv")`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def forked(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Leave the global generators as they were; inside, seed them with `seed` unless it is None."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            # Not torch.manual_seed: it would seed other devices too, whose state nobody has kept.
            torch.default_generator.manual_seed(seed)
            for used in devices:
                with torch.cuda.device(used):
                    torch.cuda.manual_seed(seed)
        yield


class Noise:
    """Draws for a batch of samples. `key` names the purpose, `index (B,)` int64 the samples.

    Two objects with the same key and index give the same sequence of draws.
    """

    def __init__(self, key: int, index: Tensor) -> None:
        self.key = key
        self.index = index
        self._draws = 0

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """`(B, *shape)` float32 from low to high (which rounding may reach), each sample's numbers its own."""
        return low + (high - low) * self._unit(shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """`(B, *shape)` float32, standard normal (Box and Muller)."""
        radius = (-2 * torch.log1p(-self._unit(shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self._unit(shape))

    def select(self, keep: Tensor) -> Noise:
        """The generator for a part of the samples: it goes on where this one stands."""
        part = Noise(self.key, self.index[keep])
        part._draws = self._draws
        return part

    def _unit(self, shape: Sequence[int]) -> Tensor:
        self._draws += 1
        draw = (self._draws * _GOLDEN + 2**63) % 2**64 - 2**63  # modulo 2^64, signed
        stream = _mix(_mix(self.index * _GOLDEN + self.key) + draw)
        count = math.prod(shape)
        place = torch.arange(1, count + 1, device=self.index.device) * _GOLDEN
        bits = _mix(stream.unsqueeze(1) + place)
        return (((bits >> 40) & 0xFFFFFF).to(torch.float32) / 2**24).reshape(len(self.index), *shape)


def _mix(z: Tensor) -> Tensor:
    # torch shifts int64 arithmetically; the masks drop the copied sign bits.
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)
