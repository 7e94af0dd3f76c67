"""CropShift, IDBH, AutoAugment, random erasing and CutMix: against torchvision's operations and plain loops, image by
image, with the same draws."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import autoaugment as torchvisions
from torchvision.transforms import functional as tv

from rkd.core.errors import ConfigError
from rkd.core.random import Noise, key
from rkd.core.types import Batch
from rkd.plugins.augments import _operations as operations
from rkd.plugins.augments import autoaugment, cropshift, cutmix, idbh, random_erasing
from rkd.plugins.augments.autoaugment import AutoAugment
from rkd.plugins.augments.cropshift import CropShift
from rkd.plugins.augments.cutmix import CutMix
from rkd.plugins.augments.idbh import Idbh
from rkd.plugins.augments.random_erasing import RandomErasing
from rkd.registry.catalog import Catalog
from rkd.registry.recipes import read_recipe
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve

from ..test_no_waiting import NoWaiting


def make(count: int = 64, height: int = 16, width: int = 20, channels: int = 3) -> Batch:
    """8-bit images of all brightnesses and contrasts."""
    generator = torch.Generator().manual_seed(count)
    x = torch.rand(count, channels, height, width, generator=generator)
    spans = torch.rand(2, count, 1, 1, 1, generator=generator)
    x = ((spans[0] * x + (1 - spans[0]) * spans[1]) * 255).round() / 255
    return Batch(x, torch.randint(0, 10, (count,), generator=generator), torch.arange(count))


def noise(batch: Batch, key: int = 5) -> Noise:
    return Noise(key, batch.index)


def bytes_of(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def sheared(x: Tensor, right: float, down: float) -> Tensor:
    angles = [math.degrees(math.atan(right)), math.degrees(math.atan(down))]
    return tv.affine(x, 0.0, [0, 0], 1.0, angles, fill=[0.0] * len(x))


REFERENCE = {
    operations.brightness: tv.adjust_brightness,
    operations.color: tv.adjust_saturation,
    operations.contrast: tv.adjust_contrast,
    operations.sharpness: tv.adjust_sharpness,
    operations.autocontrast: lambda x, _: tv.autocontrast(x),
    operations.equalize: lambda x, _: tv.equalize(bytes_of(x)).float() / 255,
    operations.posterize: lambda x, bits: tv.posterize(bytes_of(x), round(bits)).float() / 255,
    operations.solarize: tv.solarize,
    operations.invert: lambda x, _: tv.invert(x),
    operations.rotate: lambda x, degrees: tv.rotate(x, degrees, fill=[0.0] * len(x)),
    operations.shear_x: lambda x, slope: sheared(x, slope, 0.0),
    operations.shear_y: lambda x, slope: sheared(x, 0.0, slope),
    operations.translate_x: lambda x, share: tv.affine(x, 0.0, [int(share * x.shape[2]), 0], 1.0, [0.0, 0.0]),
    operations.translate_y: lambda x, share: tv.affine(x, 0.0, [0, int(share * x.shape[1])], 1.0, [0.0, 0.0]),
}
RANGES = {
    operations.posterize: (1, 8),
    operations.rotate: (-45, 45),
    operations.solarize: (0, 1),
    **dict.fromkeys((operations.brightness, operations.color, operations.contrast, operations.sharpness), (0, 2)),
}


def tolerance(name: str) -> float:
    """The mean of contrast is a whole level; luminance has three digits there and four here."""
    return {"contrast": 1.1 / 255, "color": 2e-4}.get(name.lower(), 1e-6)


def same(made: Tensor, expected: Tensor, name: str) -> bool:
    """But for single pixels that come from exactly between two."""
    return float(((made - expected).abs() > tolerance(name)).float().mean()) < 0.004


@pytest.mark.parametrize("operation", REFERENCE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("height", "width", "channels"), [(16, 20, 3), (9, 9, 1), (33, 32, 3)])
def test_operations_are_torchvisions(operation, height: int, width: int, channels: int) -> None:
    """The images go through one call, each with a strength of its own."""
    if operation is operations.color and channels == 1:
        pytest.skip("a grey image has no colour, and torchvision makes three channels of it")
    batch = make(24, height, width, channels)
    low, high = RANGES.get(operation, (-0.447, 0.443))
    strength = torch.linspace(low, high, 24)
    made = operation(batch.x, strength.view(-1, 1, 1, 1))
    assert made.min() >= 0 and made.max() <= 1
    for image, one, expected in zip(batch.x, made, strength.tolist(), strict=True):
        assert same(one, REFERENCE[operation](image, expected), operation.__name__)


def test_images_of_a_single_colour_stay() -> None:
    x = torch.full((2, 3, 4, 4), 0.3)
    for operation in (operations.autocontrast, operations.equalize):
        assert torch.allclose(operation(x, torch.zeros(2, 1, 1, 1)), x)


@pytest.mark.parametrize(("low", "high"), [(0, 10), (4, 4), (0, 40)])
@pytest.mark.parametrize(("height", "width"), [(16, 20), (5, 5)])
def test_cropshift_is_the_authors_steps(low: int, high: int, height: int, width: int) -> None:
    """Crop, pad on all sides, crop again."""
    batch = make(height=height, width=width)
    most, least = min(high, height - 1, width - 1), min(low, height - 1, width - 1)
    expected = []
    for image, u in zip(batch.x, noise(batch).uniform((6,)).tolist(), strict=True):
        strength = least + int(u[0] * (most - least + 1))
        columns = int(u[1] * (strength + 1))
        rows = strength - columns
        left, top = int(u[2] * (columns + 1)), int(u[3] * (rows + 1))
        part = tv.crop(image, top, left, height - rows, width - columns)
        part = F.pad(part, (columns, columns, rows, rows))
        expected.append(tv.crop(part, int(u[5] * (rows + 1)), int(u[4] * (columns + 1)), height, width))
    assert torch.equal(CropShift(low, high)(batch, noise(batch)).x, torch.stack(expected))


@pytest.mark.parametrize("options", [{}, {"p": 1.0, "scale": (0.02, 0.5)}, {"scale": (0.9, 1.0), "fill": 0.5}])
def test_random_erasing_equals_a_plain_loop(options: dict) -> None:
    batch = make()
    _, _, height, width = batch.x.shape
    erasing = RandomErasing(**options)
    source = noise(batch)
    sizes = source.uniform((10,), *erasing.scale).tolist()
    shapes = source.uniform((10,), *map(math.log, erasing.ratio)).tolist()
    expected = batch.x.clone()
    for image, size, shape, u in zip(expected, sizes, shapes, source.uniform((3,)).tolist(), strict=True):
        for share, logarithm in zip(size, shape, strict=True):
            area, ratio = share * height * width, math.exp(logarithm)
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                top, left = int(u[0] * (height - rows + 1)), int(u[1] * (width - columns + 1))
                if u[2] < erasing.p:
                    image[:, top : top + rows, left : left + columns] = erasing.fill
                break
    made = erasing(batch, noise(batch)).x
    assert torch.equal(made, expected)
    changed = (made != batch.x).flatten(1).any(1)
    assert bool(changed.any()) and bool(changed.all()) == (erasing.p == 1)


def test_erased_rectangles_have_the_sizes_of_torchvisions() -> None:
    """Means of 1,500 areas each: 0.173 of the image, give or take 0.003."""
    batch = Batch(torch.ones(1500, 1, 32, 32), torch.zeros(1500).long(), torch.arange(1500))
    ours = 1 - RandomErasing(p=1)(batch, noise(batch)).x.mean((1, 2, 3))
    torch.manual_seed(0)
    erase = transforms.RandomErasing(p=1)
    theirs = torch.stack([1 - erase(image).mean() for image in batch.x])
    assert abs(float(ours.mean() - theirs.mean())) < 0.012
    assert abs(float(ours.std() - theirs.std())) < 0.012


@pytest.mark.parametrize("version", ["weak", "strong", "svhn"])
def test_idbh_equals_a_plain_loop(version: str) -> None:
    batch = make(400)
    svhn = version == "svhn"
    source = noise(batch)
    before = CropShift(0, 8 if svhn else 10)(idbh.Flip()(batch, source), source).x
    names = list(idbh.CHANGES)
    limits = list(itertools.accumulate(change[1 + svhn] for change in idbh.CHANGES.values()))
    seen, changed = set(), []
    for image, (roll, share, minus) in zip(before, source.uniform((3,)).tolist(), strict=True):
        name = names[sum(roll >= limit for limit in limits)]
        sign = -1 if minus < 0.5 else 1
        strength = {
            **dict.fromkeys(("brightness", "contrast"), 0.5 + 1.4 * share),
            "rotate": sign * (1 + int(share * (30 if svhn else 10))),
            **dict.fromkeys(("shear_x", "shear_y"), sign * math.tan(0.05 + share * (0.3 if svhn else 0.1))),
        }.get(name, 0.1 + 1.8 * share)
        seen.add(name)
        changed.append(REFERENCE[idbh.CHANGES[name][0]](image, strength))
    assert seen == set(idbh.CHANGES)
    after = RandomErasing({"weak": 0.5}.get(version, 1.0), (0.02, 0.5 if svhn else 0.33))
    expected = after(Batch(torch.stack(changed), batch.y, batch.index), source).x
    made = Idbh(version)(batch, noise(batch)).x
    assert float(((made - expected).abs() > 1.1 / 255).float().mean()) < 0.001


def test_idbh_draws_each_change_as_often_as_the_authors() -> None:
    for place, published in ((1, {"shear": 0.125, "rotate": 0.125}), (2, {"shear": 0.3, "rotate": 0.3})):
        shares = {name: change[place] for name, change in idbh.CHANGES.items()}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["shear_x"] + shares["shear_y"] == pytest.approx(published["shear"])
        assert shares["rotate"] == published["rotate"]


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_autoaugment_is_torchvisions(policy: str) -> None:
    batch = make(400)
    theirs = torchvisions.AutoAugment(torchvisions.AutoAugmentPolicy(policy))
    ranges = theirs._augmentation_space(10, tuple(batch.x.shape[2:]))
    made = AutoAugment(policy)(batch, noise(batch)).x
    wrong, seen = 0, set()
    for image, one, u in zip(batch.x, made, noise(batch).uniform((5,)).tolist(), strict=True):
        names = []
        for turn, (name, probability, magnitude) in enumerate(theirs.policies[int(u[0] * 25)]):
            if u[1 + turn] < probability:
                magnitudes, signed = ranges[name]
                strength = float(magnitudes[magnitude]) if magnitude is not None else 0.0
                strength = -strength if signed and u[3 + turn] < 0.5 else strength
                image = after(image, name, strength)
                names.append(name)
        seen |= set(names)
        wrong += float(((one - image).abs() > 2.5 / 255).float().mean()) > 0.01
    # A level more or less before an `Equalize` or `Posterize` may become several.
    assert wrong <= 8
    assert seen == {name for pair in theirs.policies for name, p, _ in pair if p > 0}


def test_autoaugment_makes_a_view_beside_the_images() -> None:
    batch = make()
    weak = replace(batch, views={"weak": batch.x})
    out = AutoAugment(view="augmented")(weak, noise(batch))
    assert torch.equal(out.x, batch.x) and torch.equal(out.views["weak"], batch.x)
    assert torch.equal(out.views["augmented"], AutoAugment()(batch, noise(batch)).x)
    for name in ("clean", ""):
        with pytest.raises(ConfigError, match="further view"):
            AutoAugment(view=name)


def test_cropshift_and_then_idbh(catalog: Catalog) -> None:
    """By the recipe's settings: the data's own augmentations out, one after half of the epochs in."""
    table = {
        "loss": {"name": "ce"},
        "student": {"model": "small-cnn", "width": 4},
        "data": {"name": "digits", "validation": 0},
        "augments": read_recipe("cifar10-rslad-cropshift-idbh-resnet18")["augments"],
        "epochs": 4,
    }
    run = build(resolve(table, catalog), catalog, {})
    index = torch.arange(6)
    plain = run.data.train.images(index)
    for epoch in range(4):
        batch = Batch(plain, run.data.train.labels[index], index)
        noises = [Noise(key(0, "augment", epoch, place), index) for place in range(3)]
        first = CropShift()(idbh.Flip()(batch, noises[0]), noises[1])
        expected = first if epoch < 2 else Idbh()(batch, noises[2])
        assert torch.equal(run.loader.batch(index, epoch).x, expected.x)


def after(image: Tensor, name: str, strength: float) -> Tensor:
    """torchvision's operation, on 8 bits where that is what it takes."""
    if name in ("Equalize", "Posterize"):
        return torchvisions._apply_op(bytes_of(image), name, strength, tv.InterpolationMode.NEAREST, None).float() / 255
    strength = strength / 255 if name == "Solarize" else strength
    return torchvisions._apply_op(image, name, strength, tv.InterpolationMode.NEAREST, [0.0] * 3)


