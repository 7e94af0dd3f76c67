"""An attack's search on a net that is evaluated, not trained: what it asks is counted, and nothing of the net moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.attack import PLAIN, Patches
from ..core.errors import Refused, RkdError
from ..core.interfaces import Accelerator, Probe
from ..core.step import AttackPlan, Step
from ..core.types import Batch, Mode, QueryKind, ThreatModel, View
from ..data.dataset import Split, fetch
from ..nets.net import NetStudent


def search(net: nn.Module, batch: Batch, plan: AttackPlan, threat: ThreatModel, noise_key: int) -> Tensor:
    """The images that one attack makes of a batch, in evaluation: `(B, C, H, W)`. The net is left as it was."""
    return Step(batch, Evaluated(net), attacks={"adv": plan}, threat=threat, noise_key=noise_key).image("adv")


class _Enough(Exception):
    pass


def rehearse(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan],
    *,
    threat: ThreatModel,
    device: torch.device | str = "cpu",
) -> None:
    """Raise Refused for an attack that an evaluation could not run, at the price of one forward and backward each.

    Each is called on two images and stopped at its second question, to this net or another (`transfer`).
    """
    batch = fetch(split, torch.arange(min(2, len(split))), device)
    for name, plan in attacks.items():
        asked: list[str] = []

        def stop(step: Step, view: str, logits: Tensor, asked: list[str] = asked) -> None:
            asked.append(view)
            if len(asked) > 1:
                raise _Enough

        step = Step(batch, Evaluated(net), attacks={"adv": plan}, threat=threat, on_query=stop, on_query_others=True)
        try:
            step.image("adv")
        except _Enough:
            continue
        except RkdError as error:
            raise Refused(f"the attack {name!r} could not be run in the evaluation: {error}") from None


@dataclass
class Asked:
    """How many images went through a net, and back."""

    forwards: int = 0
    backwards: int = 0


class Evaluated(NetStudent):
    """A net that learns nothing any more: not even its running statistics move. Counts what a search asks of it.

    `accelerator`: what a search in eval mode may run instead; such a search gets at the net itself by
    `Target.reference`.
    `asked` counts images through this net, `asked_of_others` those through nets that `Target.on` puts in its place:
    an attacker pays for both, but only the first are questions to the net under attack.
    """

    def __init__(self, net: nn.Module, accelerator: Accelerator = PLAIN) -> None:
        super().__init__(net)
        self.accelerator = accelerator
        self.asked, self.asked_of_others = Asked(), Asked()

    def stand_in(self, net: nn.Module) -> Evaluated:
        """`net` in this one's place, in the middle of a search."""
        found = Evaluated(net)
        found.asked = found.asked_of_others = self.asked_of_others
        return found

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> dict[View, Tensor]:
        self.asked.forwards += sum(map(len, images.values()))
        return super().logits(images, mode)

    @contextmanager
    def attacked(self, view: View, mode: Mode) -> Iterator[Probe]:
        with super().attacked(view, "frozen" if mode == "train" else mode) as probe:
            yield _Counted(self, probe)

    def count(self, forwards: int) -> None:
        self.asked.forwards += forwards

    def counted(self, logits: Tensor) -> Tensor:
        def backward(gradient: Tensor) -> None:
            self.asked.backwards += len(gradient)

        self.asked.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)
        return logits


class _Counted:
    """`probe`, with all that goes through the net counted."""

    def __init__(self, student: Evaluated, probe: Probe) -> None:
        self._student, self._probe = student, probe

    def __call__(self, x: Tensor) -> Tensor:
        return self._student.counted(self._probe(x))

    def reference(self, x: Tensor) -> Tensor:
        return self._student.counted(self._probe.reference(x))

    def low_precision(self, kind: QueryKind) -> _Counted:
        probe = self._probe.low_precision(kind)
        return self if probe is self._probe else _Counted(self._student, probe)

    def patches(self, x: Tensor) -> Patches:
        patches = self._probe.patches(x)
        patches.on_ask = self._student.count
        return patches
