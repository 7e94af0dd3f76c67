"""Which way to run a net is fastest depends on net, batch, machine and version of torch: it is measured.

A candidate is a frozen copy of the net (`ways`). Each is compared with the net itself in float32 before it may be used,
and the time of its input gradient, which is what attacks spend their time on, decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core.errors import Refused
from ..core.interfaces import Probe, traits_of
from ..core.types import RoughPart, View
from ..core.windows import Windows
from ..nets.memory_format import channels_last
from ..nets.modes import frozen_parameters, running
from .backends import Choice, InBfloat16, InLayout, Precision, in_pieces, made, parts, ways, wrapped
from .local import LocalWindows, follows, plan
from .measure import NEAR, SAME, alone, apart, gradient, race, wait
from .pieces import InPieces
from .tape_windows import TapeWindows

WORTH = 300
"""Gradients of one batch below which a search is over before measuring has paid."""
PIECES = (32, 16, 64, 128)
"""Numbers of images to ask a net about at once, tried on a CPU."""
FEWEST, SLOW = 8, 0.05
"""As many images are enough to compare copies of a net whose gradient takes so many seconds for them."""
NEARLY, FINALISTS = 1.15, 2
"""How much longer than the fastest a candidate may take over a few images to be measured on more, and how many may."""
TIMES = 6
"""How often a window is asked about to be timed."""
MARGIN = 0.95
"""A candidate must take less than this share of the plain net's time."""


class Engine:
    """Chooses for searches that confirm what they find (`confirms = True`), once for each net and kind of batch.

    `bfloat16`: searches that can do with it (`Target.rough`) run in reduced precision where that is faster. What such
    a search finds depends on the machine's rounding, so that it has to be asked for.
    """

    def __init__(self, tell: Callable[[str], None] = lambda text: None, bfloat16: bool = False) -> None:
        self.tell = tell
        self.bfloat16 = bfloat16
        self._known: dict[tuple[int, tuple[int, ...], str], Choice] = {}
        self._nets: list[nn.Module] = []
        """Kept alive, so that an id stays its net's own. Their weights must not change meanwhile."""

    def choice(self, net: nn.Module, attack: object, x: Tensor, batches: int) -> Choice | None:
        """The way to run a search on `batches` batches like `x`, or None: the net as it is."""
        traits = traits_of(attack)
        if not traits.confirms or traits.mode != "eval":
            return None
        where = (id(net), tuple(x.shape[1:]), x.device.type)
        if where not in self._known:
            if batches * questions(attack) < WORTH:
                return None
            self._nets.append(net)
            chosen = choose(net, x, shrinking=True, tell=self.tell)
            if x.device.type == "cuda" and chosen.net is not net:
                chosen = improved(chosen, "captured", x, self.tell)
            chosen = replace(chosen, windows=followed(chosen, x, self.tell))
            if self.bfloat16 and getattr(net, "autocast", None) is None:
                chosen = replace(chosen, rough=self._rough(net, chosen, x))
            self._known[where] = chosen
        known = self._known[where]
        return None if known.net is net and known.windows is None else known

    def _rough(self, net: nn.Module, chosen: Choice, x: Tensor) -> dict[RoughPart, Choice]:
        """The ways in reduced precision that are faster than the one chosen in float32, by what they are faster at."""
        found: dict[RoughPart, Choice] = {}
        inside = choose(net, x, precision="bfloat16 inside", shrinking=True, tell=self.tell)
        if inside.net is not net:
            inside = replace(inside, windows=followed(inside, x, self.tell))
            if inside.seconds < MARGIN * chosen.seconds:
                found["gradient"] = inside
            before, after = asking([chosen, inside], x)
            self.tell(f"windows in reduced precision: {before / after:.2f} times as fast")
            if after < MARGIN * before:
                found["forward"] = inside
        return found


def engine_of(kind: str, tell: Callable[[str], None] = lambda text: None) -> Engine | None:
    """By the name that a user types: `auto`, `bfloat16`, or `plain` for none."""
    return None if kind == "plain" else Engine(tell, bfloat16=kind == "bfloat16")