def test_cutmix_labels_are_shares_of_pixels() -> None:
    """Images whose pixels are all their own number; 0 to 63 of 64."""
    count = 64
    x = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 8, 12).float() / count
    batch = Batch(x.contiguous(), torch.arange(count), torch.arange(count))
    out = CutMix(classes=count)(batch, noise(batch))
    partners = set()
    for sample, (image, label) in enumerate(zip(out.x, out.y, strict=True)):
        found = F.one_hot((image * count).round().long().flatten(), count).float().mean(0)
        assert torch.allclose(label, found, atol=1e-6)
        others = [k for k in label.nonzero().flatten().tolist() if k != sample]
        assert len(others) <= 1
        partners.update(others)
        inside = (image[0] * count).round() != sample
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None]), "one box"
    assert len(partners) > 50
    kept = out.y.diagonal()
    assert 0.5 < float(kept.mean()) < 0.85 and float(kept.min()) < 0.45  # uniform, less what is cut off at the edges


def test_cutmix_with_a_probability() -> None:
    batch = make(400)
    out = CutMix(p=0.3, classes=10)(batch, noise(batch))
    changed = (out.x != batch.x).flatten(1).any(1)
    assert 0.2 < float(changed.float().mean()) < 0.36
    assert torch.equal(out.y[~changed], F.one_hot(batch.y, 10).float()[~changed])


