"""The ball of an attack: its norm and radius, whether images are inside, and its 8-bit images."""

import math
from typing import get_args

import torch
from torch import Tensor

from .. import ops
from ..core.errors import RkdError
from ..core.step import AttackPlan
from ..core.traits import traits_of
from ..core.types import Norm, Shape, ThreatModel, at
from ..storage.text import fraction

SLACK = 1e-6
"""How far an adversarial image may lie outside its ball and [0, 1]: rounding."""


def check_threat(threat: ThreatModel) -> None:
    """Raise RkdError for an unknown norm, or a radius that does not go with it."""
    if threat.norm not in get_args(Norm):
        raise RkdError(f"the norm of a threat is one of {', '.join(get_args(Norm))}; got {threat.norm!r}")
    if not 0 < threat.eps < math.inf:
        raise RkdError(f"eps must be above 0 and finite, got {threat.eps:g}; for clean accuracy alone give no attack")
    if problem := unfit_radius(threat.norm, threat.eps):
        raise RkdError(problem)


def unfit_radius(norm: Norm, eps: float, shape: Shape | None = None) -> str | None:
    """Why a radius does not go with its norm, on images of that shape; None if it does."""
    if norm == "Linf" and eps > 1:
        return f"images lie in [0, 1], so a radius in Linf is at most 1, got {eps:g}; 8/255 is meant by 8 of 255 levels"
    counted = {"L0": "pixels", "L0-values": "values"}.get(norm)
    if counted and (eps < 1 or eps != round(eps)):
        return f"a radius in {norm} is a number of {counted}, 1 or more, got {fraction(eps)}"
    if norm != "Linf" and shape is not None and eps > (most := widest(norm, shape)):
        return f"every image is within {most:g} of any other in {norm}, got a radius of {eps:g}"
    return None


def widest(norm: Norm, shape: Shape) -> float:
    """The largest distance of two images of a shape."""
    values = math.prod(shape)
    return {"Linf": 1.0, "L2": math.sqrt(values), "L0": values / shape[0]}.get(norm, float(values))


def ball_of(plan: AttackPlan, threat: ThreatModel) -> ThreatModel | None:
    """The ball that an attack keeps to: its own radius and norm, else the threat's; None if it keeps to none."""
    traits = traits_of(plan.attack)
    if not traits.bounded:
        return None
    eps = threat.eps if traits.eps is None else at(traits.eps, 1.0)
    return ThreatModel(traits.norm or threat.norm, eps, threat.step_size)


def check_inside(x: Tensor, x_adv: Tensor, ball: ThreatModel | None, name: str) -> None:
    """Raise RkdError unless the images `x_adv`, which the attack `name` made, are numbers in [0, 1] and, if there is
    one, inside the ball around x."""
    name = f"the attack {name!r}"
    if not bool(x_adv.isfinite().all()):
        raise RkdError(f"{name} returned images with values that are not numbers")
    if float(x_adv.min()) < -SLACK or float(x_adv.max()) > 1 + SLACK:
        raise RkdError(f"{name} returned images outside [0, 1]: from {float(x_adv.min()):g} to {float(x_adv.max()):g}")
    if ball is None:
        return
    size = ops.image_norm(x_adv.double() - x.double(), ball.norm)
    if float(size.max()) > ball.eps * (1 + 1e-5) + SLACK:
        raise RkdError(
            f"{name} left its ball: {ball.norm} {float(size.max()):.6g} from the image, where eps is "
            f"{fraction(ball.eps)}; an attack without a ball says so with bounded = False"
        )


def to_eight_bits(x: Tensor, x_adv: Tensor, ball: ThreatModel | None) -> Tensor:
    """`x_adv` as an 8-bit image, `(B, C, H, W)` in [0, 1] and still inside the ball.

    Each pixel goes to the nearest of the levels 0, 1/255, ..., 1, or where that is outside (in other norms than Linf:
    wherever it is further from x than the pixel is) to the nearest level on the way to x. If there is none on that way,
    it takes the value of x: so where x itself is no 8-bit image, some pixels of the result are between levels, too.
    """
    levels = x_adv * 255
    nearest = levels.round()
    towards = torch.where(x_adv > x, (levels - 1e-4).floor(), (levels + 1e-4).ceil())
    # No level beyond x, and none for a pixel that has not moved from an x between levels.
    towards = torch.where((towards / 255 - x).sign() * (x_adv - x).sign() <= 0, x * 255, towards)
    if ball is None:
        return nearest / 255
    if ball.norm == "Linf":
        out = (nearest / 255 - x).abs() > ball.eps + SLACK
    else:
        out = (nearest / 255 - x).abs() > (x_adv - x).abs()
    rounded = torch.where(out, towards, nearest) / 255
    return torch.where(x_adv == x, x, rounded) if ball.norm in ops.COUNTS else rounded
