"""Images on the grid of eight bits, inside the ball."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import RkdError
from rkd.core.types import Norm, ThreatModel
from rkd.evaluation.threat import check_inside, check_threat, to_eight_bits, unfit_radius

BALLS: list[tuple[Norm, float]] = [
    ("Linf", 8 / 255), ("Linf", 0.3), ("Linf", 0.6 / 255), ("Linf", 0.2 / 255), ("L2", 0.5), ("L2", 0.01),
]  # fmt: skip


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.0), ThreatModel("L2", float("inf")), ThreatModel("L3", 1.0)])
def test_a_threat_that_is_none(threat: ThreatModel) -> None:
    with pytest.raises(RkdError, match=r"eps must be above 0 and finite|one of Linf, L2, L1, L0, L0-values; got 'L3'"):
        check_threat(threat)


def on_grid(x: Tensor) -> Tensor:
    return (x * 255 - (x * 255).round()).abs() < 1e-3


def images(eight_bits: bool) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((6, 3, 8, 8), generator=generator)
    x[:, :, 0], x[:, :, 1] = 0, 1
    return (x * 255).round() / 255 if eight_bits else x


def moved(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Inside the ball, most pixels of each image moved, some as far as the ball goes, some not at all."""
    change = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(6)) - 1
    change[:, 0] = change[:, 0].sign()
    change[:, 1, ::2] = 0
    if norm == "L2":
        change = change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + eps * change).clamp(0, 1)


@pytest.mark.parametrize("eight_bits", [True, False])
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_inside_the_ball_and_on_the_grid(norm: Norm, eps: float, eight_bits: bool) -> None:
    x = images(eight_bits)
    x_adv = moved(x, norm, eps)
    ball = ThreatModel(norm, eps, eps / 4)
    check_inside(x, x_adv, ball, "some")
    rounded = to_eight_bits(x, x_adv, ball)
    check_inside(x, rounded, ball, "some")
    if eight_bits:
        assert bool(on_grid(rounded).all())
    else:
        off = ~on_grid(rounded)
        assert torch.allclose(rounded[off], x[off], atol=1e-6), "between levels only where x itself is"
    assert float((rounded - x_adv).abs().max()) < 1 / 255 + 1e-6, "no further than a level from the image"


def test_the_nearest_level_where_the_ball_allows_it() -> None:
    x = torch.tensor([100.0, 100.0, 100.0, 100.0]).view(1, 1, 2, 2) / 255
    x_adv = torch.tensor([102.4, 97.6, 103.5, 96.5]).view(1, 1, 2, 2) / 255
    for ball, levels in (
        (ThreatModel("Linf", 10 / 255, 1 / 255), [102.0, 98.0, 104.0, 96.0]),
        (ThreatModel("Linf", 3.5 / 255, 1 / 255), [102.0, 98.0, 103.0, 97.0]),  # 104 and 96 are outside
        (ThreatModel("L2", 1.0, 0.1), [102.0, 98.0, 103.0, 97.0]),  # in L2 never away from x
        (None, [102.0, 98.0, 104.0, 96.0]),
    ):
        assert (to_eight_bits(x, x_adv, ball) * 255).flatten().tolist() == pytest.approx(levels, abs=1e-3), ball


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_between_levels(norm: Norm) -> None:
    """x at level 100.4, in a ball that holds no level but, for Linf, 100."""
    x = torch.full((1, 1, 1, 4), 100.4 / 255)
    x_adv = torch.tensor([100.4, 100.7, 100.1, 100.45]).view(1, 1, 1, 4) / 255
    rounded = to_eight_bits(x, x_adv, ThreatModel(norm, 0.42 / 255, 0.1 / 255)) * 255
    # 101 is too far away, and no level lies on the way from any of these to x.
    expected = [100.0] * 4 if norm == "Linf" else [100.4] * 4
    if norm == "Linf":
        expected[1] = 100.4  # its nearest level is 101, and on the way back to x there is none
    assert rounded.flatten().tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [
        ("Linf", 8, "a radius in Linf is at most 1, got 8"),
        ("L0", 8 / 255, "a radius in L0 is a number of pixels, 1 or more, got 8/255"),
        ("L0-values", 1.5, "number of values"),
        ("L1", 49, "every image is within 48 of any other in L1"),
        ("L0", 17, "within 16 of any other"),
        ("L2", 7, "within 6.9"),
    ],
)
def test_a_radius_that_does_not_go_with_its_norm(norm: Norm, eps: float, words: str) -> None:
    assert words in str(unfit_radius(norm, eps, (3, 4, 4)))
    if "within" not in words:  # which needs the images' shape
        with pytest.raises(RkdError, match=words):
            check_threat(ThreatModel(norm, eps, eps / 4))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1.0), ("L2", 6.9), ("L1", 48), ("L0", 16), ("L0-values", 48)])
def test_a_radius_that_goes_with_its_norm(norm: Norm, eps: float) -> None:
    assert unfit_radius(norm, eps, (3, 4, 4)) is None
    check_threat(ThreatModel(norm, eps, eps / 4))


@pytest.mark.parametrize(("norm", "eps"), [("L1", 2.0), ("L0", 3.0), ("L0-values", 5.0)])
def test_eight_bits_stay_in_sparse_balls(norm: Norm, eps: float) -> None:
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))  # between levels
    ball = ThreatModel(norm, eps, eps / 4)
    x_adv = ops.projection(x, eps, norm)(torch.rand(x.shape, generator=torch.Generator().manual_seed(2)))
    check_inside(x, x_adv, ball, "made")
    check_inside(x, to_eight_bits(x, x_adv, ball), ball, "rounded")
