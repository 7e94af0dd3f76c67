"""Corruptions against closed forms, plain loops and other people's filters."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import norm
from torch import Tensor

from rkd.core.errors import RkdError
from rkd.core.random import Noise
from rkd.evaluation.corruptions import SEVERITIES, at_severity
from rkd.plugins.corruptions import blur, contrast, jpeg, noise, resampling, weather
from rkd.testing import check_corruption, tiny_batch


def draw(count: int = 1, key: int = 3) -> Noise:
    return Noise(key, torch.arange(count))


def grey(value: float, size: int = 200) -> Tensor:
    return torch.full((1, 1, size, size), value)


NOISE: list[tuple[Callable[..., Tensor], Callable[[float], list[float]]]] = [
    (noise.gaussian_noise, lambda x: [0.04, 0.06, 0.08, 0.09, 0.10]),
    (noise.shot_noise, lambda x: [math.sqrt(x / photons) for photons in (500, 250, 100, 75, 50)]),
    (noise.speckle_noise, lambda x: [scale * x for scale in (0.06, 0.10, 0.12, 0.16, 0.20)]),
]


@pytest.mark.parametrize(("corruption", "spread"), NOISE, ids=lambda value: getattr(value, "__name__", ""))
def test_the_spread_of_noise(corruption, spread) -> None:
    """40,000 pixels of one brightness: the standard deviation is known to about one per cent."""
    for value in (0.3, 0.5):
        found = [float((corruption(grey(value), s, draw()) - value).std()) for s in SEVERITIES]
        assert found == pytest.approx(spread(value), rel=0.03)
        assert float(corruption(grey(value), 5, draw()).mean()) == pytest.approx(value, abs=0.003)


@pytest.mark.parametrize("corruption", [noise.shot_noise, noise.speckle_noise])
def test_black_stays_black(corruption) -> None:
    assert not corruption(grey(0.0), 5, draw()).any()


def test_impulse_noise_is_as_much_salt_as_pepper() -> None:
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        images = noise.impulse_noise(grey(0.5, 400), severity, draw())
        for extreme in (0, 1):
            assert float((images == extreme).double().mean()) == pytest.approx(share / 2, rel=0.08)
        assert float((images == 0.5).double().mean()) == pytest.approx(1 - share, abs=0.002)


def test_each_image_has_noise_of_its_own() -> None:
    images = noise.gaussian_noise(grey(0.5).expand(2, -1, -1, -1), 1, draw(2))
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[1:], noise.gaussian_noise(grey(0.5), 1, Noise(3, torch.tensor([1]))))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys(severity: int) -> None:
    x = tiny_batch(2, (3, 12, 17)).x
    width = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    expected = gaussian_filter(x.numpy().astype(np.float64), (0, 0, width, width), mode="nearest",
                               radius=(0, 0, math.ceil(4 * width), math.ceil(4 * width)))  # fmt: skip
    assert np.abs(blur.gaussian_blur(x, severity, draw(2)).numpy() - expected).max() < 1e-5


def point(size: int = 15) -> Tensor:
    x = torch.zeros(1, 1, size, size)
    x[0, 0, size // 2, size // 2] = 1
    return x


def test_defocus_spreads_a_point_over_a_disc() -> None:
    spots = [blur.defocus_blur(point(), s, draw())[0, 0] for s in SEVERITIES]
    for spot in spots:
        assert float(spot.sum()) == pytest.approx(1, abs=1e-5)
        for mirrored in (spot.T, spot.flip(0)):
            assert torch.allclose(spot, mirrored, atol=1e-7)
    # Radius 1.5 with next to no smoothing: three by three pixels, all alike.
    assert torch.allclose(spots[4][6:9, 6:9], torch.full((3, 3), 1 / 9), atol=1e-5)
    # Radius 0.3 is a single pixel: only the smoothing of width 0.4 is left.
    edge = math.exp(-1 / (2 * 0.4**2))
    taps = torch.tensor([edge, 1, edge]) / (1 + 2 * edge)
    assert torch.allclose(spots[0][6:9, 6:9], taps[:, None] * taps, atol=1e-6)


def test_motion_moves_a_slope_by_the_streaks_mean() -> None:
    """On a linear slope, away from the edges, blurring along a streak is a shift by its centre of mass."""
    row, column = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    x = (0.2 + 0.01 * column + 0.004 * row).expand(3, 1, -1, -1).clone()
    angles = draw(3).uniform((), -math.pi / 4, math.pi / 4)
    for severity, (reach, width) in enumerate(((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)), 1):
        weights = [math.exp(-t * t / (2 * width * width)) for t in range(reach + 1)]
        mean = sum(t * w for t, w in enumerate(weights)) / sum(weights)
        shift = mean * (0.01 * angles.cos() + 0.004 * angles.sin())
        moved = (blur.motion_blur(x, severity, draw(3)) - x)[:, 0, 12:28, 12:28]
        assert torch.allclose(moved, shift[:, None, None].expand_as(moved), atol=1e-5)
    assert len({round(float(angle), 3) for angle in angles}) == 3, "a direction for each image"


@pytest.mark.parametrize(
    "corruption",
    [blur.gaussian_blur, blur.defocus_blur, blur.motion_blur, blur.zoom_blur, blur.glass_blur, resampling.pixelate,
     resampling.elastic],
)  # fmt: skip
def test_blur_leaves_a_plain_image_alone(corruption) -> None:
    images = corruption(grey(0.37, 9), 5, draw())
    assert torch.allclose(images, torch.tensor(0.37), atol=1e-6), "also at the edges"


def test_contrast_by_hand() -> None:
    x = torch.tensor([[[[0.0, 1.0]], [[0.2, 0.4]]]])
    expected = torch.tensor([[[[0.25, 0.75]], [[0.25, 0.35]]]])
    assert torch.allclose(contrast.contrast(x, 2, draw()), expected)
    assert torch.allclose(contrast.contrast(x, 5, draw())[0, 0], torch.tensor([[0.425, 0.575]]))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_the_value_of_hsv(severity: int) -> None:
    x = tiny_batch(2, (3, 8, 8)).x
    x[0, :, 0, 0] = 0
    images = contrast.brightness(x, severity, draw(2))
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    for before, after in zip(x.permute(0, 2, 3, 1).reshape(-1, 3), images.permute(0, 2, 3, 1).reshape(-1, 3),
                             strict=True):  # fmt: skip
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        assert after.tolist() == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1)), abs=1e-5)
    assert torch.allclose(contrast.brightness(grey(0.6), severity, draw()), torch.tensor(0.6 + more)), "one channel"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_blur_is_the_mean_of_scipys_zooms(severity: int) -> None:
    x = tiny_batch(2, (3, 12, 17)).x
    row, column = np.meshgrid(np.arange(12.0), np.arange(17.0), indexing="ij")
    zooms = [1 + k / 100 for k in range(5 * severity + 1)]
    for image, found in zip(x.numpy().astype(np.float64), blur.zoom_blur(x, severity, draw(2)).numpy(), strict=True):
        for channel, one in zip(image, found, strict=True):
            places = [[5.5 + (row - 5.5) / z, 8 + (column - 8) / z] for z in zooms]
            enlarged = [map_coordinates(channel, place, order=1, mode="nearest") for place in places]
            assert np.abs(one - (channel + sum(enlarged)) / (len(zooms) + 1)).max() < 1e-5


def smooth(x: Tensor, width: float) -> np.ndarray:
    """SciPy's, of the last two axes."""
    reach = math.ceil(4 * width)
    widths, reaches = [(0,) * (x.ndim - 2) + (value, value) for value in (width, reach)]
    return gaussian_filter(x.numpy().astype(np.float64), widths, mode="nearest", radius=reaches)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_pixel_by_pixel(severity: int) -> None:
    x = tiny_batch(2, (3, 9, 12)).x
    way = ((0.4, 0.5, 0.6, 0.8, 1.0)[severity - 1] * draw(2).normal((2, 9, 12))).round()
    before = torch.from_numpy(smooth(x, 0.4))
    moved = torch.zeros_like(before)
    for b in range(2):
        for i in range(9):
            for j in range(12):
                down, across = (int(v) for v in way[b, :, i, j])
                moved[b, :, i, j] = before[b, :, min(max(i + down, 0), 8), min(max(j + across, 0), 11)]
    assert np.abs(blur.glass_blur(x, severity, draw(2)).numpy() - smooth(moved, 0.4)).max() < 1e-5
    assert bool((way != 0).any())


