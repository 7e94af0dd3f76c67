"""What a file of generated images takes of memory: `generated` on a sparse file of a million images of 32 x 32.

    python benchmarks/generated.py [--images 1000000] [--batches 400]

The file has the layout of those that Wang et al. publish, and takes no space: its pixels are a hole, which reads as
zeros. The process's largest memory so far (VmHWM) is read before the data set is opened and after an epoch's batches
were read and made; the difference is printed in MiB. The real images are random.
"""

from __future__ import annotations

import argparse
import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from rkd.data.dataset import ArraySplit, MixedSplit
from rkd.data.loader import Loader
from rkd.plugins.datasets.generated import StoredImages

SHAPE = (32, 32, 3)


def sparse_npz(path: Path, images: int, classes: int = 10) -> None:
    """`image` and `label` as `numpy.savez` lays them out, with a hole for the pixels."""
    size = images * int(np.prod(SHAPE))
    head, labels = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (images, *SHAPE)})
    np.save(labels, np.arange(images, dtype=np.int64) % classes)
    members = [("image.npy", head.getvalue(), size), ("label.npy", labels.getvalue(), 0)]
    directory = b""
    with path.open("wb") as file:
        for name, start, hole in members:
            # Of the images nobody computes the checksum: they are never read as a whole.
            crc = 0 if hole else zlib.crc32(start)
            fields = (20, 0, 0, 0, 0x21, crc, len(start) + hole, len(start) + hole, len(name), 0)
            directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *fields, 0, 0, 0, 0, file.tell()) + name.encode()
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", *fields) + name.encode() + start)
            file.seek(hole, 1)
        place = file.tell()
        file.write(directory)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), place, 0))


def largest_memory() -> float:
    """MiB that this process has taken at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def added_memory(images: int, batches: int) -> float:
    """MiB that opening the file and reading so many batches of 128 add."""
    real = ArraySplit(
        torch.randint(0, 256, (128 * batches, 3, 32, 32), dtype=torch.uint8), torch.arange(128 * batches) % 10
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generated.npz")
        sparse_npz(path, images)
        before = largest_memory()
        split = MixedSplit(real, StoredImages(path, ("image", "label"), (3, 32, 32), 10), 0.7)
        seen = sum(int((batch.index >= len(real)).sum()) for batch in Loader(split, 128, seed=0).batches(0))
        assert seen == batches * int(0.7 * 128)
        return largest_memory() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=400)
    options = parser.parse_args()
    print(f"{options.images:,} images: {added_memory(options.images, options.batches):.1f} MiB")
