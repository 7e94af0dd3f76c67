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
    """The length of each image, `(B,)`; `start_dim`: the first of the dimensions that make an image."""
    flat = images.flatten(start_dim)
    return flat.abs().amax(-1) if norm == "Linf" else torch.linalg.vector_norm(flat, dim=-1)


def projection(x: Tensor, eps: float, norm: Norm, clamp: bool = True) -> Callable[[Tensor], Tensor]:
    """A function that brings images into the ball of radius `eps` around `x`, and if `clamp` then into [0, 1].

    In Linf the result is the nearest image in both; in L2 it lies in both, since clamping moves each pixel towards `x`.
    The function may write into its argument.
    """
    if norm == "Linf":
        low, high = x - eps, x + eps
        if clamp:
            # x lies in both boxes, so this one clamp is the projection followed by the clamp, bit by bit.
            low, high = low.clamp_(min=0), high.clamp_(max=1)
        return lambda x_adv: x_adv.clamp_(low, high)

    def project(x_adv: Tensor) -> Tensor:
        delta = x_adv - x
        # Inside the ball the factor is eps / eps = 1.
        delta *= per_image(eps / image_norm(delta, "L2").clamp_(min=max(eps, TINY)), x)
        delta += x
        return delta.clamp_(0, 1) if clamp else delta

    return project


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 that raises a linear function the most: the gradient's sign (Linf), or the gradient of
    length 1 (L2). A gradient of zero stays zero."""
    if norm == "Linf":
        return gradient.sign()
    gradient = scaled(gradient)
    return gradient / per_image(image_norm(gradient, "L2").clamp_(min=TINY), gradient)


def scaled(gradient: Tensor) -> Tensor:
    """Each image's gradient with 1 as its largest entry: those of saturated nets are around 1e-26, and their squares 0.

    NaN counts as 0, as its sign does: one such pixel would make the whole image NaN, which no evaluation accepts.
    """
    gradient = gradient.nan_to_num()
    return gradient / per_image(image_norm(gradient, "Linf").clamp_(min=TINY), gradient)


def uniform_in_ball(x: Tensor, noise: Noise, eps: float, norm: Norm) -> Tensor:
    """A random change of each image `x (B, C, H, W)`, uniform in the ball of radius `eps`."""
    shape = x.shape[1:]
    if norm == "Linf":
        return noise.uniform(shape, -eps, eps)
    radius = eps * noise.uniform(()) ** (1 / shape.numel())
    return steepest(noise.normal(shape), "L2") * per_image(radius, x)


def random_on_sphere(x: Tensor, noise: Noise, eps: float, norm: Norm) -> Tensor:
    """A random change of each image `x (B, C, H, W)`, of length `eps`: uniform on the sphere in L2; in Linf a point of
    the cube, stretched."""
    if norm == "L2":
        return eps * steepest(noise.normal(x.shape[1:]), "L2")
    delta = noise.uniform(x.shape[1:], -1, 1)
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
