"""Formulas against plain float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.random import Noise
from rkd.core.types import Norm

K = 5


def logits(scale: float = 1.0, seed: int = 0, count: int = 6) -> Tensor:
    return scale * torch.randn(count, K, generator=torch.Generator().manual_seed(seed))


def log_softmax(z: Tensor, T: float = 1.0) -> list[list[float]]:
    rows = []
    for row in z.tolist():
        scaled = [v / T for v in row]
        top = max(scaled)
        total = top + math.log(sum(math.exp(v - top) for v in scaled))
        rows.append([v - total for v in scaled])
    return rows


def kl(student: Tensor, teacher: Tensor, T: float) -> list[float]:
    pairs = zip(log_softmax(teacher, T), log_softmax(student, T), strict=True)
    return [sum(math.exp(p) * (p - q) for p, q in zip(a, b, strict=True)) for a, b in pairs]


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(("student", "teacher"), [(1.0, 1.0), (20.0, 0.1), (0.0, 5.0)])
def test_kl(T: float, student: float, teacher: float) -> None:
    s, t = logits(student, 1), logits(teacher, 2)
    expected = kl(s, t, T)
    assert ops.kl(s, t, T).tolist() == pytest.approx(expected, rel=1e-4, abs=2e-6)
    assert ops.kl(s, t, T, "mean").tolist() == pytest.approx([v / K for v in expected], rel=1e-4, abs=1e-6)


def test_kl_of_equal_answers_is_zero() -> None:
    z = logits(10)
    assert ops.kl(z, z + 3).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_extreme_logits_give_numbers(scale: float) -> None:
    s, t = logits(scale, 1).requires_grad_(), logits(scale, 2).requires_grad_()
    y = torch.arange(6) % K
    for values in (ops.kl(s, t), ops.kl(s, t, 30.0), ops.cross_entropy(s, y), ops.entropy(s), ops.margin(s, y)):
        assert values.isfinite().all()
        gradients = torch.autograd.grad(values.sum(), [s, t], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_kl_reaches_a_logit_difference() -> None:
    """A teacher sure of class 0, a student sure of class 1 by a million: the divergence is that million."""
    teacher, student = torch.zeros(1, K), torch.zeros(1, K)
    teacher[0, 0], student[0, 1] = 1e6, 1e6
    assert float(ops.kl(student, teacher)) == pytest.approx(1e6)


def test_kl_is_differentiable_in_both() -> None:
    """Against central differences in float64."""
    s, t = logits(2, 1).requires_grad_(), logits(2, 2).requires_grad_()
    gradients = torch.autograd.grad(ops.kl(s, t, 2.0).sum(), [s, t])
    for which, gradient in zip((s, t), gradients, strict=True):
        for place in ((0, 0), (3, 2), (5, 4)):
            h = 1e-3
            sides = []
            for sign in (1, -1):
                moved = which.detach().clone().double()
                moved[place] += sign * h
                pair = (moved, t.detach()) if which is s else (s.detach(), moved)
                sides.append(sum(kl(*pair, 2.0)))
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * h), abs=1e-3)


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_cross_entropy(T: float) -> None:
    z, y = logits(3), torch.tensor([0, 1, 2, 3, 4, 0])
    table = log_softmax(z, T)
    expected = [-row[k] for row, k in zip(table, y.tolist(), strict=True)]
    assert ops.cross_entropy(z, y, T).tolist() == pytest.approx(expected, rel=1e-5)
    soft = logits(1, 7).softmax(1)
    expected = [-sum(p * v for p, v in zip(a, b, strict=True)) for a, b in zip(soft.tolist(), table, strict=True)]
    assert ops.cross_entropy(z, soft, T).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4, 0.99])
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing(smoothing: float, soft: bool) -> None:
    """As torch's, and as a loop: a share of the label goes to all classes alike."""
    z, y = logits(3), torch.tensor([0, 1, 2, 3, 4, 0])
    probabilities = logits(1, 7).softmax(1) if soft else torch.eye(K)[y]
    labels = probabilities if soft else y
    values = ops.cross_entropy(z, labels, 2.0, smoothing)
    expected = []
    for row, table in zip(probabilities.tolist(), log_softmax(z, 2.0), strict=True):
        expected.append(-sum(((1 - smoothing) * p + smoothing / K) * v for p, v in zip(row, table, strict=True)))
    assert values.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(values, torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(z / 2, labels))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan])
