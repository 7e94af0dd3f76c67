"""What lies in a folder of images: its parts, classes and files, and what is left out. Not a plugin."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rkd.plugin import DataError

from ._common import HELD_OUT, stratified

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
"""Names of folders, in any case, that are parts of a data set."""


@dataclass
class Found:
    """What lies in a folder: class names, files and labels `(N,)` of `train` and `test`, and what was left out."""

    classes: tuple[str, ...]
    parts: dict[str, tuple[list[Path], Tensor]]
    notes: list[str]


def find_images(root: Path, wanted: Sequence[str] | None) -> Found:
    """`wanted`: the classes by name, in order; None: all folders, sorted."""
    if not root.is_dir():
        what = "is a file, not a folder; unpack archives first" if root.exists() else "does not exist"
        raise DataError(
            f"data set imagefolder: {root} {what}. Write imagefolder:PATH with the folder that holds train/ and test/, "
            "or a folder per class; --data-dir DIR is where a relative PATH starts"
        )
    left = Counter[str]()
    splits = _split_folders(root)
    if not splits:
        flat = [path.name for path in _folders(root) if path.name.lower() in SPLITS]
        if len(flat) > 1 and wanted is None:
            raise DataError(
                f"{root} holds {' and '.join(f'{name}/' for name in flat)}, parts of a data set by their names, with "
                "images but no folder per class in them; if these are the classes, type --set data.classes='[...]'"
            )
        classes, files, labels = _class_files(root, wanted, left)
        fit, held = stratified(labels, 0.2)
        parts = {
            name: ([files[place] for place in places.tolist()], labels[places])
            for name, places in (("train", fit), ("test", held))
        }
        return Found(classes, parts, _left_out(root, left))
    usual = "it should hold train/ and test/ (or val/), or else nothing but a folder per class"
    if "train" not in splits or len(splits) == 1:
        raise DataError(f"{root} holds {' and '.join(f'{path.name}/' for path in splits.values())}; {usual}")
    test = splits.get("test") or splits["val"]
    used = {splits["train"], test}
    others = sorted(path.name for path in _folders(root) if path not in used)
    classes, files, labels = _class_files(splits["train"], wanted, left)
    there = {path.name for path in _folders(test)}
    unknown = sorted(there - set(classes)) if wanted is None else []
    if unknown:
        raise DataError(f"{test} holds classes that {splits['train']} lacks: {', '.join(unknown[:5])}")
    _, test_files, test_labels = _class_files(test, classes, left, lenient=True)
    notes = _left_out(root, left)
    if others:
        beside = f"beside {splits['train'].name}/ and {test.name}/"
        notes.append(f"{root}: left out, {beside}: {', '.join(others[:5])}; {HELD_OUT}")
    return Found(classes, {"train": (files, labels), "test": (test_files, test_labels)}, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of `root` that are parts of a data set by their names, and hold folders of their own."""
    found: dict[str, Path] = {}
    for path in _folders(root):
        part = SPLITS.get(path.name.lower())
        if part is None:
            continue
        holds_images = any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir())
        if holds_images and not any(_folders(path)):
            continue  # a class of that name: trains, say
        if part in found:
            raise DataError(f"{root} holds {found[part].name}/ and {path.name}/: which one is meant? Rename the other")
        found[part] = path
    return found


def _folders(folder: Path) -> list[Path]:
    """Those that are not hidden, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_files(
    folder: Path, wanted: Sequence[str] | None, left: Counter[str], lenient: bool = False
) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Names of the class folders in `folder`, all their images in order, and the labels `(N,)`. What is left out is
    counted in `left`, by ending. `lenient`: a class may have no images."""
    found = _folders(folder)
    left.update(_ending(entry) for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no folders; it should hold one folder of images per class")
    if wanted is None:
        _check_level(folder, found)
    names = [path.name for path in found] if wanted is None else list(wanted)
    if wanted is not None and not lenient and (missing := [name for name in names if not (folder / name).is_dir()]):
        raise DataError(f"{folder} has no folder for the class {', '.join(missing[:5])}; "
                        f"it has {', '.join(path.name for path in found[:20])}")  # fmt: skip
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(_images_below(folder / name, left))
        if not images and not lenient:
            raise DataError(f"{folder / name} holds no images ({', '.join(SUFFIXES)})")
        files += images
        labels += [label] * len(images)
    return tuple(names), files, torch.tensor(labels, dtype=torch.int64)


def _check_level(folder: Path, found: Sequence[Path]) -> None:
    """Raise DataError where the class folders seem to lie one level lower: a single folder, or folders that hold no
    images but the same folders each."""
    inner = [tuple(path.name for path in _folders(one)) for one in found]
    bare = not any(entry.suffix.lower() in SUFFIXES for one in found for entry in one.iterdir())
    if len(found) == 1:
        # Absolute: --data-dir is where a relative one starts.
        name = f"--dataset {shlex.quote(f'imagefolder:{found[0].absolute()}')}"
        todo = f"move them to {folder}" if folder.name.lower() in SPLITS else f"type {name}"
        below = f"; its folders {', '.join(inner[0][:5])} look like the classes: {todo}"
        raise DataError(
            f"{folder} holds one folder, {found[0].name}/, which makes one class{below if inner[0] else ''}"
        )
    if bare and inner[0] and len(set(inner)) == 1:
        raise DataError(
            f"{folder} holds {', '.join(f'{path.name}/' for path in found[:5])}, each with the folders "
            f"{', '.join(inner[0][:5])}: these look like the classes. Parts are called train/ and test/ (or val/); if "
            f"{found[0].name} and so on are the classes, type --set data.classes=[...] with their names"
        )


def _left_out(root: Path, left: Counter[str]) -> list[str]:
    if not left:
        return []
    endings = ", ".join(f"{count} {ending}" for ending, count in left.most_common(5)) + ", ..." * (len(left) > 5)
    return [f"{root}: {left.total()} files are left out ({endings}); read are {', '.join(SUFFIXES)} in class folders"]


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without ending"


def _images_below(folder: Path, left: Counter[str]) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                left[_ending(path)] += 1
            elif not path.is_file():
                raise DataError(f"{path} is not a file, but a FIFO, a device, or a link to something of that kind")
            else:
                yield path
