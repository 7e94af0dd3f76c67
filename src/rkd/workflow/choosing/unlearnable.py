"""The rule by which teachers are ranked, and the training images that it looks at.

Lee and Chung (ICML 2026, arXiv 2605.21999) call *robustly unlearnable* the training images that nets of the student's
architecture get wrong under PGD whatever the seed and the method (their code: six methods or teachers with ten seeds
each, PGD of 20 steps of eps/4 from a uniform start). Their rule: of several robust teachers the one with the highest
predictive entropy on these images gives the most robust student.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rkd.core.errors import RkdError
from rkd.storage.text import MOST_JSON, expanded, parse_json, read_text, shown

LEAST = 30
"""Images below which a mean entropy says nothing: its standard error is about a fifth of the spread there."""

KEY = "unlearnable_indices"
"""Name of the positions in the JSON of `rkd teachers rank --json`, and in that of the published code."""


def read_positions(file: str, images: int) -> Tensor:
    """Positions among `images` training images, in order `(M,)`: a JSON list, or an object that has one under KEY.

    Raises RkdError, also for fewer than LEAST.
    """
    path = expanded(file)
    try:
        found = parse_json(read_text(path, MOST_JSON))
    except FileNotFoundError:
        raise RkdError(f"there is no file {path}") from None
    except ValueError as error:
        raise RkdError(f"{path} is not valid JSON: {error}") from None
    listed = found.get(KEY) if isinstance(found, Mapping) else found
    if not isinstance(listed, list):
        raise RkdError(f"{path}: expected a JSON list of positions, or an object with one under {KEY!r}")
    for place in listed:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < images:
            raise RkdError(f"{path}: {shown(place)} is no position among {images} training images (0 to {images - 1})")
    positions = torch.tensor(sorted(set(listed)), dtype=torch.int64)
    if len(positions) < LEAST:
        raise RkdError(f"{path}: {too_few(len(positions))}")
    return positions


def too_few(images: int) -> str:
    """Why so few images give no ranking."""
    return f"{images} robustly unlearnable images are too few to tell teachers apart by; at least {LEAST} are needed"


def wrong_for_all(rights: Sequence[Tensor]) -> Tensor:
    """Rows `(M,)` of the images that no net gets right; `rights`: of each net `(N,)` bool."""
    return (~torch.stack(list(rights)).any(0)).nonzero().squeeze(1)


def at_chance(right: Tensor, labels: Tensor) -> bool:
    """Whether three standard errors reach from the share of the commonest class to that of `right (N,)`."""
    chance = float(labels.bincount().max()) / len(labels)
    return float(right.double().mean()) <= chance + 3 * (chance * (1 - chance) / len(labels)) ** 0.5


def by_entropy(entropies: Mapping[str, Tensor]) -> list[str]:
    """The names, the highest mean of `(M,)` first."""
    return sorted(entropies, key=lambda name: -float(entropies[name].mean()))


def not_told_apart(entropies: Mapping[str, Tensor]) -> list[tuple[str, str, float, float]]:
    """Neighbours in `by_entropy` whose mean entropies on the same images differ by less than two standard errors of
    the paired difference: both names, the difference, its standard error."""
    found = []
    for first, second in pairwise(by_entropy(entropies)):
        difference = entropies[first] - entropies[second]
        mean, error = float(difference.mean()), standard_error(difference)
        if mean < 2 * error or mean == 0:
            found.append((first, second, mean, error))
    return found


def standard_error(values: Tensor) -> float:
    """Of the mean of `values (M,)`."""
    return float(values.std() / len(values) ** 0.5)
