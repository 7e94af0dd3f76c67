"""Attacks on a net that is evaluated, not trained: their queries are counted, and nothing of the net changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..core.attack import Patches
from ..core.interfaces import Probe
from ..core.step import AttackPlan, Step
from ..core.types import Batch, Mode, QueryKind, ThreatModel, View
from ..nets.net import PLAIN, Accelerator
from ..nets.student import NetStudent


def attack_batch(net: nn.Module, batch: Batch, plan: AttackPlan, threat: ThreatModel, noise_key: int) -> Tensor:
    """The adversarial images `(B, C, H, W)` of a batch. The net is left as it was."""
    return Step(batch, CountingModel(net), attacks={"adv": plan}, threat=threat, noise_key=noise_key).image("adv")


@dataclass
class QueryCount:
    """How many images went through a net, and how many gradients came back."""

    forwards: int = 0
    backwards: int = 0


class CountingModel(NetStudent):
    """A net that is attacked and learns nothing: not even its running statistics move. Counts an attack's queries.

    `accelerator`: how the net runs for attacks in eval mode; they reach the net itself by `Target.reference`.
    `queries` counts images through this net, `other_queries` those through nets that `Target.on` puts in its place: an
    attacker pays for both, but only the first are queries of the net under attack.
    """

    def __init__(self, net: nn.Module, accelerator: Accelerator = PLAIN) -> None:
        super().__init__(net)
        self.accelerator = accelerator
        self.queries, self.other_queries = QueryCount(), QueryCount()

    def stand_in(self, net: nn.Module) -> CountingModel:
        """`net` in this one's place, in the middle of an attack."""
        other = CountingModel(net)
        other.queries = other.other_queries = self.other_queries
        return other

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> dict[View, Tensor]:
        self.count(sum(map(len, images.values())))
        return super().logits(images, mode)

    @contextmanager
    def attacked(self, view: View, mode: Mode) -> Iterator[Probe]:
        with super().attacked(view, "frozen" if mode == "train" else mode) as probe:
            yield _CountingProbe(self, probe)

    def count(self, forwards: int) -> None:
        self.queries.forwards += forwards

    def counted(self, logits: Tensor) -> Tensor:
        """`logits`, with the forward counted, and the backward when it comes."""

        def backward(gradient: Tensor) -> None:
            self.queries.backwards += len(gradient)

        self.count(len(logits))
        if logits.requires_grad:
            logits.register_hook(backward)
        return logits


class _CountingProbe:
    """`probe`, with its queries counted."""

    def __init__(self, model: CountingModel, probe: Probe) -> None:
        self._model, self._probe = model, probe

    def __call__(self, x: Tensor) -> Tensor:
        return self._model.counted(self._probe(x))

    def reference(self, x: Tensor) -> Tensor:
        return self._model.counted(self._probe.reference(x))

    def low_precision(self, kind: QueryKind) -> _CountingProbe:
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else _CountingProbe(self._model, probe)

    def patches(self, x: Tensor) -> Patches:
        patches = self._probe.patches(x)
        patches.on_ask = self._model.count
        return patches
