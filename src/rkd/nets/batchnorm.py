"""Routed batch norm: which batch norm serves which view.

AdvProp (Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020) gives adversarial images a batch
norm of their own, since their statistics differ; everything else in the net is shared. Here each batch norm keeps
its place, class and parameter names, and gains copies under `aux.VIEW`: dropping those gives the plain net again.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import Refused
from ..core.types import View


class Router:
    """Tells the routed norms of one net which views the batch in flight consists of."""

    def __init__(self) -> None:
        self.parts: tuple[tuple[View, int], ...] = ()

    @contextmanager
    def routing(self, parts: Sequence[tuple[View, int]]) -> Iterator[None]:
        """Inside, the net's input is the views `parts`, each with its number of samples, one after another."""
        before, self.parts = self.parts, tuple(parts)
        try:
            yield
        finally:
            self.parts = before


def routing_of(module: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes context managers in which the routed norms in `module` route as they do now."""
    routed = [cast(Any, m).router for m in module.modules() if isinstance(m, _Routed)]
    return partial(routed[0].routing, routed[0].parts) if routed else nullcontext


class _Routed:
    """The forward of a routed norm: each view's samples through that view's norm, in the order given."""

    router: Router
    aux: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        parts = self.router.parts
        if len(parts) <= 1:
            return self._norm(parts[0][0] if parts else None, x)
        pieces = x.split([count for _, count in parts])
        return torch.cat([self._norm(view, piece) for (view, _), piece in zip(parts, pieces, strict=True)])

    def _norm(self, view: View | None, x: Tensor) -> Tensor:
        if view is not None and view in self.aux:
            return self.aux[view](x)
        return super().forward(x)  # type: ignore[misc]


@cache
def _routed_class(kind: type[nn.Module]) -> type[nn.Module]:
    # A subclass of the very class the net used: timm's norms with built-in activations keep working.
    return type(f"Routed{kind.__name__}", (_Routed, kind), {})


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `net`; auxiliary ones are left to the norm they belong to."""
    auxiliary = {id(inner) for module in net.modules() if isinstance(module, _Routed) for inner in module.aux.modules()}
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and id(m) not in auxiliary]


def add_auxiliary(net: nn.Module, views: Sequence[View], router: Router) -> int:
    """Give every batch norm of `net` one auxiliary copy per view, in place. Returns the number of norms."""
    if unfit := [view for view in views if not view or "." in view or view in dir(nn.ModuleDict)]:
        raise Refused(f"an auxiliary batch norm cannot serve the view {unfit[0]!r}; give that view another name")
    norms = batch_norms(net)
    for norm in norms:
        copies = {view: copy.deepcopy(norm) for view in views}
        norm.__class__ = _routed_class(type(norm))  # type: ignore[assignment, arg-type]
        routed: Any = norm
        routed.router = router
        routed.aux = nn.ModuleDict(copies)
    return len(norms)


def drop_auxiliary(net: nn.Module) -> nn.Module:
    """A copy of `net` without auxiliary norms: what is deployed."""
    plain = copy.deepcopy(net)
    for module in list(plain.modules()):
        if isinstance(module, _Routed):
            routed: Any = module
            del routed.aux
            del routed.router
            routed.__class__ = type(module).__mro__[2]
    return plain


def norm_of(module: nn.Module, view: View | None) -> nn.Module:
    """The norm that serves `view`, of a routed one; any other module itself."""
    if isinstance(module, _Routed) and view is not None and view in module.aux:
        return module.aux[view]
    return module


def as_seen(net: nn.Module, view: View | None) -> nn.Module:
    """A copy of `net` with plain norms alone: those that serve `view`."""
    seen = copy.deepcopy(net)
    for name, module in list(seen.named_modules()):
        if isinstance(module, _Routed):
            parent, _, last = name.rpartition(".")
            setattr(seen.get_submodule(parent), last, norm_of(cast(nn.Module, module), view))
    return drop_auxiliary(seen)
