"""Questions to a net that its accuracies leave open: is it the net that is robust, or the attack that fails?

`look` asks by a few forwards and one gradient; `probe` runs attacks on a few images whose outcome is known for every
net whose gradients are of use (Athalye et al., ICML 2018, part 3.1; Carlini et al. 2019, On Evaluating Adversarial
Robustness): one with a larger radius succeeds more often, one without bound always, and one that sees the gradients
is no weaker than one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..core import ops
from ..core.random import key
from ..core.step import AttackPlan
from ..core.types import ThreatModel
from ..data.dataset import Split, fetch
from ..nets.modes import frozen_parameters, running
from .counting import search
from .evaluate import choose, evaluate
from .model import NoGradient, ready
from .result import Evaluation
from .warnings import Doubt, missed_by

TINY = 1e-20
"""A largest gradient entry below this is one that float32 arithmetic does not carry through an attack."""


@torch.inference_mode(False)
def look(
    net: nn.Module,
    split: Split,
    *,
    threat: ThreatModel,
    again: AttackPlan | None = None,
    samples: int = 64,
    device: torch.device | str = "cpu",
) -> list[Doubt]:
    """What a few forwards and one gradient show. With `again`, that attack runs twice on a few images: it has to do
    the same both times. The net is left as it was. A net handed over in train mode is reported, and looked at in eval
    mode."""
    found = _train_mode(net)
    batch = fetch(split, choose(len(split), min(samples, len(split))), device)
    net = ready(net, batch.x)
    with running(net, "eval"), torch.no_grad():
        first, second = net(batch.x), net(batch.x)
        part = net(batch.x[: max(1, len(batch) // 3)])
    found += _stochastic(first, second) or _batch_dependent(first, part)
    found += _probabilities(first)
    right = ops.correct(first, batch.y)
    if isinstance(net, NoGradient):
        return [
            *found,
            Doubt(
                "no-gradient",
                net.why,
                "only attacks that need no gradient can run: on most nets they find far less than those that do",
                "change what stands in the gradient's way, and evaluate again with autoattack",
            ),
        ]
    if bool(right.any()):
        found += _gradients(net, batch.select(right).x, batch.y[right], first[right])
    if again is not None:
        few = batch.select(torch.arange(min(8, len(batch)), device=batch.x.device))
        one, two = (search(net, few, again, threat, key("self-check")) for _ in range(2))
        apart = float((one - two).abs().max())
        if apart > 1e-6:
            found.append(
                Doubt(
                    "nondeterministic",
                    f"the same attack with the same seed made images that differ by {apart:.2g}",
                    "net or machine computes something else each time, and so will the numbers be",
                    "torch.use_deterministic_algorithms(True), or state the spread of several evaluations",
                )
            )
    return found


def probe(
    net: nn.Module,
    split: Split,
    plans: Mapping[str, AttackPlan],
    *,
    threat: ThreatModel,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Doubt], Evaluation]:
    """What attacks with a known outcome show, on a few images. Gives the evaluation, too.

    `plans` go by what they are for; any may be missing: `fgsm` one step, `short` and `long` the same search with
    fewer and more steps, `large` with four times the radius, `unbounded` with the whole of [0, 1], `margin` one that
    knows no cross-entropy, `black-box` one without gradients.
    """
    result = evaluate(net, split, plans, threat=threat, seed=seed, batch_size=batch_size, device=device,
                      limit=min(samples, len(split)), progress=progress)  # fmt: skip
    return judge(result), result


def judge(result: Evaluation) -> list[Doubt]:
    """What the outcomes of `probe`'s attacks say.

    `doubts` asks some of this, too, but of the evaluation's own attacks and on all its images; here a few images and
    fixed attacks. So the checks have names of their own, and both findings are shown.
    """
    n, clean = result.samples, int(result.clean.sum())
    left = {name: int(right.sum()) for name, right in result.attacks.items()}
    luck = max(2.0, 0.03 * n)
    found = []
    if {"fgsm", "short"} <= left.keys() and left["fgsm"] < left["short"] - luck:
        found.append(
            Doubt(
                "fgsm-beats-pgd",
                f"of {clean} images {clean - left['fgsm']} fall to one step, but {clean - left['short']} to many",
                "the loss is jagged or its gradients masked, so that small steps lose their way",
                "run autoattack; no number of PGD stands for this net",
            )
        )
    if {"short", "long"} <= left.keys() and left["long"] > left["short"] + luck:
        found.append(
            Doubt(
                "more-steps",
                f"five times the steps fool the net less often ({clean - left['long']} instead of "
                f"{clean - left['short']} of {clean})",
                "the search does not climb what it means to climb",
                "use a smaller step, restarts, or autoattack",
            )
        )
    stuck = {"long", "large"} <= left.keys() and left["long"] > 0.1 * n and left["large"] > 0.9 * left["long"]
    if stuck and not _gains(result, "long", "large"):
        found.append(
            Doubt(
                "larger-eps",
                f"with four times the radius {left['large']} of {clean} images still stand, with eps itself "
                f"{left['long']}, and no more narrowly",
                "in a larger ball an attack must come nearer to its aim: this one does not",
                "run autoattack, and look at the accuracy against eps (--curve)",
            )
        )
    if "unbounded" in left and left["unbounded"] > max(luck, 0.05 * n):
        found.append(
            Doubt(
                "unbounded",
                f"{left['unbounded']} of {clean} images withstand an attack that may change every pixel to anything",
                "such an attack succeeds on every net whose gradients it can use: here it cannot",
                "run autoattack and apgd-dlr; do not report a number of an attack that fails here",
            )
        )
    if {"long", "margin"} <= left.keys() and left["margin"] < left["long"] - max(luck, 0.1 * n):
        found.append(
            Doubt(
                "cross-entropy",
                f"an attack on the logits' margin fools the net on {clean - left['margin']} of {clean} images, the "
                f"same attack on cross-entropy on {clean - left['long']}",
                "cross-entropy has no usable gradient here: the softmax is saturated, as after defensive distillation",
                "use cw, apgd-dlr or autoattack, or divide the logits by the temperature of the training",
            )
        )
    seeing = [name for name in ("short", "long") if name in left]
    if "black-box" in left and seeing:
        missed = missed_by(result, seeing, "black-box")
        if missed > luck:
            found.append(
                Doubt(
                    "black-box-beats-pgd",
                    f"an attack that sees no gradients fools the net on {missed} of {clean} images where PGD failed",
                    "the gradients lead nowhere: they are masked",
                    "run autoattack; the number of PGD is worth nothing here",
                )
            )
    return found


@torch.inference_mode(False)
def slope(
    net: nn.Module, split: Split, *, threat: ThreatModel, samples: int = 64, device: torch.device | str = "cpu"
) -> float | None:
    """By how much the margin of an image falls per unit of the threat's radius, for a net that is nearly linear in
    the ball: the median of its gradient's dual norm, over a few images that are right.

    None where the gradients cannot be what decides: if of more than a tenth of the images they would let the net stand
    when every pixel may change to anything, which no net survives.
    """
    batch = fetch(split, choose(len(split), min(samples, len(split))), device)
    net = ready(net, batch.x)
    if isinstance(net, NoGradient):
        return None
    x = batch.x.detach().requires_grad_()
    with running(net, "eval"), frozen_parameters(net), torch.enable_grad():
        logits = net(x)
        margin = ops.margin(logits, batch.y)
        if not margin.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    right = ops.correct(logits, batch.y)
    order, most = (1, 1.0) if threat.norm == "Linf" else (2, math.sqrt(x[0].numel()))
    steep, margin = gradient.flatten(1).norm(order, dim=1)[right], margin.detach()[right]
    reached = margin <= most * steep  # False for what is no number, too
    if not len(steep) or float(reached.double().mean()) < 0.9:
        return None
    return float(steep.median())


def _gains(result: Evaluation, attack: str, larger: str) -> bool:
    """Whether an attack comes nearer to its aim in a larger ball, on most images that stand in both.

    Where eps is small no image may fall, and none in the larger ball either, of a sound net: but its margins shrink, by
    a multiple of what they shrank before.
    """
    start, near, far = (result.outcomes[name].margin for name in ("clean", attack, larger))
    both = result.attacks[attack] & result.attacks[larger]
    if start is None or near is None or far is None or not bool(both.any()):
        return False
    lost = start - near
    return float(((lost > 0) & (near - far > 0.5 * lost))[both].double().mean()) >= 0.9


def _train_mode(net: nn.Module) -> list[Doubt]:
    left = [name or type(m).__name__ for name, m in net.named_modules()
            if isinstance(m, (_NormBase, _DropoutNd)) and m.training]  # fmt: skip
    if not left:
        return []
    return [
        Doubt(
            "train-mode",
            f"the net was handed over in train mode ({len(left)} layers of batch norm or dropout, first {left[0]})",
            "it is evaluated in eval mode, which may not be the net that was meant",
            "call net.eval() first, or look whether your own code evaluates in train mode",
        )
    ]


def _scale(logits: Tensor) -> float:
    return max(float(logits.abs().max()), 1e-12)


def _stochastic(first: Tensor, second: Tensor) -> list[Doubt]:
    apart = float((first - second).abs().max()) / _scale(first)
    if apart <= 1e-3:
        return []
    return [
        Doubt(
            "stochastic",
            f"the same images gave logits that differ by {apart:.1%} of their size",
            "the net is random in eval mode, and an attack that sees one draw may fail on the next",
            "attack the mean over many draws (EOT), or take the randomness out",
        )
    ]


def _batch_dependent(whole: Tensor, part: Tensor) -> list[Doubt]:
    apart = float((whole[: len(part)] - part).abs().max()) / _scale(whole)
    if apart <= 1e-2:
        return []
    return [
        Doubt(
            "batch-dependent",
            f"an image's logits change by {apart:.1%} with the other images of its batch",
            "the net uses statistics of the batch in eval mode: no accuracy of it means anything for one image",
            "let batch norm track running statistics (track_running_stats=True)",
        )
    ]


def _probabilities(logits: Tensor) -> list[Doubt]:
    sums = logits.sum(1)
    if float(logits.min()) >= 0 and float((sums - 1).abs().max()) < 1e-3:
        what = "probabilities (no value below 0, rows that sum to 1)"
    elif float(logits.min()) >= 0 and float(logits.max()) <= 1 and float(logits.max() - logits.min()) > 0.5:
        what = "values from 0 to 1 alone, as a sigmoid or a scaled softmax does"
    elif float(logits.max()) <= 0 and float((logits.exp().sum(1) - 1).abs().max()) < 1e-3:
        return []  # log-probabilities are logits: the softmax of them is the same
    else:
        return []
    return [
        Doubt(
            "probabilities",
            f"the net returns {what}",
            "cross-entropy takes a second softmax of them, whose gradients are small and tell little",
            "return logits: leave the softmax or sigmoid out",
        )
    ]


def _gradients(net: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> list[Doubt]:
    x = x.detach().requires_grad_()
    with running(net, "eval"), frozen_parameters(net), torch.enable_grad():
        loss = ops.cross_entropy(net(x), y)
        if not loss.requires_grad:
            largest = torch.zeros(len(x))
        else:
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            largest = gradient.flatten(1).abs().amax(1)
    broken = int((~largest.isfinite()).sum())
    if broken:
        return [
            Doubt(
                "nan-gradient",
                f"{broken} of {len(x)} images that are right have a gradient of cross-entropy with NaN or infinity",
                "attacks take such numbers for 0 and stay where they are: the net looks robust where it is broken",
                "look for a division by zero, or the square root or logarithm of 0, in the net",
            )
        ]
    none, tiny = int((largest == 0).sum()), int((largest < TINY).sum())
    if tiny <= 0.02 * len(x):
        return []
    # exp(-88) is about where float32 has no numbers left, exp(-104) where it has not even unnormal ones.
    top = logits.float().topk(min(2, logits.shape[1]), dim=1).values
    gap = float((top[:, 0] - top[:, -1]).median())
    if gap > 30:
        why = f"the logits are {gap:.0f} apart (median), so that the softmax is 0 or 1 in float32"
    else:
        why = "somewhere in the net the gradient is cut off"
    return [
        Doubt(
            "zero-gradient" if none else "vanishing-gradient",
            f"{tiny / len(x):.0%} of the images that are right have a gradient of cross-entropy below {TINY:g} "
            f"({none} of {len(x)} exactly 0)",
            f"FGSM, PGD and JSMA see nothing to follow there: {why}",
            "use attacks on the logits (cw, apgd-dlr, autoattack), or divide the logits by the training's temperature",
        )
    ]
