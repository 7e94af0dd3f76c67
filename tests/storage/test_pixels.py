"""Decoded images in the cache: kept whole or not at all, made once by whoever comes first, the oldest removed first."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rkd.core.types import Shape
from rkd.storage import pixels
from rkd.storage.pixels import Pixels, kept_pixels

IMAGES = np.arange(10 * 3 * 4 * 4, dtype=np.uint8).reshape(10, 3, 4, 4)
SIZE = IMAGES.size + 128


def never() -> Any:
    raise AssertionError("they are there already")


def making(images: Pixels = IMAGES, made: list[int] | None = None) -> Callable[[], tuple[Shape, Iterable[Pixels]]]:
    def make() -> tuple[Shape, Iterable[Pixels]]:
        if made is not None:
            made.append(1)
        return (3, 4, 4), (images[start : start + 4] for start in range(0, len(images), 4))

    return make


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "decoded").iterdir())


def test_made_once_and_mapped(cache: Path) -> None:
    first, why = kept_pixels("a", 10, 2**20, making())
    assert first is not None and why == "" and np.array_equal(first, IMAGES)
    again, _ = kept_pixels("a", 10, 2**20, never)
    assert isinstance(again, np.memmap) and np.array_equal(again, IMAGES)
    again[:] = 0  # a training may, and the file stays as it is
    assert np.array_equal(kept_pixels("a", 10, 2**20, never)[0], IMAGES)
    assert files(cache) == ["a.npy"]


def test_two_at_once_make_them_once(cache: Path) -> None:
    made: list[int] = []

    def slowly() -> tuple[Shape, Iterable[Pixels]]:
        time.sleep(0.2)
        return making(made=made)()

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(kept_pixels("a", 10, 2**20, slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and all(np.array_equal(images, IMAGES) for images, _ in found)


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt(), ValueError("no image")])
def test_half_written_is_not_kept(cache: Path, error: BaseException) -> None:
    def make() -> tuple[Shape, Iterable[Pixels]]:
        def blocks() -> Iterable[Pixels]:
            yield IMAGES[:4]
            raise error

        return (3, 4, 4), blocks()

    if isinstance(error, OSError):
        assert kept_pixels("a", 10, 2**20, make) == (None, "the disk is full")
    else:
        with pytest.raises(type(error)):
            kept_pixels("a", 10, 2**20, make)
    assert files(cache) == []
    assert kept_pixels("a", 10, 2**20, making(IMAGES[:9])) == (None, "some of them are missing")
    assert np.array_equal(kept_pixels("a", 10, 2**20, making())[0], IMAGES)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_others(path: Path) -> None:
    np.save(path, IMAGES[:5])


def floats(path: Path) -> None:
    np.save(path, IMAGES.astype(np.float32))


def pickled(path: Path) -> None:
    np.save(path, np.array([{}] * 10), allow_pickle=True)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [torn, of_others, floats, pickled, fifo, lambda path: path.write_bytes(b"")])
def test_what_lies_there_is_not_trusted(cache: Path, spoil: Callable[[Path], None]) -> None:
    kept_pixels("a", 10, 2**20, making())
    spoil(cache / "decoded" / "a.npy")
    assert np.array_equal(kept_pixels("a", 10, 2**20, making())[0], IMAGES)


def test_the_oldest_make_room(cache: Path) -> None:
    for age, name in enumerate(["old", "older"]):
        kept_pixels(name, 10, 3 * SIZE, making())
        os.utime(cache / "decoded" / f"{name}.npy", (1000 - age, 1000 - age))
    kept_pixels("old", 10, 3 * SIZE, never)
    kept_pixels("new", 10, int(2.5 * SIZE), making())
    assert files(cache) == ["new.npy", "old.npy"]
    found, why = kept_pixels("large", 10, 100, making())
    assert found is None and "at most" in why and files(cache) == ["new.npy", "old.npy"]


def test_a_cache_that_can_be_read_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_pixels("a", 10, 2**20, making())

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refused)
    assert np.array_equal(kept_pixels("a", 10, 2**20, never)[0], IMAGES)


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file in its place")
    found, why = kept_pixels("a", 10, 2**20, making())
    assert found is None and why
    cache.unlink()
    monkeypatch.setattr(pixels, "RESERVE", 2**62)
    assert kept_pixels("a", 10, 2**20, making()) == (None, "too little of the disk is free")
