"""Transfer: images made on another net, tried on this one.

An attacker who cannot look into a net attacks one of his own and hopes. Here the other net is any finished run or
weights file, and any search can run on it:

    x_adv = search(x, score of the source net)

with the labels, the ball and the random numbers that the search would have on the attacked net: with that net itself
as the source, `transfer` is the search. The attacked net is asked nothing; what the source is asked, the evaluation
counts as `other_forwards` and `other_backwards`.

References: papernot2016transferability

What that paper does, and what is done here:

- It trains the substitute on the attacked net's own answers; here the source is given, and was trained as it was.
- It counts the share of images that fool the net; here, as for every attack, a sample is right if it is right both
  clean and attacked. The search runs on whatever the attacked net gets right, also where the source is wrong. Searches
  that let fallen samples go (`apgd-ce`, `autoattack`, ...) leave such images as they are, and stop where the source is
  only just fooled; `pgd-sat`, `cw-30` and `mifgsm` go on to their last step.

A net that falls to transferred images more often than to an attack on itself hides its gradients (Athalye et al.
2018); the evaluation says so.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from rkd.plugin import (
    AttackTraits,
    Finite,
    HasNotes,
    Mode,
    Parts,
    Refused,
    RkdError,
    Target,
    hookimpl,
    identity,
    traits_of,
)


@dataclass
class Transfer:
    """Images made on another net and tried on this one (after Papernot et al. 2016).

    `source`: the other net, a finished run's folder or MODEL@WEIGHTS, for data of the same shape and classes.
    `attack`: the search that runs on it, with its `options`; what it maximises is its own, unless told.
    `normalize`: what a weights file's net expects: the data's mean and std, plain [0, 1] images (none), or whichever is
    right on more training images; `model`: the options of its MODEL.
    """

    source: str | None = None
    attack: str = "pgd-sat"
    options: dict[str, Any] = field(default_factory=dict)
    normalize: str = "auto"
    model: dict[str, Any] = field(default_factory=dict)

    mode: ClassVar[Mode] = "eval"
    traits = AttackTraits(black_box=True)
    """Without the attacked net's gradients. Objective and ball are the search's, once there is one."""

    def __post_init__(self) -> None:
        self._net: nn.Module | None = None
        self._asked: nn.Module | None = None
        self._search: Any = None
        self._traits = AttackTraits()

    def assemble(self, parts: Parts) -> None:
        """Find the source and the search. Raises RkdError."""
        if not self.source:
            raise RkdError(
                "the net to make the images on is missing; type --set attack.transfer.source=RUN, a finished run's "
                "folder, or =MODEL@WEIGHTS"
            )
        self._search = parts.attack(self.attack, self.options)
        own = self._traits = traits_of(self._search)
        self.traits = AttackTraits(own.objective, own.own_objective, True, seeks_nearest=own.seeks_nearest,
                                   bounded=own.bounded, eps=own.eps, norm=own.norm)  # fmt: skip
        self._net, self._asked = parts.net(self.source, self.normalize, self.model), None

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        """`(B, C, H, W)` float32 in [0, 1], inside the search's ball around `x`. The search's cost, on the source."""
        if self._net is None or self._search is None:
            raise Refused("transfer has no source: it must be assemble()d, as rkd does for a configuration")
        if self._asked is None:
            self._asked = Finite(self._net)
        with target.on(self._asked.to(x.device), self._traits.mode) as other:
            return self._search(x, other)

    def notes(self, classes: int) -> list[str]:
        """Where the images came from, and what the search has to say."""
        if self._net is None:
            return []
        own = self._search.notes(classes) if isinstance(self._search, HasNotes) else []
        search = " ".join([self.attack, *(f"{name}={value}" for name, value in self.options.items())])
        return [f"made on {self.source} (weights {identity(self._net)}) by {search}", *own]


@hookimpl
def rkd_attacks() -> dict[str, type]:
    return {"transfer": Transfer}
