"""How a student in training runs while it is attacked: chosen once by measuring, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.interfaces import Probe
from ..core.types import View
from .backends import WRAPS, Choice, in_pieces, made, ways, wrapped
from .choose import WORTH, choose, improved
from .effort import GRADIENT, forward_effort
from .fold import plain as untouched
from .measure import apart, gradient

WAYS = {"folded": "folded", "channels-last": "folded, channels last", "fused": "folded, fused"}
"""What can be asked for by name; under reduced precision in bfloat16."""


SHORT = 120.0
"""Seconds of searching below which the net runs as it is: a short run's numbers shall not hang on measured times. By
what is computed, not by the clock (`effort`), or they would hang on what else the machine does."""
CHECKED = 32
"""Images on which a way that nobody measures is compared with the net."""
LONG = 600.0
"""Seconds of searching from which on compiling, which takes up to a minute, is tried."""


class Searches:
    """Gives each search on a student in eval mode a copy of its net that runs faster.

    `kind`: `auto` measures, where the run is long enough for it to pay, `plain` is the net itself, a name of WAYS
    that way unmeasured. `queries`: gradients of a batch that the run will ask for. `machine`: what a choice depends on
    besides net and images. `forwards`: little more than forwards will be asked for, `queries` of them, as of a teacher.
    `recall(key)`, `keep(key, what)`: where choices are remembered, so that a continued run goes on as it began.
    """

    def __init__(
        self, kind: str = "auto", *, queries: int = 0, machine: str = "", forwards: bool = False,
        tell: Callable[[str], None] = lambda text: None,
        recall: Callable[[str], Mapping[str, Any] | None] = lambda key: None,
        keep: Callable[[str, dict[str, Any]], None] = lambda key, what: None,
    ) -> None:  # fmt: skip
        self.kind, self.queries, self.machine, self.tell = kind, queries, machine, tell
        self.forwards = forwards
        self.recall, self.keep = recall, keep
        self._known: dict[tuple[View | None, torch.Size, str], Choice] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Searches:
        """A copied student, as of a dry step, is another net, and runs as it is."""
        return Searches("plain")

    def probe(self, net: nn.Module, view: View | None, plain: Probe) -> Probe:
        """`net` for one search, as the routed norms of `view` make it; `plain` is the same without the engine."""
        dtype = getattr(net, "autocast", None)
        if self.kind == "plain" or (self.kind == "auto" and self.queries < WORTH) or dtype is torch.float16:
            return plain
        return _Search(self, net, view, plain)

    def choices(self) -> list[str]:
        """What was chosen, in words, for the manifest."""
        return sorted({str(choice) for choice in self._known.values()})

    def choice(self, net: nn.Module, view: View | None, plain: Probe, x: Tensor) -> Choice:
        """The way to run `net` on images like `x`, with the weights it has now."""
        if not all(untouched(module) for module in net.modules()):  # a hook may do anything, now and not later
            return Choice("plain", net)
        where = (view, x.shape[1:], x.device.type)
        known = self._known.get(where)
        if known is None or not known.current():
            known = self._known[where] = self._choose(net, view, plain, x)
        known.refresh()
        return known

    def release(self) -> None:
        """Give back what only a search needs."""
        for known in self._known.values():
            known.release()

    @torch.inference_mode(False)
    def _choose(self, net: nn.Module, view: View | None, plain: Probe, x: Tensor) -> Choice:
        half = getattr(net, "autocast", None) is torch.bfloat16
        if self.kind != "auto":
            return self._made(WAYS[self.kind], None, net, view, plain, x, half)
        # With the run's length, on which the choice depends. Without the number of images: a continued run may begin
        # with an epoch's last batch, and go on as it was.
        what = repr((self.machine, self.queries, net, view, x.shape[1:], x.device.type, half))
        key = hashlib.sha256(what.encode()).hexdigest()[:24]
        before = self.recall(key)
        if before is not None:
            way, piece = str(before.get("way", "")), before.get("piece")
            if way == "plain":
                return Choice("plain", net)
            found = self._made(way, piece if isinstance(piece, int) else None, net, view, plain, x, half)
            for kind in WRAPS:
                count = before.get(kind)
                if isinstance(count, int) and found.net is not net:
                    found = self._wrapped(found, kind, torch.Size([count, *x.shape[1:]]))
            return found
        ahead = self.queries * len(x) * forward_effort(plain, x) * (1 if self.forwards else GRADIENT)
        if ahead < SHORT:
            self.tell(f"searches: some {ahead:.0f} s are ahead, too few to look for a faster way")
            self.keep(key, {"way": "plain", "speedup": 1.0})
            return Choice("plain", net)
        if self.forwards:  # no more is measured: the backward's memory would be the largest of the training
            found = self._made(ways(x.device)[-1], None, net, view, plain, x, half)
            self.tell(f"forwards: {found}")
            self.keep(key, {"way": found.way, "speedup": 1.0})
            return found
        found = choose(net, x, precision="bfloat16" if half else "float32", view=view, probe=plain, tell=self.tell)
        # Fused layers are nothing that a compiler could make faster.
        if found.net is not net and "fused" not in found.way and self.queries * len(x) * found.seconds > LONG:
            found = improved(found, "compiled", x, self.tell)
        if found.net is not net and x.device.type == "cuda":
            found = improved(found, "captured", x, self.tell)
        self.tell(f"searches: {found}")
        piece = getattr(found.net, "piece", None)
        counts = {kind: (piece or len(x)) if kind in found.name else None for kind in WRAPS}
        self.keep(key, {"way": found.way, "piece": piece, "speedup": found.speedup} | counts)
        return found

    def _wrapped(self, found: Choice, kind: str, shape: torch.Size) -> Choice:
        """What was chosen before, compiled or captured again; without, where that fails now."""
        try:
            return wrapped(found, kind, shape)
        except RuntimeError as error:
            self.tell(f"{kind}: {str(error).splitlines()[0]}")
            return found

    def _made(
        self, way: str, piece: int | None, net: nn.Module, view: View | None, plain: Probe, x: Tensor, half: bool
    ) -> Choice:
        """A way that nobody measures now, if it is the same function."""
        if half and "bfloat16" not in way:
            way = way.replace("folded", "folded, bfloat16")
        try:
            found, few = made(way, net, x, view), x[:CHECKED]
            off = apart(found.net, few, gradient(plain, few), found.exact)
        except Exception as error:  # whatever a stranger's module does when it is copied: it runs as it is
            self.tell(f"{way}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return Choice("plain", net)
        if off > 1:
            self.tell(f"{way}: off by {off:.1g} times what rounding explains; the net runs as it is")
            return Choice("plain", net)
        return in_pieces(found, piece) if piece else found


class _Search:
    """The net in one search. How it runs is settled by `prepare`, before the first question, or by that question."""

    def __init__(self, searches: Searches, net: nn.Module, view: View | None, plain: Probe) -> None:
        self._searches, self._net, self._view, self._plain = searches, net, view, plain
        self._asked: Probe | None = None
        self._shape = torch.Size()
        self.piece: int | None = None

    def prepare(self, x: Tensor) -> None:
        """Choose, or take over the weights, for images like `x`."""
        chosen = self._searches.choice(self._net, self._view, self._plain, x.detach())
        self._asked = self._plain if chosen.net is self._net else chosen.net
        self._shape = x.shape[1:]
        self.piece = getattr(chosen.net, "piece", None)

    def __call__(self, x: Tensor) -> Tensor:
        if self._asked is None or x.shape[1:] != self._shape:
            self.prepare(x)
        assert self._asked is not None
        return self._asked(x)

    def release(self) -> None:
        """The search is over: the training that follows wants the memory of its copies."""
        self._searches.release()
