"""Checks of what accuracies leave open: is it the net that is robust, or the attack that fails?

`quick_checks` takes a few forwards and one gradient; `full_checks` runs attacks on a few images whose outcome is known
for every net whose gradients are of use (Athalye et al., ICML 2018, part 3.1; Carlini et al. 2019, On Evaluating
Adversarial Robustness): one with a larger radius succeeds more often, one without bound always, and one that takes
gradients is no weaker than one that does not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .. import ops
from ..core.random import key
from ..core.step import AttackPlan
from ..data.dataset import Split, fetch
from ..nets.modes import frozen_parameters, running
from ..nets.net import Net
from .counting import attack_batch
from .evaluate import evaluate
from .model import NoGradient, prepare_model
from .result import Evaluation, EvaluationWarning
from .samples import EvalSettings, choose_samples
from .threat import widest
from .warnings import missed_by

ALIKE = 0.1
"""Shares of a few images that differ by no more are taken for equal; twice as much is a difference under attack."""

BLACK_BOX = "no attack by gradients finds more: use square, and transfer from the net before it was quantised"
"""What to do about a net through which no gradient comes."""

TINY = 1e-20
"""A largest gradient entry below this is one that float32 arithmetic does not carry through an attack."""


@torch.inference_mode(False)
def quick_checks(
    net: nn.Module, split: Split, settings: EvalSettings, *, repeat: AttackPlan | None = None, samples: int = 64
) -> list[EvaluationWarning]:
    """What a few forwards and one gradient show; the settings' threat and device count. The attack `repeat` runs twice
    on a few images: it has to do the same both times. The net is left as it was. A net handed over in train mode is
    reported, and checked in eval mode."""
    warnings = list(_train_mode(net))
    batch = fetch(split, choose_samples(len(split), min(samples, len(split))), settings.device)
    net = prepare_model(net, batch.x)
    with running(net, "eval"), torch.no_grad():
        first, second = net(batch.x), net(batch.x)
        part = net(batch.x[: max(1, len(batch) // 3)])
    warnings += list(_stochastic(first, second)) or _batch_dependent(first, part)
    warnings += _probabilities(first)
    if isinstance(net, NoGradient):
        return [*warnings, _no_gradient(net)]
    right = ops.correct(first, batch.y)
    if bool(right.any()):
        warnings += _gradients(net, batch.select(right).x, batch.y[right], first[right])
    if repeat is not None:
        subset = batch.select(torch.arange(min(8, len(batch)), device=batch.x.device))
        warnings += _nondeterministic(
            *(attack_batch(net, subset, repeat, settings.threat, key("self-check")) for _ in range(2))
        )
    return warnings


def full_checks(
    net: nn.Module, split: Split, plans: Mapping[str, AttackPlan], settings: EvalSettings, *, samples: int = 64
) -> tuple[list[EvaluationWarning], Evaluation]:
    """What attacks with a known outcome show, on a few images. Gives the evaluation, too.

    `plans` go by what they are for; any may be missing: `fgsm` one step, `short` and `long` the same search with
    fewer and more steps, `large` with four times the radius, `unbounded` with the whole of [0, 1], `margin` one that
    knows no cross-entropy, `black-box` one without gradients.
    """
    subset = replace(settings.plain(), classes=None, positions=None, limit=min(samples, len(split)))
    result = evaluate(net, split, plans, subset)
    return list(judge(result)), result


@torch.inference_mode(False)
def other_normalization(
    net: Net, split: Split, settings: EvalSettings, search: AttackPlan, *, samples: int
) -> list[EvaluationWarning]:
    """Whether a few images say that `net` might as well normalise otherwise, with another robust accuracy: its weights
    file does not say with what, and clean accuracy may hardly depend on it."""
    if net.settled is None or net.settled.other is None:
        return []
    mean, std = net.settled.other
    other = Net(net.arch, mean, std).to(settings.device).train(net.training)
    other.autocast = net.autocast
    batch = fetch(split, choose_samples(len(split), min(samples, len(split))), settings.device)
    clean, robust = [], []
    for one in (net, other):
        with running(one, "eval"), torch.no_grad():
            clean.append(float(ops.correct(one(batch.x), batch.y).double().mean()))
        if clean[-1] < clean[0] - ALIKE:
            return []
        x = attack_batch(one, batch, search, settings.threat, key("self-check"))
        with running(one, "eval"), torch.no_grad():
            robust.append(float((ops.correct(one(x), batch.y) & ops.correct(one(batch.x), batch.y)).double().mean()))
    if abs(robust[0] - robust[1]) <= 2 * ALIKE:
        return []
    return [
        EvaluationWarning(
            "normalization",
            f"normalised with mean {_list(mean)} and std {_list(std)} instead the net is as good on "
            f"{len(batch)} clean images ({clean[1]:.0%} right, and {clean[0]:.0%}), but an attack leaves "
            f"{robust[1]:.0%} instead of {robust[0]:.0%}",
            "the robust accuracy depends on what images were normalised with in the net's training, and its file does "
            "not say",
            "look for transforms.Normalize in the code that trained it, and give --normalize",
        )
    ]


def _list(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def judge(result: Evaluation) -> Iterator[EvaluationWarning]:
    """What the outcomes of the attacks of `full_checks` say.

    `find_warnings` asks some of this, too, but of the evaluation's own attacks and on all its images; here a few images
    and fixed attacks. So the checks have names of their own, and both are shown.
    """
    n, clean = result.samples, int(result.clean.sum())
    left = {name: int(right.sum()) for name, right in result.attacks.items()}
    chance = max(2.0, 0.03 * n)
    if {"fgsm", "short"} <= left.keys() and left["fgsm"] < left["short"] - chance:
        yield EvaluationWarning(
            "fgsm-beats-pgd",
            f"of {clean} images {clean - left['fgsm']} fall to one step, but {clean - left['short']} to many",
            "the loss is jagged or its gradients masked, so that small steps lose their way",
            "run autoattack; no number of PGD stands for this net",
        )
    if {"short", "long"} <= left.keys() and left["long"] > left["short"] + chance:
        yield EvaluationWarning(
            "more-steps",
            f"five times the steps fool the net less often ({clean - left['long']} instead of "
            f"{clean - left['short']} of {clean})",
            "the search does not climb what it means to climb",
            "use a smaller step, restarts, or autoattack",
        )
    stuck = {"long", "large"} <= left.keys() and left["long"] > 0.1 * n and left["large"] > 0.9 * left["long"]
    if stuck and not _gains(result, "long", "large"):
        yield EvaluationWarning(
            "larger-eps",
            f"with four times the radius {left['large']} of {clean} images still stand, with eps itself "
            f"{left['long']}, and no more narrowly",
            "in a larger ball an attack must come nearer to its aim: this one does not",
            "run autoattack, and look at the accuracy against eps (--curve)",
        )
    if "unbounded" in left and left["unbounded"] > max(chance, 0.05 * n):
        yield EvaluationWarning(
            "unbounded",
            f"{left['unbounded']} of {clean} images withstand an attack that may change every pixel to anything",
            "such an attack succeeds on every net whose gradients it can use: here it cannot",
            "run autoattack and apgd-dlr; do not report a number of an attack that fails here",
        )
    if {"long", "margin"} <= left.keys() and left["margin"] < left["long"] - max(chance, 0.1 * n):
        yield EvaluationWarning(
            "cross-entropy",
            f"an attack on the logits' margin fools the net on {clean - left['margin']} of {clean} images, the "
            f"same attack on cross-entropy on {clean - left['long']}",
            "cross-entropy has no usable gradient here: the softmax is saturated, as after defensive distillation",
            "use cw, apgd-dlr or autoattack, or divide the logits by the temperature of the training",
        )
    white_box = [name for name in ("short", "long") if name in left]
    if "black-box" in left and white_box:
        missed = missed_by(result, white_box, "black-box")
        if missed > chance:
            yield EvaluationWarning(
                "black-box-beats-pgd",
                f"an attack that sees no gradients fools the net on {missed} of {clean} images where PGD failed",
                "the gradients lead nowhere: they are masked",
                "run autoattack; the number of PGD is worth nothing here",
            )


@torch.inference_mode(False)
def margin_slope(net: nn.Module, split: Split, settings: EvalSettings, *, samples: int = 64) -> float | None:
    """By how much the margin of an image falls per unit of the threat's radius, for a net that is nearly linear in
    the ball: the median of its gradient's dual norm, over a few images that are right.

    None where the gradients cannot be what decides: if by them more than a tenth of the images would stay right when
    every pixel may change to anything, which no net achieves.
    """
    batch = fetch(split, choose_samples(len(split), min(samples, len(split))), settings.device)
    net = prepare_model(net, batch.x)
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
    norm, largest_eps = settings.threat.norm, widest(settings.threat.norm, (x.shape[1], x.shape[2], x.shape[3]))
    if norm == "L0":  # of a pixel, all channels move
        gradient = gradient.abs().sum(1)
    order = {"Linf": 1, "L2": 2}.get(norm, math.inf)
    slope, margin = gradient.flatten(1).norm(order, dim=1)[right], margin.detach()[right]
    reached = margin <= largest_eps * slope  # False for NaN, too
    if not len(slope) or float(reached.double().mean()) < 0.9:
        return None
    return float(slope.median())


def _gains(result: Evaluation, attack: str, larger: str) -> bool:
    """Whether an attack lowers the margin further in a larger ball, on most images that are robust in both.

    Where eps is small, a sound net may be fooled on no image, in the larger ball neither: but its margins shrink, by a
    multiple of what they shrank before.
    """
    start, near, far = (result.outcomes[name].margin for name in ("clean", attack, larger))
    both = result.attacks[attack] & result.attacks[larger]
    if start is None or near is None or far is None or not bool(both.any()):
        return False
    lost = start - near
    return float(((lost > 0) & (near - far > 0.5 * lost))[both].double().mean()) >= 0.9


def _train_mode(net: nn.Module) -> Iterator[EvaluationWarning]:
    training = [name or type(m).__name__ for name, m in net.named_modules()
                if isinstance(m, (_NormBase, _DropoutNd)) and m.training]  # fmt: skip
    if not training:
        return
    yield EvaluationWarning(
        "train-mode",
        f"the net was handed over in train mode ({len(training)} layers of batch norm or dropout, first {training[0]})",
        "it is evaluated in eval mode, which may not be the net that was meant",
        "call net.eval() first, or look whether your own code evaluates in train mode",
    )


def _scale(logits: Tensor) -> float:
    return max(float(logits.abs().max()), 1e-12)


def _stochastic(first: Tensor, second: Tensor) -> Iterator[EvaluationWarning]:
    difference = float((first - second).abs().max()) / _scale(first)
    if difference <= 1e-3:
        return
    yield EvaluationWarning(
        "stochastic",
        f"the same images gave logits that differ by {difference:.1%} of their size",
        "the net is random in eval mode, and an attack that sees one draw may fail on the next",
        "attack the mean over many draws (EOT), or take the randomness out",
    )


def _batch_dependent(full: Tensor, part: Tensor) -> Iterator[EvaluationWarning]:
    difference = float((full[: len(part)] - part).abs().max()) / _scale(full)
    if difference <= 1e-2:
        return
    yield EvaluationWarning(
        "batch-dependent",
        f"an image's logits change by {difference:.1%} with the other images of its batch",
        "the net uses statistics of the batch in eval mode: no accuracy of it means anything for one image",
        "let batch norm track running statistics (track_running_stats=True)",
    )


def _probabilities(logits: Tensor) -> Iterator[EvaluationWarning]:
    sums = logits.sum(1)
    if float(logits.min()) >= 0 and float((sums - 1).abs().max()) < 1e-3:
        output = "probabilities (no value below 0, rows that sum to 1)"
    elif float(logits.min()) >= 0 and float(logits.max()) <= 1 and float(logits.max() - logits.min()) > 0.5:
        output = "values from 0 to 1 alone, as a sigmoid or a scaled softmax does"
    else:  # also log-probabilities, which are logits: the softmax of them is the same
        return
    yield EvaluationWarning(
        "probabilities",
        f"the net returns {output}",
        "cross-entropy takes a second softmax of them, whose gradients are small and tell little",
        "return logits: leave the softmax or sigmoid out",
    )


def _no_gradient(net: NoGradient) -> EvaluationWarning:
    return EvaluationWarning(
        "no-gradient",
        net.reason,
        "only attacks that need no gradient can run: on most nets they find far less than those that do",
        "change what stands in the gradient's way, and evaluate again with autoattack",
    )


def _nondeterministic(one: Tensor, two: Tensor) -> Iterator[EvaluationWarning]:
    difference = float((one - two).abs().max())
    if difference > 1e-6:
        yield EvaluationWarning(
            "nondeterministic",
            f"the same attack with the same seed made images that differ by {difference:.2g}",
            "net or machine computes something else each time, and so will the numbers be",
            "torch.use_deterministic_algorithms(True), or state the spread of several evaluations",
        )


def _gradients(net: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Iterator[EvaluationWarning]:
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
        yield EvaluationWarning(
            "nan-gradient",
            f"{broken} of {len(x)} images that are right have a gradient of cross-entropy with NaN or infinity",
            "attacks take such numbers for 0 and stay where they are: the net looks robust where it is broken",
            "look for a division by zero, or the square root or logarithm of 0, in the net",
        )
        return
    zero, tiny = int((largest == 0).sum()), int((largest < TINY).sum())
    if tiny <= 0.02 * len(x):
        return
    # exp(-88) is about where float32 has no numbers left, exp(-104) where it has not even unnormal ones.
    top = logits.float().topk(min(2, logits.shape[1]), dim=1).values
    gap = float((top[:, 0] - top[:, -1]).median())
    if gap > 30:
        reason = f"the logits are {gap:.0f} apart (median), so that the softmax is 0 or 1 in float32"
        advice = (
            "use attacks on the logits (cw, apgd-dlr, autoattack), or divide the logits by the training's temperature"
        )
    else:
        reason, advice = "somewhere in the net the gradient is cut off, as by rounding in a quantised one", BLACK_BOX
    yield EvaluationWarning(
        "zero-gradient" if zero else "vanishing-gradient",
        f"{tiny / len(x):.0%} of the images that are right have a gradient of cross-entropy below {TINY:g} "
        f"({zero} of {len(x)} exactly 0)",
        f"FGSM, PGD and JSMA see nothing to follow there: {reason}",
        advice,
    )