def test_cutmix_does_not_depend_on_the_order_of_the_batch() -> None:
    batch = make()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = batch.select(order)
    whole, parts = (CutMix(classes=10)(b, noise(b)) for b in (batch, shuffled))
    assert torch.equal(parts.x, whole.x[order]) and torch.equal(parts.y, whole.y[order])


def test_cutmix_takes_soft_labels_as_they_are() -> None:
    batch = make()
    soft = Batch(batch.x, F.one_hot(batch.y, 10).float(), batch.index)
    assert torch.equal(CutMix()(soft, noise(soft)).y, CutMix(classes=10)(batch, noise(batch)).y)


@pytest.mark.parametrize("component", [CropShift, RandomErasing])  # the others: tests/device/test_training.py
def test_nothing_waits_for_a_device(component) -> None:
    augment = component()
    batch = make()
    with NoWaiting():
        augment(batch, noise(batch))


@pytest.mark.parametrize(
    ("make_it", "says"),
    [
        (lambda: CropShift(-1), "low <= high"),
        (lambda: CropShift(5, 4), "low <= high"),
        (lambda: RandomErasing(p=2), "probability"),
        (lambda: RandomErasing(scale=(0.5, 0.1)), "scale"),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), "ratio"),
        (lambda: RandomErasing(fill=-1), "fill"),
        (lambda: CutMix(alpha=0), "cutmix: alpha"),
        (lambda: CutMix(p=-0.1), "cutmix: p"),
        (lambda: CutMix(classes=0), "cutmix: classes"),
        (lambda: CutMix()(make(), noise(make())), "augments.cutmix.classes"),
        (lambda: CutMix(classes=3)(make(), noise(make())), "classes is 3"),
    ],
)
def test_senseless_options_are_refused(make_it, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_it()


@pytest.mark.parametrize("module", [autoaugment, cropshift, cutmix, idbh, random_erasing])
def test_each_is_registered_and_described(module) -> None:
    ((_, component),) = module.rkd_augments().items()
    assert component.__doc__.strip().splitlines()[0].endswith((".", ")."))
