"""Per-sample formulas: logits `(B, K)` in, `(B,)` out, the geometry of balls around images, a gradient by images. No
reduction over the batch is ever implicit."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .core.attack import Target
from .core.objective import per_class as per_class
from .core.random import Noise
from .core.types import Norm

TINY = torch.finfo(torch.float32).tiny
"""The least divisor of a length: a gradient of zero stays zero."""

COUNTS: tuple[Norm, ...] = ("L0", "L0-values")
"""Norms that count what changes, of pixels or of values, and not by how much."""

Reduction = Literal["batchmean", "mean"]
"""Over classes: `batchmean` sums them (the formula of the KL), `mean` averages them (most official scripts)."""


def kl(student: Tensor, teacher: Tensor, T: float | Tensor = 1.0, reduction: Reduction = "batchmean") -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) per sample, from logits `(B, K)`.

    Differentiable in both arguments (TRADES needs that). The factor T² of Hinton et al. is left to the caller.
    `reduction="mean"` divides by K, as `torch.nn.KLDivLoss()` does by default: with 10 classes a tenth.
    """
    log_q = F.log_softmax(student.float() / T, dim=1)
    log_p = F.log_softmax(teacher.float() / T, dim=1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.mean(1) if reduction == "mean" else terms.sum(1)


def cross_entropy(logits: Tensor, y: Tensor, T: float | Tensor = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """-sum_k y'_k log softmax(logits / T)_k per sample; `y (B,)` labels or `(B, K)` probabilities.

    y' = (1 - s) y + s / K with s = `label_smoothing` (Szegedy et al., 2016): s = 0.4 with 10 classes leaves 0.64 for
    the label and gives 0.04 to each other class.
    """
    return F.cross_entropy(logits.float() / T, y, reduction="none", label_smoothing=label_smoothing)


def check_label_smoothing(value: float) -> None:
    """Raise ValueError unless the labels keep a share of their own."""
    if not 0 <= value < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {value:g}")


def entropy(logits: Tensor, T: float | Tensor = 1.0) -> Tensor:
    """-sum_k p_k log p_k of p = softmax(logits / T) per sample, in nats."""
    log_p = F.log_softmax(logits.float() / T, dim=1)
    return -(log_p.exp() * log_p).sum(1)


def hard(y: Tensor) -> Tensor:
    """Labels `(B,)`: as they are, or the most probable class of `(B, K)` probabilities."""
    return y if y.ndim == 1 else y.argmax(1)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the largest logit is the label's, `(B,)` bool. Logits that are not numbers count as wrong."""
    return (logits.argmax(1) == hard(y)) & logits.isfinite().all(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k per sample: positive where the classification is right."""
    labels = hard(y).unsqueeze(1)
    others = logits.float().scatter(1, labels, -torch.inf)
    return logits.float().gather(1, labels).squeeze(1) - others.amax(1)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """`values (B,)` in a shape that multiplies `images (B, C, H, W)`."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def where(mask: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Each image `(C, H, W)` from `images` where `mask (B,)` is true, else from `others`."""
    return torch.where(per_image(mask, images), images, others)


def image_norm(images: Tensor, norm: Norm, start_dim: int = 1) -> Tensor:
    """The length of each image, `(B,)`; `start_dim`: the first of the dimensions that make an image.

    `L0` counts the pixels that are not 0 in all channels, the first of these dimensions; `L0-values` counts values.
    """
    if norm == "L0" and images.ndim > start_dim + 1:
        images = (images != 0).any(start_dim)
    flat = images.flatten(start_dim)
    if norm == "Linf":
        return flat.abs().amax(-1)
    if norm in COUNTS:
        return (flat != 0).sum(-1).to(torch.get_default_dtype())
    return torch.linalg.vector_norm(flat, ord=1 if norm == "L1" else 2, dim=-1)


def projection(x: Tensor, eps: float | Tensor, norm: Norm, clamp: bool = True) -> Callable[[Tensor], Tensor]:
    """A function that brings images into the ball of radius `eps` around `x`, and if `clamp` then into [0, 1]. `eps`:
    one for all, or of each image its own, `(B,)`.

    In Linf, L1 and L0 the result is the nearest image (in L2) of those in both; in L2 it lies in both, since clamping
    moves each pixel towards `x`. The function may write into its argument.
    """
    if norm == "Linf":
        radius = per_image(eps, x) if isinstance(eps, Tensor) else eps
        low, high = x - radius, x + radius
        if clamp:
            # x lies in both boxes, so this one clamp is the projection followed by the clamp, bit by bit.
            low, high = low.clamp_(min=0), high.clamp_(max=1)
        return lambda x_adv: x_adv.clamp_(low, high)
    if norm == "L1":
        return lambda x_adv: _project_l1(x, x_adv, eps, clamp)
    if norm in COUNTS:
        return lambda x_adv: _project_l0(x, x_adv, eps, norm, clamp)

    def project(x_adv: Tensor) -> Tensor:
        delta = x_adv - x
        # Inside the ball the factor is eps / eps = 1.
        length = image_norm(delta, "L2").clamp_(min=TINY)
        delta *= per_image(eps / (torch.maximum(length, eps) if isinstance(eps, Tensor) else length.clamp_(min=eps)), x)
        delta += x
        return delta.clamp_(0, 1) if clamp else delta

    return project


def _project_l1(x: Tensor, x_adv: Tensor, eps: float | Tensor, clamp: bool) -> Tensor:
    """The nearest change is sign(d) min(max(|d| - t, 0), room), with the one t >= 0 for which its L1 norm is eps, or 0
    if it is shorter (Croce and Hein, 2021). As t falls the norm grows along a line between any two of the |d| and
    |d| - room: sorted, their sums tell between which t lies."""
    delta = (x_adv - x).flatten(1)
    size, flat = delta.abs(), x.flatten(1)
    room = torch.where(delta > 0, 1 - flat, flat) if clamp else torch.full_like(size, torch.inf)
    if isinstance(eps, Tensor):
        eps = eps.unsqueeze(1)
    elif eps <= 0:
        return x.clone()
    knots = torch.cat((size, (size - room).clamp_(min=0)), 1)
    knots, order = knots.sort(1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size).cumsum_(1)
    ends = torch.cat((knots[:, 1:], torch.zeros_like(knots[:, :1])), 1)
    filled = (slope * (knots - ends)).cumsum_(1)
    place = (filled < eps).sum(1, keepdim=True)
    inside = place == filled.shape[1]
    place = place.clamp_(max=filled.shape[1] - 1)
    t = ends.gather(1, place) + (filled.gather(1, place) - eps) / slope.gather(1, place).clamp(min=1)
    t = torch.where(inside, 0.0, t.clamp_(min=0))
    for _ in range(2):  # the sums are rounded: Newton's steps on this stretch
        change = torch.minimum((size - t).clamp_(min=0), room)
        moving = ((size > t) & (size - t < room)).sum(1, keepdim=True).clamp_(min=1)
        t = (t + torch.where(inside, 0.0, (change.sum(1, keepdim=True) - eps) / moving)).clamp_(min=0)
    change = torch.minimum((size - t).clamp_(min=0), room)
    least = eps * (1 - 1e-6)  # room for the rounding of x + change
    length = change.sum(1, keepdim=True).clamp_(min=TINY)
    change *= least / (torch.maximum(length, least) if isinstance(least, Tensor) else length.clamp_(min=least))
    moved = torch.copysign(change, delta).view_as(x) + x
    return moved.clamp_(0, 1) if clamp else moved


def _project_l0(x: Tensor, x_adv: Tensor, eps: float | Tensor, norm: Norm, clamp: bool) -> Tensor:
    """Changes stay where leaving them out would cost the most distance (Croce and Hein, 2019)."""
    best = x_adv.clamp(0, 1) if clamp else x_adv
    return _keep_largest(x, best, (x_adv - x).square() - (x_adv - best).square(), eps, norm)


def _keep_largest(x: Tensor, changed: Tensor, gain: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """`changed` at the `eps` pixels or values of the largest `gain (B, C, H, W)` in which it differs, else `x`."""
    if norm == "L0" and x.ndim > 2:
        gain = gain.sum(1, keepdim=True)
    flat = gain.flatten(1)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    if isinstance(eps, Tensor):
        within = torch.arange(flat.shape[1], device=eps.device) < (eps + 1e-6).floor_().unsqueeze(1)
        kept.scatter_(1, flat.argsort(dim=1, descending=True), within)
    else:
        kept.scatter_(1, flat.topk(int(min(eps + 1e-6, flat.shape[1])), dim=1).indices, True)
    return torch.where(kept.view_as(gain), changed, x)


def linear_optimum(x: Tensor, gradient: Tensor, eps: float, norm: Norm) -> Tensor:
    """The image of the ball of radius `eps` around `x` and of [0, 1] that raises a linear function of slope `gradient`
    the most, exact in Linf, L1 and L0; in L2 the ball's best image, clamped."""
    if norm in ("Linf", "L2"):
        return projection(x, eps, norm)(torch.add(x, steepest(gradient, norm), alpha=eps))
    far = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, x))
    if norm != "L1":
        return _keep_largest(x, far, scaled(gradient) * (far - x), eps, norm)
    room = (far - x).flatten(1)
    order = gradient.nan_to_num().flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    before = room.abs().cumsum(1) - room.abs()
    change = torch.copysign(torch.minimum(room.abs(), (eps - before).clamp_(min=0)), room)
    return (x + torch.zeros_like(change).scatter_(1, order, change).view_as(x)).clamp_(0, 1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 that raises a linear function the most: the gradient's sign (Linf), or the gradient of
    length 1 (L2). A gradient of zero stays zero.

    In L1, where a single value would move, the signs of the largest hundredth of the values share the length (Tramèr
    and Boneh, 2019). L0 knows no length: there it is the gradient, with 1 as its largest entry.
    """
    if norm == "Linf":
        return gradient.sign()
    gradient = scaled(gradient)
    if norm == "L1":
        return sparse_steepest(gradient, torch.full_like(gradient[:, :1].flatten(1)[:, 0], 0.01))
    if norm in COUNTS:
        return gradient
    return gradient / per_image(image_norm(gradient, "L2").clamp_(min=TINY), gradient)


def sparse_steepest(gradient: Tensor, share: Tensor) -> Tensor:
    """The step of length 1 in L1 in which the values of the largest slopes take equal parts: the share `share (B,)` of
    all values, rounded up, at least one. Values without a slope do not move."""
    size = gradient.flatten(1).abs()
    count = size.shape[1] - ((1 - share) * size.shape[1]).long().clamp_(0, size.shape[1] - 1)  # rounded up
    most = int(count.max())
    least = size.topk(most, dim=1).values.gather(1, count.unsqueeze(1) - 1)
    step = torch.where(size >= least, gradient.flatten(1).sign(), 0.0)
    return (step / step.abs().sum(1, keepdim=True).clamp_(min=1)).view_as(gradient)


def inward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient without the entries that lead out of [0, 1] at `x`."""
    return gradient.where(~(((gradient > 0) & (x >= 1)) | ((gradient < 0) & (x <= 0))), 0.0)


def scaled(gradient: Tensor) -> Tensor:
    """Each image's gradient with 1 as its largest entry: those of saturated nets are around 1e-26, and their squares 0.

    NaN counts as 0, as its sign does: one such pixel would make the whole image NaN, which no evaluation accepts.
    """
    gradient = gradient.nan_to_num()
    return gradient / per_image(image_norm(gradient, "Linf").clamp_(min=TINY), gradient)


def uniform_in_ball(x: Tensor, noise: Noise, eps: float, norm: Norm) -> Tensor:
    """A random change of each image `x (B, C, H, W)`, uniform in the ball of radius `eps`; in L0 uniform values of
    [0, 1] in as many pixels or values by chance."""
    shape = x.shape[1:]
    if norm == "Linf":
        return noise.uniform(shape, -eps, eps)
    if norm in COUNTS:
        chosen = noise.uniform(shape[1:] if norm == "L0" else shape)
        chosen = (chosen.unsqueeze(1) if norm == "L0" else chosen).expand_as(x)
        return _keep_largest(x, noise.uniform(shape), chosen, eps, norm) - x
    radius = eps * noise.uniform(()) ** (1 / shape.numel())
    return random_on_sphere(x, noise, 1.0, norm) * per_image(radius, x)


def random_on_sphere(x: Tensor, noise: Noise, eps: float, norm: Norm) -> Tensor:
    """A random change of each image `x (B, C, H, W)`, of length `eps`: uniform on the sphere in L2 and L1; in Linf a
    point of the cube, stretched."""
    if norm == "L2":
        return eps * steepest(noise.normal(x.shape[1:]), "L2")
    delta = noise.uniform(x.shape[1:], -1, 1)
    if norm == "L1":  # exponential numbers over their sum, with signs by chance
        sizes = torch.copysign(delta.abs().clamp_(min=1e-7).log_(), delta)
        return eps * sizes / per_image(image_norm(sizes, "L1").clamp_(min=TINY), x)
    return eps * delta / per_image(image_norm(delta, "Linf").clamp_(min=1e-12), x)


def value_and_grad(target: Target, x: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a value of them, and its gradient by the images, from one forward and one backward.

    `value`: logits `(B, K)` of the images `x (B, C, H, W)` to a number for each, `(B,)`, which depends on its own
    image alone. Returns logits, values and gradient `(B, C, H, W)`, all detached.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = target.logits(x)
        values = value(logits)
        if not values.requires_grad:  # a net whose logits do not depend on the images
            return logits, values, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), values.detach(), gradient
