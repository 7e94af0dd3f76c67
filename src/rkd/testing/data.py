"""Data sets, augmentations and corruptions."""

import itertools

import torch
from torch import Tensor

from rkd.core.errors import RkdError
from rkd.core.random import Noise
from rkd.core.traits import declared, name_of
from rkd.core.types import Batch
from rkd.data.augment import Augment, AugmentTraits, Variants
from rkd.data.dataset import Dataset, Split, check_images
from rkd.evaluation.corruptions import SEVERITIES, Corruption
from rkd.registry.config import parse
from rkd.registry.defaults import with_names

from .state import promise, require, untouched
from .tiny import SHAPE, tiny_batch


@promise
def check_dataset(data: Dataset) -> None:
    """Raise AssertionError unless `data`, what a source returns, is fit to train on. Looks at a few images only."""
    who = f"data set {data.name!r}"
    require(isinstance(data, Dataset), f"a source must return an rkd.plugin.Dataset, got {type(data).__name__}")
    require(data.name, "a data set needs a name")
    require(len(data.classes) >= 2, f"{who} needs two or more classes, got {data.classes!r}")
    require(len(set(data.classes)) == len(data.classes), f"{who}: two classes share a name")
    require(all(value > 0 for value in data.std), f"{who}: std must be positive, got {data.std}")
    require(data.threat.eps > 0 and data.threat.step_size > 0, f"{who}: the threat's eps and step must be positive")
    require(data.threat.norm != "Linf" or data.threat.eps <= 1, f"{who}: an Linf radius is at most 1")
    require(data.fingerprint, f"{who} has no fingerprint, under which prepared teachers are cached")
    try:
        parse(with_names(data.defaults))
        for role, custom in data.teachers.items():
            require(custom.get("model"), f"{who}: teachers.{role} names no model")
            for recipe in ("recipe", "large"):
                parse(with_names(custom.get(recipe, {})))
    except RkdError as error:
        raise AssertionError(f"{who}: its defaults are no valid settings: {error}") from None
    with untouched(who=who):
        for name, split in (("training", data.train), ("test", data.test)):
            _check_split(split, data, f"the {name} part of {who}")


@promise
def check_augment(augment: Augment, *, soft: bool = False) -> None:
    """Raise AssertionError unless `augment` keeps the promises of `rkd.plugin.Augment`.

    `soft`: whether it can be given soft labels as well.
    """
    who = type(augment).__name__
    for batch in (tiny_batch(), *((tiny_batch(soft=True),) if soft else ())):
        kept = Batch(batch.x.clone(), batch.y.clone(), batch.index.clone())
        with untouched(who=who):
            out = augment(batch, Noise(3, batch.index))
        for name in ("x", "y", "index"):
            same = torch.equal(getattr(batch, name), getattr(kept, name))
            require(same, f"{who} must return a new batch, but changed {name} of the one it was given")
        require(isinstance(out, Batch), f"{who} must return a Batch, got {type(out).__name__}")
        require(torch.equal(out.index, kept.index), f"{who} must keep the samples and their order")
        for name, images in {"x": out.x, **out.views}.items():
            require(
                images.shape == batch.x.shape and images.dtype == torch.float32,
                f"{who}: {name} must stay float32 {tuple(batch.x.shape)}, got {images.dtype} {tuple(images.shape)}",
            )
            check_images(images)
        _check_labels(out.y, batch, who)
        again = augment(batch, Noise(3, batch.index))
        require(
            torch.equal(again.x, out.x) and torch.equal(again.y, out.y),
            f"{who} does something else the second time: draw from the noise it is given alone",
        )
        if not declared(augment, AugmentTraits).mixes:
            keep = torch.tensor([1, 4, 6])
            part = augment(batch.select(keep), Noise(3, batch.index[keep]))
            require(
                torch.allclose(part.x, out.x[keep], atol=1e-6) and torch.allclose(part.y, out.y[keep]),
                f"{who}: what becomes of a sample depends on the others; such an augmentation must say mixes = True",
            )
    if hasattr(augment, "variants"):
        Variants.of([augment], SHAPE)


@promise
def check_corruption(corruption: Corruption) -> None:
    """Raise AssertionError unless `corruption` keeps the promises of `rkd.plugin.Corruption`."""
    who = name_of(corruption)
    for shape in ((3, 16, 16), (1, 8, 8), (2, 9, 12), (4, 33, 20)):
        batch = tiny_batch(6, shape)
        kept = batch.x.clone()
        distances = []
        for severity in SEVERITIES:
            with untouched(who=who):
                images = corruption(batch.x, severity, Noise(3, batch.index))
            what = f"{who} at severity {severity}"
            require(torch.equal(batch.x, kept), f"{what} must not change the images it is given")
            require(
                isinstance(images, torch.Tensor) and images.shape == kept.shape and images.dtype == torch.float32,
                f"{what} must return float32 images {tuple(kept.shape)}, got {getattr(images, 'dtype', images)!r} "
                f"{tuple(getattr(images, 'shape', ()))}",
            )
            check_images(images)
            again = corruption(batch.x, severity, Noise(3, batch.index))
            require(torch.equal(again, images), f"{what} does something else the second time: draw from the noise")
            for keep in (torch.tensor([5, 0, 3]), torch.tensor([2])):
                part = corruption(batch.x[keep], severity, Noise(3, batch.index[keep]))
                same = torch.allclose(part, images[keep], atol=1e-6)
                require(same, f"{what}: what becomes of an image depends on the other images of the batch")
            distances.append(float((images - kept).flatten(1).norm(dim=1).mean()))
        shown = ", ".join(f"{distance:.3g}" for distance in distances)
        rising = all(b >= 0.99 * a for a, b in itertools.pairwise(distances))
        require(
            rising and distances[4] > 1.05 * distances[0] > 0,
            f"{who}: the higher the severity, the farther from the image; the distances on images {shape} are {shown}",
        )
    for severity in (0, 6):
        try:
            corruption(batch.x, severity, Noise(3, batch.index))
        except (ValueError, RkdError):
            continue
        raise AssertionError(f"{who} takes {severity} for a severity; raise RkdError unless it is from 1 to 5")


def _check_split(split: Split, data: Dataset, who: str) -> None:
    require(len(split) == len(split.labels), f"{who}: {len(split)} images but {len(split.labels)} labels")
    require(split.labels.dtype == torch.int64 and split.labels.ndim == 1, f"{who}: labels must be int64 (N,)")
    index = torch.tensor([len(split) - 1, 0, len(split) // 2, 0])
    images = split.images(index)
    require(
        images.dtype == torch.float32 and tuple(images.shape) == (4, *data.shape),
        f"{who}: images must be float32 (4, {', '.join(map(str, data.shape))}), got {images.dtype} "
        f"{tuple(images.shape)}",
    )
    check_images(images)
    alone = torch.cat([split.images(place.reshape(1)) for place in index])
    require(torch.equal(images, alone), f"{who}: an image depends on which others are asked for")


def _check_labels(y: Tensor, batch: Batch, who: str) -> None:
    if y.ndim == 1:
        require(y.dtype == torch.int64 and len(y) == len(batch), f"{who}: labels must stay int64 ({len(batch)},)")
        return
    sums = y.sum(1)
    right = y.is_floating_point() and bool((y >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    require(right and len(y) == len(batch), f"{who}: soft labels must be probabilities ({len(batch)}, K)")
