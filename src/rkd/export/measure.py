"""What an artefact is worth: its logits beside the net's, its accuracy clean and under attack, its size and time.

An artefact gives no gradients, and eight bits would hide them if it did (Bernhard et al. 2019). So it is attacked in
three ways, and its robust accuracy is that under all of them:

- *straight through*: the artefact's own logits, and for the gradient that of the net it was made of (Athalye et al.
  2018, backward pass differentiable approximation). Every answer that a search sees, and by which it stops, is the
  artefact's. Rounding has no gradient; the net's is that of rounding taken as the identity.
- *transferred*: images made on the net, tried on the artefact.
- *black-box*: searches without gradients, on the artefact alone.

References: athalye2018obfuscated, bernhard2019impact
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.attack import Target
from ..core.errors import Refused
from ..core.interfaces import Attack
from ..core.step import AttackPlan
from ..core.traits import AttackTraits, traits_of
from ..core.types import Mode
from ..evaluation.evaluate import HasNotes
from ..evaluation.result import Evaluation, interval
from ..nets.modes import running

SAME = 1e-4
"""By how much the logits of a float artefact may differ from the net's, as a share of the largest logit."""

TRANSFERRED = "transferred"
"""Name of the search that runs on the net, among an artefact's attacks."""


class StraightThrough(nn.Module):
    """`artefact`'s logits with `net`'s gradient; both take images `(B, C, H, W)`."""

    def __init__(self, artefact: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.artefact, self.net = artefact, net

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            values: Tensor = self.artefact(x)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return values
        passed: Tensor = _Values.apply(self.net(x), values)
        return passed


class _Values(torch.autograd.Function):
    """`values`, with the gradient of `logits`."""

    @staticmethod
    def forward(context: Any, logits: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Transferred:
    """The images that `search` makes on `net`, whichever net is attacked."""

    def __init__(self, search: Attack, net: nn.Module) -> None:
        self.search, self.net = search, net
        own = traits_of(search)
        self.mode: Mode = own.mode
        self.traits: AttackTraits = replace(own, black_box=True, confirms=False)

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        with target.on(self.net, self.mode) as other:
            return self.search(x, other)

    def notes(self, classes: int) -> list[str]:
        """What made the images, and what it has to say."""
        own = self.search.notes(classes) if isinstance(self.search, HasNotes) else []
        return [f"made on the float net by {self.search}", *own]


def plans_of(net: nn.Module, attacks: Mapping[str, AttackPlan], transferred: str | None) -> dict[str, AttackPlan]:
    """`attacks`, and the one called `transferred` once more, with random numbers of its own, on `net` whichever net is
    attacked. On `net` itself that is one more start: the rows of a table are attacked alike."""
    if transferred is None:
        return dict(attacks)
    plan = attacks[transferred]
    return {**attacks, TRANSFERRED: AttackPlan(Transferred(plan.attack, net), plan.objective)}


def difference(artefact: nn.Module, net: nn.Module, images: Tensor) -> float:
    """The largest difference of their logits for `images (B, C, H, W)`, as a share of the net's largest logit.

    The artefact is asked for one image, for two, and for all: a batch that it holds fixed shows.
    """
    worst = 0.0
    with running(net, "eval"), torch.no_grad():
        for x in (images[:1], images[:2], images):
            expected, got = net(x), artefact(x)
            if got.shape != expected.shape:
                raise Refused(
                    f"the exported net returns {tuple(got.shape)} for {len(x)} images, the net {tuple(expected.shape)}"
                )
            error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def check_same(apart: float, name: str) -> None:
    """Raise Refused for a `difference` of a float artefact that is more than rounding of float32."""
    if apart > SAME:
        raise Refused(
            f"{name}: its logits differ from the net's by {apart:.1e} of the largest, more than rounding ({SAME:g}): "
            "the exporter made another net of it; try another format"
        )


def figures(result: Evaluation) -> dict[str, Any]:
    """The accuracies of an artefact, or of the net itself, as plain values: `clean`, `worst_case`, and by kind of
    attack `straight_through`, `transferred` and `black_box`, with counts and intervals."""
    kinds: dict[str, list[str]] = {"transferred": [], "straight_through": [], "black_box": []}
    for name in (name for name in result.attacks if result.counts(name)):
        blind = result.outcomes[name].about["black_box"]
        kinds[TRANSFERRED if name == TRANSFERRED else "black_box" if blind else "straight_through"].append(name)
    rights = {"clean": result.clean}
    rights |= {kind: torch.stack([result.attacks[n] for n in names]).all(0) for kind, names in kinds.items() if names}
    if result.attacks:
        rights["worst_case"] = result.worst()
    return {
        "samples": result.samples,
        "accuracy": {name: float(right.double().mean()) for name, right in rights.items()},
        "interval_95": {name: interval(right) for name, right in rights.items()},
        "attacks": {name: result.accuracy(name) for name in result.attacks},
        "of_kind": {kind: names for kind, names in kinds.items() if names},
        "searches": {name: _search(result, name) for name in result.attacks},
    }


def _search(result: Evaluation, name: str) -> dict[str, Any]:
    about = result.outcomes[name].about
    return {key: about[key] for key in ("implementation", "options", "notes", "objective", "norm", "eps", "black_box")}


def changes(before: Evaluation, after: Evaluation, name: str) -> tuple[list[str], list[str]]:
    """What became of the net's images in an artefact `name`: sentences to tell, and those that are doubts.

    Both were evaluated on the same images. A change is doubtful where more images are lost than won, or under attack
    won than lost, by more than two standard deviations of a fair coin's.
    """
    told, doubts = [], []
    parts = {"clean": (before.clean, after.clean)}
    if before.attacks:
        parts["worst case"] = before.worst(), after.worst()
    for what, (old, new) in parts.items():
        lost, won = int((old & ~new).sum()), int((new & ~old).sum())
        if not lost and not won:
            continue
        share = f"{float(old.double().mean()):.2%} to {float(new.double().mean()):.2%}"
        text = f"{name}: {what} from {share} (lost {lost}, won {won} of {len(old)} images)"
        clear = 2 * math.sqrt(lost + won)
        if lost - won > clear:
            doubts.append(f"{text}: a drop")
        elif what != "clean" and won - lost > clear:
            doubts.append(f"{text}: rounding hides gradients rather than making a net robust; trust the lower number")
        else:
            told.append(text)
    return told, doubts
