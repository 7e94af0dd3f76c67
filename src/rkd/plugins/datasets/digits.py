"""Handwritten digits that need no download: 1,797 grey images of 8x8 pixels, shipped with scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits". Real data, small enough to train
on a laptop's CPU within seconds. Pixels count ink from 0 to 16; here they are v/16, exactly. A fixed fifth of each
class is the test part, whatever the run's seed.

References: alpaydin1998optical
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from rkd.plugin import (
    ArraySplit,
    Dataset,
    ThreatModel,
    fingerprint_of,
    hookimpl,
    optional,
    statistics,
)

from ._common import stratified


@dataclass
class Digits:
    """1,797 handwritten digits, 8x8 grey; embedded, nothing to download.

    dir: not used, the images come with scikit-learn.
    download: not used.
    """

    dir: str | None = None
    download: bool = False

    def __call__(self) -> Dataset:
        bunch = _load()
        images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)  # (1797, 1, 8, 8)
        labels = torch.tensor(bunch.target, dtype=torch.int64)
        fit, held = stratified(labels, 0.2)
        train, test = ArraySplit(images[fit], labels[fit]), ArraySplit(images[held], labels[held])
        shape = (1, 8, 8)
        mean, std = statistics(train, shape)
        return Dataset(
            name="digits",
            train=train,
            test=test,
            shape=shape,
            classes=tuple(str(name) for name in bunch.target_names),
            mean=mean,
            std=std,
            threat=ThreatModel("Linf", 38 / 255, 9.5 / 255),
            defaults={"epochs": 30, "batch_size": 64},
            teachers={
                # A WRN-34-10 step costs hundreds of times a small net's, and learns these digits in a few epochs.
                "robust": {
                    "model": "wrn10-2",
                    "recipe": {"epochs": 20, "attack": {"steps": 7}},
                    "large": {"epochs": 6, "attack": {"steps": 5}},
                },
                "clean": {"model": "wrn10-2", "recipe": {"epochs": 40}, "large": {"epochs": 10}},
            },
            fingerprint=fingerprint_of(train, test),
        )


@cache  # unpacking takes longer than all else
def _load() -> Any:
    # Here: it takes a second to import.
    return optional("sklearn.datasets", "digits", "the data set digits").load_digits()


@hookimpl
def rkd_datasets() -> dict[str, object]:
    return {"digits": Digits}
