"""What a notebook holds: nets, data, a loss, an extension, an attack as others write it."""

from __future__ import annotations

import torch
from torch import nn

import rkd
from rkd.testing import tiny_batch

EPS = 8 / 255


def my_fgsm(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As others write it: with backward() and images.grad."""
    images.requires_grad_()
    nn.functional.cross_entropy(model(images), labels).backward()
    assert images.grad is not None
    return (images + EPS * images.grad.sign()).clamp(0, 1)


class Taught:
    """A loss as a notebook has it."""

    roles = ("robust",)
    defaults = {"attack": "fgsm", "objective": "ce"}

    def __call__(self, step: rkd.Step) -> dict[str, torch.Tensor]:
        adv, robust = step.student("adv"), step.teacher("robust")
        return {"hard": rkd.ops.cross_entropy(adv, step.y), "soft": rkd.ops.kl(adv, robust)}


class Losses:
    """An extension as a notebook has it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @rkd.hookimpl
    def rkd_epoch_end(self, run: object, metrics: dict[str, float]) -> None:
        self.seen.append(metrics["loss"])


def small(classes: int = 4) -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, classes))


def halves() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    x = tiny_batch(48, seed=2).x
    return (x[:32], torch.arange(32) % 4), (x[32:], torch.arange(16) % 4)


SHORT: dict[str, object] = {"epochs": 2, "batch_size": 16, "evaluate": ["fgsm"], "validate": {"steps": 2}}
