"""Augmentations against plain Python loops, their statistics, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rkd.core.errors import ConfigError
from rkd.core.random import Noise
from rkd.core.types import Batch
from rkd.data.dataset import ArraySplit
from rkd.data.loader import Loader
from rkd.plugins.augments import autoaugment, crop, cropshift, cutmix, cutout, flip, idbh, mixup, random_erasing

ALL = {
    "crop": crop.Crop(),
    "flip": flip.Flip(),
    "cutout": cutout.Cutout(length=4),
    "mixup": mixup.Mixup(classes=10),
    "cutmix": cutmix.CutMix(classes=10),
    "cropshift": cropshift.CropShift(),
    "random-erasing": random_erasing.RandomErasing(),
    "idbh": idbh.Idbh(),
    "autoaugment": autoaugment.AutoAugment(),
}
MIXES = {"mixup", "cutmix"}


def make(count: int = 64, height: int = 9, width: int = 12, channels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(count)
    x = torch.rand(count, channels, height, width, generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    return Batch(x, y, torch.arange(count), {"weak": x.flip(-1)})


def noise(batch: Batch, key: int = 5) -> Noise:
    return Noise(key, batch.index)


@pytest.mark.parametrize("module", [crop, flip, cutout, mixup])
def test_the_hook_gives_a_described_component(module):
    (name, component), *_ = module.rkd_augments().items()
    assert type(ALL[name]) is component
    assert component.__doc__.strip().splitlines()[0].endswith((".", ";"))


@pytest.mark.parametrize("name", ALL)
def test_images_stay_images_and_the_rest_stays(name):
    batch = make()
    before = batch.x.clone()
    out = ALL[name](batch, noise(batch))
    assert out.x.shape == batch.x.shape and out.x.dtype == torch.float32
    assert out.x.min() >= 0 and out.x.max() <= 1
    assert not torch.equal(out.x, batch.x)
    assert torch.equal(batch.x, before), "the input was changed in place"
    assert torch.equal(out.index, batch.index)
    assert torch.equal(out.views["weak"], batch.views["weak"])
    if name not in MIXES:
        assert torch.equal(out.y, batch.y)


@pytest.mark.parametrize("name", ALL)
def test_only_the_noise_decides(name):
    batch = make()
    torch.manual_seed(1)
    first = ALL[name](batch, noise(batch))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = ALL[name](batch, noise(batch))
    assert torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
    assert not torch.equal(first.x, ALL[name](batch, noise(batch, key=6)).x)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("name", sorted(ALL.keys() - MIXES))
def test_an_image_gets_the_same_in_any_batch(name):
    batch = make()
    whole = ALL[name](batch, noise(batch)).x
    some = batch.select(torch.tensor([40, 3, 17]))
    assert torch.equal(ALL[name](some, noise(some)).x, whole[[40, 3, 17]])


def test_mixup_does_not_depend_on_the_order_of_the_batch():
    batch = make()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = batch.select(order)
    whole, parts = ALL["mixup"](batch, noise(batch)), ALL["mixup"](shuffled, noise(shuffled))
    assert torch.equal(parts.x, whole.x[order]) and torch.equal(parts.y, whole.y[order])


@pytest.mark.parametrize("padding", [0, 1, 4, 11])
@pytest.mark.parametrize(("height", "width"), [(9, 12), (8, 8), (5, 1)])
def test_crop_equals_a_plain_loop(padding, height, width):
    x = make(height=height, width=width).x
    generator = torch.Generator().manual_seed(3)
    down, right = torch.randint(0, 2 * padding + 1, (2, len(x)), generator=generator)
    expected = []
    for image, top, left in zip(x, down.tolist(), right.tolist(), strict=True):
        padded = F.pad(image, (padding,) * 4)
        expected.append(padded[:, top : top + height, left : left + width])
    assert torch.equal(crop.shifted(x, down, right, padding), torch.stack(expected))


def test_crop_shifts_are_uniform():
    """The place of one bright pixel shows the shift: 81 cells, 400 expected in each."""
    count = 81 * 400
    x = torch.zeros(count, 1, 9, 9)
    x[:, :, 4, 4] = 1
    batch = Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    out = crop.Crop(padding=4)(batch, noise(batch)).x
    assert torch.equal(out.sum((1, 2, 3)), torch.ones(count))
    cells = out.sum((0, 1)).flatten()
    chi2 = ((cells - 400) ** 2 / 400).sum()
    assert chi2 < 135  # 80 degrees of freedom: 99.99 %


def test_crop_without_padding_changes_nothing():
    batch = make()
    assert torch.equal(crop.Crop(padding=0)(batch, noise(batch)).x, batch.x)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_flip_mirrors_a_share_p(p):
    batch = make(count=20_000, height=2, width=3, channels=1)
    out = flip.Flip(p=p)(batch, noise(batch)).x
    mirrored = (out == batch.x.flip(-1)).flatten(1).all(1)
    kept = (out == batch.x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert abs(mirrored.float().mean().item() - p) <= 4 * (p * (1 - p) / 20_000) ** 0.5


@pytest.mark.parametrize("length", [0, 1, 4, 5, 40])
def test_cutout_equals_the_official_loop(length):
    batch = make()
    height, width = batch.x.shape[-2:]
    place = noise(batch).uniform((2,))
    expected = batch.x.clone()
    for image, (v, u) in zip(expected, place.tolist(), strict=True):
        y, x = int(v * height), int(u * width)
        half = length // 2
        image[:, max(y - half, 0) : min(y + half, height), max(x - half, 0) : min(x + half, width)] = 0.5
    assert torch.equal(cutout.Cutout(length=length, fill=0.5)(batch, noise(batch)).x, expected)


def test_mixup_blends_images_and_labels_alike():
    """Images that show their label in one pixel per class must come out equal to their soft labels."""
    y = torch.arange(64) % 10
    batch = Batch(F.one_hot(y, 10).float().view(64, 1, 2, 5), y, torch.arange(64))
    out = mixup.Mixup(alpha=0.8, classes=10)(batch, noise(batch))
    assert out.y.dtype == torch.float32
    assert torch.allclose(out.y, out.x.flatten(1), atol=1e-6)
    assert torch.allclose(out.y.sum(1), torch.ones(64), atol=1e-6)


def test_mixup_makes_one_ring_of_partners():
    count = 16
    batch = Batch(torch.eye(count).view(count, 1, 4, 4), torch.arange(count), torch.arange(count))
    out = mixup.Mixup(alpha=1.0, classes=count)(batch, noise(batch)).y
    partner = (out - torch.diag(out.diagonal())).argmax(1)
    seen, place = set(), 0
    while place not in seen:
        seen.add(place)
        place = int(partner[place])
    assert len(seen) == count


@pytest.mark.parametrize("alpha", [0.001, 0.2, 0.5, 1.0, 8.0])
def test_mixup_draws_from_the_symmetric_beta_distribution(alpha):
    from scipy import stats

    draws = Noise(9, torch.arange(20_000)).uniform((2,))
    lam = mixup.symmetric_beta(alpha, draws[:, 0], draws[:, 1])
    assert bool(lam.isfinite().all()) and lam.min() >= 0 and lam.max() <= 1
    assert abs(float(lam.mean()) - 0.5) < 0.015
    assert abs(float(lam.var()) - 1 / (4 * (2 * alpha + 1))) < 0.004
    if alpha >= 0.5:  # below, float32 rounds more than a few draws to exactly 1
        assert stats.kstest(lam.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_takes_soft_labels_as_they_are():
    batch = make()
    soft = Batch(batch.x, F.one_hot(batch.y, 10).float(), batch.index)
    assert torch.equal(mixup.Mixup()(soft, noise(soft)).y, ALL["mixup"](batch, noise(batch)).y)


@pytest.mark.parametrize(
    ("make_it", "says"),
    [
        (lambda: crop.Crop(padding=-1), "padding"),
        (lambda: flip.Flip(p=1.5), "probability"),
        (lambda: cutout.Cutout(length=-2), "length"),
        (lambda: cutout.Cutout(fill=2), "fill"),
        (lambda: mixup.Mixup(alpha=0), "alpha"),
        (lambda: mixup.Mixup()(make(), noise(make())), "number of classes"),
        (lambda: mixup.Mixup(classes=3)(make(), noise(make())), "classes is 3"),
    ],
)
def test_senseless_options_are_refused(make_it, says):
    with pytest.raises(ConfigError, match=says):
        make_it()


def test_a_loader_repeats_its_augmented_batches():
    batch = make()
    split = ArraySplit(batch.x, batch.y)
    loaders = [Loader(split, 16, seed=3, augments=list(ALL.values())) for _ in range(2)]
    first, second = ([b.x for b in loader.batches(epoch=1)] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = [b.x for b in loaders[0].batches(epoch=2)]
    assert not torch.equal(torch.cat(first), torch.cat(other))
