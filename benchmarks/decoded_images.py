"""What it costs to read a folder of JPEGs at each command, decoded anew and from the cache: a row of docs/speed.md.

    python benchmarks/decoded_images.py FOLDER [--images 60000] [--side 32] [--rounds 3]

Makes the images if FOLDER is not there (smooth colours, JPEG quality 90, ten classes). Each reading is a process of
its own, with the files in the page cache; what is counted is the CPU time of the reading alone, user and system,
without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

READ = """
import json, resource, sys
from rkd.plugins.datasets.imagefolder import ImageFolder
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
before = seconds()
data = ImageFolder(sys.argv[1], cache_gib=float(sys.argv[2]))()
print(json.dumps([seconds() - before, len(data.train) + len(data.test), list(data.notes)]))
"""


def make(folder: Path, count: int, side: int) -> None:
    """As many images in ten classes, a sixth of them in test/ as in CIFAR-10."""
    random = np.random.default_rng(0)
    for number in range(count):
        part = "test" if number % 6 == 0 else "train"
        place = folder / part / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(place / f"{number:06}.jpg", quality=90)


def read(folder: Path, gib: float, cache: str) -> tuple[float, int]:
    """CPU seconds of a reading in a process of its own, and the images."""
    command = [sys.executable, "-c", READ, str(folder), str(gib)]
    done = subprocess.run(
        command, env=os.environ | {"RKD_CACHE": cache}, stdout=subprocess.PIPE, text=True, check=True
    )  # fmt: skip
    seconds, images, notes = json.loads(done.stdout)
    assert notes == [], notes
    return seconds, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        make(arguments.folder, arguments.images, arguments.side)
    found: dict[str, list[float]] = {"anew": [], "first": [], "kept": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, gib in (("anew", 0.0), ("first", 16.0), ("kept", 16.0)):
                seconds, images = read(arguments.folder, gib, cache)
                found[name].append(seconds)
    for name, times in found.items():
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{name:6} {statistics.median(times):6.2f} CPU s ({spread}), {images} images, n = {len(times)}")


if __name__ == "__main__":
    main()
