"""Per-sample formulas: logits `(B, K)` in, `(B,)` out. No reduction over the batch is ever implicit."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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


def cross_entropy(logits: Tensor, y: Tensor, T: float | Tensor = 1.0) -> Tensor:
    """-sum_k y_k log softmax(logits / T)_k per sample; `y (B,)` labels or `(B, K)` probabilities."""
    return F.cross_entropy(logits.float() / T, y, reduction="none")


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


def per_class(values: Tensor, y: Tensor) -> Tensor:
    """`values (K,)`, one a class, for each sample: `values[y]`, or the mean under soft labels `y @ values`."""
    return values[y] if y.ndim == 1 else y @ values.to(y.dtype)
