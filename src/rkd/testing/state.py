"""Seeing whether something was left as it was found."""

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rkd.core.errors import RkdError
from rkd.core.traits import name_of

P = ParamSpec("P")


def require(condition: object, sentence: str) -> None:
    """Raise AssertionError with the sentence; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(sentence)


def promise(check: Callable[P, None]) -> Callable[P, None]:
    """A check of a component: what rkd itself refuses about it is a broken promise as well."""

    @functools.wraps(check)
    def checked(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            check(*arguments, **options)
        except RkdError as error:
            who = name_of(arguments[0])
            raise AssertionError(f"{who}: {error}") from error

    return checked


@contextmanager
def untouched(*nets: nn.Module, buffers: bool = True, who: str = "it") -> Iterator[None]:
    """Raises AssertionError if what happens inside changes a net's weights, gradients, buffers (unless `buffers` is
    false), flags or hooks, or the global random state of torch, Python or numpy."""
    before = [_picture(net, buffers) for net in nets]
    random_before = _random_state()
    yield
    for net, old in zip(nets, before, strict=True):
        for what, now in _picture(net, buffers).items():
            for name in {**old[what], **now}:
                same = name in now and name in old[what] and _same(old[what][name], now[name])
                require(same, f"{who} must leave the net as it found it, but changed the {what} of {name!r}")
    for name, state in _random_state().items():
        require(_same(state, random_before[name]), f"{who} must not touch the global random state of {name}")


def _picture(net: nn.Module, buffers: bool) -> dict[str, dict[str, Any]]:
    parameters, modules = dict(net.named_parameters()), dict(net.named_modules())
    return {
        "weights": {name: p.detach().clone() for name, p in parameters.items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        "flag requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "buffers": {name: b.clone() for name, b in net.named_buffers()} if buffers else {},
        "flag training": {name: m.training for name, m in modules.items()},
        "flag track_running_stats": {
            name: m.track_running_stats for name, m in modules.items() if isinstance(m, _NormBase)
        },
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in modules.items()},
    }


def _random_state() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "Python": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = str(sys.modules["numpy"].random.get_state())
    return states


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a is b or (not isinstance(a, torch.Tensor) and a == b))