def test_labels_keep_a_share(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1"):
        ops.check_label_smoothing(smoothing)


def test_entropy() -> None:
    z = logits(3)
    expected = [-sum(math.exp(v) * v for v in row) for row in log_softmax(z, 2.0)]
    assert ops.entropy(z, 2.0).tolist() == pytest.approx(expected, rel=1e-5)
    assert float(ops.entropy(torch.zeros(1, K))) == pytest.approx(math.log(K))
    assert float(ops.entropy(torch.tensor([[1e4, 0.0, 0.0]]))) == 0


def test_margin() -> None:
    z, y = logits(3), torch.tensor([0, 1, 2, 3, 4, 0])
    pairs = zip(z.tolist(), y.tolist(), strict=True)
    expected = [row[k] - max(v for j, v in enumerate(row) if j != k) for row, k in pairs]
    assert ops.margin(z, y).tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(ops.margin(z, torch.nn.functional.one_hot(y, K).float()), ops.margin(z, y))


def test_temperature_may_be_a_tensor() -> None:
    z = logits()
    assert torch.equal(ops.kl(z, 2 * z, torch.tensor(4.0)), ops.kl(z, 2 * z, 4.0))


def test_half_precision_logits_are_compared_in_float32() -> None:
    s, t = logits(5, 1).bfloat16(), logits(5, 2).bfloat16()
    assert ops.kl(s, t).dtype == torch.float32
    assert torch.equal(ops.kl(s, t), ops.kl(s.float(), t.float()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_are_wrong(bad: float) -> None:
    z = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    z[0, 1] = bad
    assert ops.correct(z, torch.tensor([0, 0])).tolist() == [False, True]
    assert ops.correct(z, torch.tensor([1, 0])).tolist() == [False, True]


def test_correct_under_soft_labels() -> None:
    z = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert ops.correct(z, torch.tensor([[0.6, 0.4], [0.6, 0.4]])).tolist() == [True, False]


def test_class_weights_of_samples() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert ops.per_class(values, torch.tensor([2, 0])).tolist() == [4.0, 1.0]
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    assert ops.per_class(values, soft).tolist() == [1.5, 3.5]


X, Y = (torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_norm_of_images_is_that_of_each(norm: str) -> None:
    delta = X - Y
    for row, value in zip(delta, ops.image_norm(delta, norm), strict=True):
        assert float(value) == pytest.approx(float(row.abs().max() if norm == "Linf" else row.square().sum().sqrt()))
    assert torch.equal(
        ops.image_norm(torch.stack((delta, 2 * delta)), norm, start_dim=2)[0], ops.image_norm(delta, norm)
    )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("clamp", [True, False])
def test_projection_lies_in_ball_and_box_and_leaves_alone_what_does(norm: str, clamp: bool) -> None:
    project = ops.projection(X, 0.1, norm, clamp=clamp)
    far = project(3 * Y - 1)
    assert (ops.image_norm(far - X, norm) <= 0.1 + 1e-6).all()
    assert not clamp or (far.min() >= 0 and far.max() <= 1)
    inside = (X + 0.01 * (Y - 0.5)).clamp(0, 1)
    assert torch.allclose(project(inside.clone()), inside, atol=1e-7)
    if norm == "L2" and not clamp:
        far = project(Y.clone())
        direction = (Y - X) / ops.per_image(ops.image_norm(Y - X, norm), X)
        assert torch.allclose(far, X + 0.1 * direction, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("size", [1.0, 1e-26, 1e20])
def test_steepest_raises_a_linear_function_the_most(norm: str, size: float) -> None:
    gradient = size * (Y - 0.5)
    step = ops.steepest(gradient, norm)
    assert torch.allclose(ops.image_norm(step, norm), torch.ones(5), atol=1e-5)
    gain = ((gradient / size) * step).flatten(1).sum(1)
    dual = (gradient / size).flatten(1).norm(1 if norm == "Linf" else 2, dim=1)
    assert torch.allclose(gain, dual, rtol=1e-4)
    assert not ops.steepest(torch.zeros_like(X), norm).any(), "a gradient of zero stays zero"


def test_scaled_gradients_hold_no_nan() -> None:
    gradient = Y.clone()
    gradient[2, 0, 0, 0] = torch.nan
    gradient[3] *= 1e-30
    result = ops.scaled(gradient)
    assert result.isfinite().all() and result[2, 0, 0, 0] == 0
    assert torch.allclose(ops.image_norm(result, "Linf"), torch.ones(5))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_changes_fill_the_ball_or_lie_on_its_surface(norm: str) -> None:
    noise = Noise(3, torch.arange(5))
    inside, outside = (f(X, Noise(3, torch.arange(5)), 0.25, norm) for f in (ops.uniform_in_ball, ops.random_on_sphere))
    assert (ops.image_norm(inside, norm) <= 0.25 + 1e-6).all() and ops.image_norm(inside, norm).unique().numel() == 5
    assert torch.allclose(ops.image_norm(outside, norm), torch.full((5,), 0.25), atol=1e-5)
    part = ops.uniform_in_ball(X[2:4], noise.select(torch.tensor([2, 3])), 0.25, norm)
    assert torch.equal(part, inside[2:4]), "each sample's own numbers"


def test_where_takes_whole_images() -> None:
    mask = torch.tensor([True, False, True, False, False])
    result = ops.where(mask, X, Y)
    assert torch.equal(result[mask], X[mask]) and torch.equal(result[~mask], Y[~mask])


# The geometry of balls, against slow solutions in float64


SHAPE = (3, 4, 4)


def some_images(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images, many values at 0 and 1, and points around them."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, *SHAPE, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    scale = torch.logspace(-2, 1, count).reshape(-1, 1, 1, 1)
    return x, x + scale * torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("eps", [0.1, 2.0, 15.0])
def test_the_projection_onto_the_l1_ball_is_exact(eps: float, clamp: bool) -> None:
    """Against bisection for the threshold, in float64; and nothing inside both sets is nearer."""
    x, point = some_images()
    found = ops.projection(x, eps, "L1", clamp)(point.clone())
    delta, image = (point - x).double(), x.double()
    room = torch.where(delta > 0, 1 - image, image) if clamp else torch.full_like(delta, torch.inf)
    low, high = torch.zeros(len(x), 1, 1, 1).double(), delta.abs().amax((1, 2, 3), keepdim=True)

    def moved(t: Tensor) -> Tensor:
        return torch.minimum((delta.abs() - t).clamp(min=0), room)

    for _ in range(200):
        middle = (low + high) / 2
        long = moved(middle).sum((1, 2, 3), keepdim=True) > eps
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    short = moved(torch.zeros_like(low)).sum((1, 2, 3), keepdim=True) <= eps
    expected = image + delta.sign() * moved(torch.where(short, 0.0, high))
    assert torch.allclose(found.double(), expected, atol=3e-6)
    assert ops.image_norm(found.double() - image, "L1").max() <= eps * (1 + 1e-6) + 1e-6
    assert not clamp or (found.min() >= 0 and found.max() <= 1)
    again = ops.projection(x, eps, "L1", clamp)(found.clone())
    assert torch.allclose(again, found, atol=1e-6)


@pytest.mark.parametrize("norm", ["L0", "L0-values"])
def test_the_projection_onto_the_l0_ball_is_exact(norm: str) -> None:
    """Against all choices of two pixels or values."""
    x, point = some_images()
    shape = (x.shape[0], 3, 16)
    flat, there = x.reshape(shape), point.reshape(shape)
    units = [(slice(None), n) for n in range(16)] if norm == "L0" else [(c, n) for c in range(3) for n in range(16)]
    found = ops.projection(x, 2, norm)(point.clone())
    assert ops.image_norm(found - x, norm).max() <= 2 and found.min() >= 0 and found.max() <= 1
    for row in range(len(x)):
        best = math.inf
        for first in units:
            for second in units:
                image = flat[row].clone()
                for unit in (first, second):
                    image[unit] = there[row][unit].clamp(0, 1)
                best = min(best, float((image - there[row]).double().square().sum()))
        assert float((found[row] - point[row]).double().square().sum()) == pytest.approx(best, rel=1e-5)
    free = ops.projection(x, 3, norm, clamp=False)(point.clone())
    changed = free != x
    assert torch.equal(free[changed], point[changed]) and ops.image_norm(free - x, norm).max() <= 3


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L1", 2.5), ("L0", 3.0), ("L0-values", 5.0)])
def test_the_linear_optimum_is_no_worse_than_any_image(norm: str, eps: float) -> None:
    x, _ = some_images()
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    found = ops.linear_optimum(x, slope, eps, norm)
    assert ops.image_norm(found.double() - x.double(), norm).max() <= eps * (1 + 1e-6)
    assert found.min() >= 0 and found.max() <= 1
    gain = (slope * (found - x)).sum((1, 2, 3))
    project = ops.projection(x, eps, norm)
    climbed = x
    for step in torch.logspace(1, -3, 400):  # projected ascent, exact for a linear function over a convex set
        climbed = project(climbed + step * slope)
        assert ((slope * (climbed - x)).sum((1, 2, 3)) <= gain + 1e-4).all()
    if norm != "L0-values" and norm != "L0":
        assert torch.allclose((slope * (climbed - x)).sum((1, 2, 3)), gain, rtol=1e-2)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0", "L0-values"])
def test_random_changes_lie_in_the_ball(norm: str) -> None:
    x, _ = some_images()
    eps = 3.0 if norm.startswith("L0") else 0.5
    noise = Noise(1, torch.arange(len(x)))
    size = ops.image_norm(ops.uniform_in_ball(x, noise, eps, norm), norm)
    assert (size <= eps * (1 + 1e-5)).all() and (size > 0).all()
    if norm in ("L2", "L1"):
        assert torch.allclose(
            ops.image_norm(ops.random_on_sphere(x, noise, eps, norm), norm), torch.tensor(eps), rtol=1e-5
        )
        assert 0.8 * eps < float(size.mean())  # nearly all of the volume is near the surface


def test_lengths_in_l1_and_l0() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, :2, 0, 0] = torch.tensor([0.5, -0.25])
    image[0, 1, 1, 1] = 1
    assert [float(ops.image_norm(image, norm)) for norm in ("L1", "L0", "L0-values")] == [1.75, 2, 3]


def test_steps_in_l1_take_the_largest_slopes() -> None:
    slope = torch.tensor([[[[5.0, -4.0], [3.0, 0.0]]]])
    step = ops.sparse_steepest(slope, torch.tensor([0.5]))
    assert torch.equal(step, torch.tensor([[[[0.5, -0.5], [0.0, 0.0]]]]))
    assert torch.equal(ops.steepest(slope, "L1"), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    assert not ops.steepest(torch.zeros_like(slope), "L1").any()
    edge = torch.tensor([[[[1.0, 0.0], [1.0, 0.5]]]])
    assert torch.equal(ops.inward(slope, edge), torch.zeros_like(slope))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0", "L0-values"])
@pytest.mark.parametrize("clamp", [True, False])
def test_projections_take_a_radius_for_each_image(norm: Norm, clamp: bool) -> None:
    x, wild = torch.rand(6, 3, 4, 4), 0.5 + 2 * torch.randn(6, 3, 4, 4)
    radii = torch.tensor([1.0, 3.0, 2.0, 40.0, 5.0, 0.0])
    radii = radii / 10 if norm in ("Linf", "L2") else radii
    together = ops.projection(x, radii, norm, clamp)(wild.clone())
    for row, eps in enumerate(radii.tolist()):
        alone = ops.projection(x[row : row + 1], eps, norm, clamp)(wild[row : row + 1].clone())
        assert torch.allclose(together[row : row + 1], alone, atol=1e-6)