def test_diamond_square_point_by_point() -> None:
    """Eight by eight in plain loops over a torus, with the same random numbers."""
    rolled, decay = draw(), 1.5
    points, side, rough = {(0, 0): 0.0}, 8, 1.0
    step = side
    while step > 1:
        half, count = step // 2, side // step
        kinds = [(half, half), (0, half), (half, 0)]
        for down, right in kinds:  # centres, then the middles of the edges
            change = rolled.uniform((count, count), -rough, rough)[0]
            near = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if (down, right) != (half, half):
                near = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for i in range(count):
                for j in range(count):
                    row, column = i * step + down, j * step + right
                    around = [points[(row + a) % side, (column + b) % side] for a, b in near]
                    points[row, column] = sum(around) / 4 + float(change[i, j])
        step, rough = half, rough / decay**2
    low, high = min(points.values()), max(points.values())
    expected = torch.tensor([[(points[i, j] - low) / (high - low) for j in range(side)] for i in range(side)])
    assert torch.allclose(weather.heights(8, decay, draw())[0], expected, atol=1e-5)


def test_fog_by_its_formula() -> None:
    x = 0.8 * tiny_batch(2, (3, 12, 20)).x
    for severity, (amount, decay) in enumerate(((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), 1):
        veil = weather.heights(32, decay, draw(2))[:, None, :12, :20]
        largest = torch.stack([image.max() for image in x]).view(2, 1, 1, 1)
        expected = (x + amount * veil) * largest / (largest + amount)
        assert torch.allclose(weather.fog(x, severity, draw(2)), expected, atol=1e-6)


@pytest.mark.parametrize(("severity", "least", "kept"), [(1, 0.6, 0.95), (2, 0.5, 0.9)])
def test_how_much_snow_falls(severity: int, least: float, kept: float) -> None:
    """On black: half of 1 - k everywhere, and two layers of flakes, of which the mean is known."""
    images = weather.snow(grey(0.0, 300), severity, draw())
    assert torch.allclose(images, images.flip(2, 3), atol=1e-6)
    assert float(images.min()) == pytest.approx((1 - kept) / 2, abs=1e-6)
    low, high = (least - 0.1) / 0.2, (1 - 0.1) / 0.2
    mean = 0.1 * (norm.cdf(high) - norm.cdf(low)) + 0.2 * (norm.pdf(low) - norm.pdf(high)) + norm.sf(high)
    assert float(images.mean()) == pytest.approx((1 - kept) / 2 + 2 * mean, rel=0.05)


def test_snow_makes_pale() -> None:
    """Where no flake falls: towards the brighter grey."""
    colours = torch.tensor([0.1, 0.5, 0.3]).view(1, 3, 1, 1)
    images = weather.snow(colours.expand(1, 3, 100, 100), 1, draw())
    brighter = 1.5 * (0.299 * 0.1 + 0.587 * 0.5 + 0.114 * 0.3) + 0.5
    assert images.amin((2, 3))[0].tolist() == pytest.approx([0.95 * c + 0.05 * brighter for c in (0.1, 0.5, 0.3)])
    assert torch.allclose(weather.grey(torch.tensor([0.2, 0.4]).view(1, 2, 1, 1)), torch.tensor(0.3))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_by_subdivision(severity: int) -> None:
    """Each pixel in as many parts as there are pixels of the other size: then all bounds coincide."""
    x = tiny_batch(2, (3, 9, 14)).x
    expected = x
    for axis in (2, 3):
        size = x.shape[axis]
        small = int((0.8, 0.65, 0.5, 0.4, 0.3)[severity - 1] * size)
        parts = expected.transpose(axis, 3).repeat_interleave(small, 3)
        means = parts.unflatten(3, (small, size)).mean(-1)
        far = [[abs((2 * j + 1) * size - (2 * i + 1) * small) for j in range(small)] for i in range(size)]
        nearest = [max(j for j in range(small) if row[j] == min(row)) for row in far]  # of two alike the later
        expected = means[..., nearest].transpose(axis, 3)
    found = resampling.pixelate(x, severity, draw(2))
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(found[0, 0, 0].unique()) <= int(0.8 * 14), "fewer pixels than before"


def test_elastic_moves_a_slope_by_its_field() -> None:
    row, column = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    x = torch.stack([0.1 + 0.015 * row, 0.1 + 0.015 * column]).expand(3, -1, -1, -1).clone()
    for severity, amount in enumerate((0.015, 0.022, 0.03, 0.04, 0.05), 1):
        field = torch.from_numpy(smooth(draw(3).uniform((2, 40, 40), -1, 1), 0.04 * 40)).float()
        shift = amount * 40 * field / field.square().sum(1).mean((1, 2)).sqrt().view(3, 1, 1, 1)
        assert float(shift.square().sum(1).mean().sqrt()) == pytest.approx(amount * 40)
        moved = (resampling.elastic(x, severity, draw(3)) - x) / 0.015
        assert torch.allclose(moved[..., 8:-8, 8:-8], shift[..., 8:-8, 8:-8], atol=1e-3)


def test_jpeg_by_channels() -> None:
    x = tiny_batch(2, (2, 16, 16)).x
    whole = jpeg.jpeg(x, 3, draw(2))
    assert torch.equal(whole[:, 1:], jpeg.jpeg(x[:, 1:], 3, draw(2)))
    colour = tiny_batch(2, (3, 16, 16)).x
    images = jpeg.jpeg(colour, 3, draw(2))
    assert not torch.equal(images[:, :1], jpeg.jpeg(colour[:, :1], 3, draw(2))), "colour is one image"
    assert torch.equal(images * 255, (images * 255).round()), "eight bits"


def test_jpeg_keeps_what_it_can() -> None:
    """A plain image survives but for rounding; rows and columns are not mixed up."""
    colours = torch.tensor([0.8, 0.4, 0.2]).reshape(1, 3, 1, 1).expand(1, 3, 16, 24)
    assert torch.allclose(jpeg.jpeg(colours, 1, draw()), colours, atol=2.5 / 255)
    slope = torch.linspace(0, 1, 24).expand(1, 3, 16, 24)
    assert torch.allclose(jpeg.jpeg(slope, 1, draw()), slope, atol=0.05)


def test_severities() -> None:
    assert [at_severity("abcde", s) for s in SEVERITIES] == list("abcde")
    for wrong in (0, 6, -1):
        with pytest.raises(RkdError, match=f"one of 1, 2, 3, 4, 5; got {wrong}"):
            at_severity("abcde", wrong)


# The kit must be able to fail: one corruption for each broken promise.


@dataclass
class Broken:
    """Darker by severity, but for one mistake."""

    how: str

    def __call__(self, x: Tensor, severity: int, noise: Noise) -> Tensor:
        if self.how != "any severity":
            at_severity("abcde", severity)
        out = x * (1 - 0.1 * severity)
        if self.how == "in place":
            x.mul_(0.9)
        mistakes: dict[str, Callable[[], Tensor]] = {
            "shape": lambda: out[:, :, 1:],
            "dtype": lambda: out.double(),
            "range": lambda: out + 0.5,
            "batch": lambda: out * (0.9 + 0.1 * x.mean()),
            "global": lambda: out * (1 - 0.01 * torch.rand(())),
            "falling": lambda: x * (0.4 + 0.1 * severity),
            "nothing": lambda: x.clone(),
        }
        return mistakes.get(self.how, lambda: out)()


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("in place", "must not change the images"),
        ("shape", "must return float32 images (6, 3, 16, 16)"),
        ("dtype", "torch.float64"),
        ("range", "must lie in [0, 1]"),
        ("batch", "depends on the other images"),
        ("global", "random state of torch"),
        ("falling", "the higher the severity"),
        ("nothing", "the higher the severity"),
        ("any severity", "takes 0 for a severity"),
    ],
)
def test_the_kit_finds_a_broken_corruption(how: str, word: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_corruption(Broken(how))
    assert word in str(error.value)


def test_the_kit_lets_a_sound_one_pass() -> None:
    check_corruption(Broken("not"))