def questions(attack: object) -> int:
    """Roughly how many gradients a search takes."""
    count = 1
    for name in ("steps", "targets", "restarts"):
        count *= max(1, int(getattr(attack, name, 1)))
    return max(count, int(getattr(attack, "queries", 0)) // 3)


@torch.inference_mode(False)
def choose(
    net: nn.Module, x: Tensor, *, precision: Precision = "float32", budget: float = 2.0, view: View | None = None,
    probe: Probe | None = None, shrinking: bool = False, tell: Callable[[str], None] = lambda text: None,
) -> Choice:  # fmt: skip
    """The fastest way to the logits of `net` in eval mode and to their gradient by the images, for batches like `x`.

    `precision`: only a caller that confirms what it finds on the net itself, or was asked for reduced precision, may
    ask for less than float32. `budget`: seconds to spend on measuring; of a net so slow that it is not
    enough, the order of the candidates decides. `view`, `probe`: a net with routed norms as this view sees it.
    `shrinking`: batches will lose samples, and their pieces, of equal size, become smaller than was measured: pieces
    have to be faster by MARGIN. The net is left as it was.
    """
    asked: Probe = probe or net
    plain = Choice("plain", net)
    found = [plain]
    with running(net, "eval"), frozen_parameters(net):
        started = time.perf_counter()
        try:
            gradient(asked, x[:FEWEST])
        except Refused:
            return plain
        checked = x[: FEWEST if time.perf_counter() - started > SLOW else PIECES[0]]
        wanted = gradient(asked, checked)
        for candidate in candidates(net, x, precision, view):
            try:
                off = apart(candidate.net, checked, wanted, candidate.exact)
            except RuntimeError as error:
                tell(f"{candidate.name}: {str(error).splitlines()[0]}")
                continue
            if off > 1:
                tell(f"{candidate.name}: off by {off:.1g} times what rounding explains")
                continue
            found.append(candidate)
        # On a CPU a net is slower on many images than on a few (see `pieces`): copies are compared on a few, the best
        # of them whole and in pieces of several sizes.
        cpu = x.device.type == "cpu"
        few = checked if cpu else x
        seconds = race([(asked, few), *((other.net, few) for other in found[1:])], budget)
        for choice, taken in zip(found, seconds, strict=True):
            tell(f"{choice.name}: {1e6 * taken:.0f} us an image")
        order = sorted(range(len(found)), key=lambda place: seconds[place])
        near = [found[place] for place in order if seconds[place] <= NEARLY * seconds[order[0]]][:FINALISTS]
        found.clear()  # copies that lost take memory
        # The net as a routed view sees it is no module that could be wrapped.
        whole_only = [best is plain and probe is not None for best in near]
        rows: list[tuple[Choice, int | None]] = [(best, None) for best in near]
        for best, whole in zip(near, whole_only, strict=True):
            sizes = [size for size in PIECES if cpu and not whole and size < len(x)]
            rows += [(best, size) for size in sizes if alone(asked if best is plain else best.net, x, size)]
        tries = [(asked if best is plain else best.net, x[:size]) for best, size in rows]
        first, *seconds = race([(asked, x), *tries], budget)
    for (best, size), taken in zip(rows, seconds, strict=True):
        tell(f"{best.name}, {size or len(x)} at a time: {1e6 * taken:.0f} us an image, plain {1e6 * first:.0f}")
    enough = MARGIN if shrinking else 1.0
    place = min(range(len(rows)), key=lambda place: seconds[place] / (enough if rows[place][1] else 1.0))
    taken, (best, size) = seconds[place], rows[place]
    if taken > MARGIN * first:
        return replace(plain, seconds=first)
    chosen = replace(best, speedup=first / taken, seconds=taken)
    return in_pieces(chosen, size) if size else chosen


def followed(choice: Choice, x: Tensor, tell: Callable[[str], None]) -> Callable[[Tensor], Windows] | None:
    """How to follow windows of images like `x (B, C, H, W)`, if that is exact and pays."""
    if x.device.type != "cpu" or x.ndim != 4:
        return None
    best, most = None, 1 / MARGIN
    with running(choice.net, "eval"):
        for name, follow in _followers(choice, x).items():
            off, times = follows(follow, choice.net, x)
            tell(f"windows, {name}: {times:.2f} times as fast, off by {off:.1g}")
            if off <= (SAME if choice.exact else NEAR) and times > most:
                best, most = follow, times
    return best


def _followers(choice: Choice, x: Tensor) -> dict[str, Callable[[Tensor], Windows]]:
    """The ways to follow windows, by name."""
    found: dict[str, Callable[[Tensor], Windows]] = {}
    piece, net = (choice.net.piece, choice.net.net) if isinstance(choice.net, InPieces) else (None, choice.net)
    layout = isinstance(net, InLayout)
    inner = net.net if isinstance(net, InLayout) else net
    seen = inner.seen if isinstance(inner, InBfloat16) else torch.float32
    arch, mean, std = (inner.net, inner.mean, inner.std) if isinstance(inner, InBfloat16) else parts(inner)

    def before(images: Tensor) -> Tensor:
        images = (images - mean) / std
        images = channels_last(images) if layout else images
        return images.to(seen)

    if choice.exact and (how := plan(choice.arch or arch, x, before)) is not None:
        found["images last"] = lambda images: LocalWindows(choice.net, images, how)
    if (tape := choice.tape) is not None:
        found["on the tape"] = lambda images: TapeWindows(choice.net, images, tape, before, piece)
    return found


def asking(choices: Sequence[Choice], x: Tensor) -> list[float]:
    """Seconds in which each answers for a window of a fifth of each edge of the images `x`, as a random search asks."""
    sides = [max(length // 5, 1) for length in x.shape[2:]]
    starts = [(length - side) // 2 for length, side in zip(x.shape[2:], sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    taken = [float("inf")] * len(choices)
    mask = torch.arange(len(x), device=x.device) % 2 == 0
    with torch.no_grad():
        followed = [choice.windows(x) if choice.windows else Windows(choice.net, x) for choice in choices]
        for _ in range(TIMES):
            for place, one in enumerate(followed):
                wait(x.device)
                begun = time.perf_counter()
                one.ask(rows, columns, 1 - x[:, :, rows, columns])
                one.settle(mask)
                wait(x.device)
                taken[place] = min(taken[place], time.perf_counter() - begun)
    return taken


def candidates(net: nn.Module, x: Tensor, precision: Precision, view: View | None = None) -> list[Choice]:
    """Copies of the net that may be faster."""
    found: dict[str, Choice] = {}
    if getattr(net, "autocast", None) is torch.bfloat16 and precision == "float32":
        return []  # another function
    # The last one is fused, if there is such a way. It alone can keep a net's ends in float32 while the rest is in
    # reduced precision: what others there are need not be measured then.
    for way in reversed(ways(x.device, precision)):
        try:
            choice = made(way, net, x, view)
        except Exception:  # a module that cannot be copied, converted or read runs without it
            continue
        if choice.name:
            found.setdefault(choice.name, choice)
        if precision == "bfloat16 inside" and choice.tape is not None:
            break
    return list(reversed(found.values()))


def improved(choice: Choice, kind: str, x: Tensor, tell: Callable[[str], None]) -> Choice:
    """The same compiled, or captured, for batches like `x`, where that is faster and the same function."""
    few = x[: getattr(choice.net, "piece", None) or len(x)]
    net: nn.Module = choice.net.net if isinstance(choice.net, InPieces) else choice.net
    try:
        better = wrapped(choice, kind, few.shape)
        fast = better.net.net if isinstance(better.net, InPieces) else better.net
        off = apart(fast, few, gradient(net, few), choice.exact)
    except Exception as error:  # no compiler, or whatever else stops it
        tell(f"{kind}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return choice
    before, after = race([(net, few), (fast, few)], 2.0)
    found = f"{1e6 * after:.0f} us an image, before {1e6 * before:.0f}"
    tell(f"{choice.name}, {kind}: {found}, off by {off:.1g} of its rounding")
    if off > 1 or after > MARGIN * before:
        return choice
    return replace(better, speedup=choice.speedup * before / after, seconds=after)
