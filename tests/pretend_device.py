"""A torch device of another type for tests on machines without a GPU: "pretend:0", computed on the CPU.

As on a GPU, an operator that mixes its tensors with those of the CPU raises, `numpy()` is refused, and a host that
wants a number waits: `host_waits` records each time. What is copied to the CPU without blocking arrives when the host
next waits, be it for an event. As on the CPU, down to the last bit, are the numbers.

It rests on torch's Python backend for the dispatch key PrivateUse1 (torch >= 2.9). A process registers it once, by
`register`, before its first backward: autograd counts the devices only then. Tensors of the CPU do not notice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretend"


def _unsupported() -> str | None:
    """Why there cannot be a pretend device in this process; None if there can."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return f"torch {torch.__version__} has no Python backend for PrivateUse1; a pretend device needs torch >= 2.9"
    if torch.accelerator.is_available():
        return "torch takes a pretend device for the accelerator, and this machine has a real one"
    return None


UNSUPPORTED = _unsupported()

aten = torch.ops.aten

FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm",
)  # fmt: skip
"""Operators that make tensors from none. torch makes the others of these."""

REDUCED = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm")
"""Operators that autocast runs in reduced precision."""

WAITING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount,
}  # fmt: skip
"""Operators whose answer, or whose size, the host has to know."""

SCALARS = {aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operators that take a number from a tensor of the CPU, besides those that go element by element."""

_recorders: list[list[str]] = []
_on_the_way: list[tuple[Tensor, Tensor]] = []
"""Copies to the CPU that have not arrived: where to, and what."""
_begun = [0]
"""How many operators the device has been given."""
_libraries: list[torch.library.Library] = []


class PretendTensor(Tensor):
    """A tensor of the pretend device. `data_on_cpu` has its numbers."""

    data_on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data_on_cpu: Tensor) -> PretendTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            data_on_cpu.shape,
            strides=data_on_cpu.stride(),
            dtype=data_on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.data_on_cpu = data_on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return _compute(operator, arguments, options or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.data_on_cpu!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else str(self), spec)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: PretendTensor) -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.data_on_cpu = other.data_on_cpu

    def tolist(self) -> Any:
        _record("tolist")
        return self.data_on_cpu.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert a tensor of {self.device} to numpy: copy it to the CPU first")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()


class _Module:
    """`torch.pretend`. Not available: torch, when it looks for an accelerator, is not to find this one."""

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are those of the CPU."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        """Nothing: `torch.random.fork_rng` asks every device."""
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        """As `get_rng_state` gave it."""


def register() -> torch.device:
    """The device, which torch knows from here on."""
    if not _libraries:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        library = torch.library.Library("aten", "IMPL")
        for name in FACTORIES:
            library.impl(name, _factory(name), "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        others = torch.library.Library("_", "IMPL")
        others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in REDUCED:
            library.impl(name, _reduced(name), "AutocastPrivateUse1")
        _libraries.extend([library, others])
    return torch.device(NAME, 0)


class PretendEvent(torch.Event):
    """What `torch.Event` has to be while the device is in use: torch's own cannot be waited for there."""

    _copies: Sequence[tuple[Tensor, Tensor]] = ()
    _begun = 0

    def record(self, stream: torch.Stream | None = None) -> None:
        if self.device.type != NAME:
            super().record(stream)
        self._copies, self._begun = list(_on_the_way), _begun[0]

    def synchronize(self) -> None:
        """A wait, unless the device has been given more to do since: then what the event stands for is over."""
        if self.device.type != NAME:
            super().synchronize()
        elif self._begun == _begun[0]:
            _record("synchronize")
        for copy in self._copies:
            _arrive(copy)

    def query(self) -> bool:
        """Whether what was recorded is done: by the time somebody asks it always is."""
        self.synchronize()
        return True


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Inside, each wait of the host for the device is recorded: what for, and where."""
    waits: list[str] = []
    _recorders.append(waits)
    try:
        yield waits
    finally:
        _recorders.remove(waits)


def _factory(name: str) -> Any:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(aten, packet), overload or "default")

    def make(*arguments: Any, **options: Any) -> Tensor:
        return PretendTensor(operator(*arguments, **{**options, "device": "cpu"}))

    return make


def _reduced(name: str) -> Any:
    operator = getattr(aten, name).default
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*arguments: Any, **options: Any) -> Tensor:
        kind = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operator(*(_cast(value, kind) for value in arguments), **options)

    return run


def _cast(value: Any, kind: torch.dtype) -> Any:
    floats = isinstance(value, PretendTensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(kind) if floats else value


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """`target.copy_(source)` where torch passes over the tensors' own class: in `torch.tensor(..., device=...)`."""
    return _compute(aten.copy_.default, (target, source, non_blocking), {})


def _compute(operator: Any, arguments: Any, options: dict[str, Any]) -> Any:
    _begun[0] += 1
    packet = operator.overloadpacket
    goes = options.get("device")
    leaves = goes is not None and torch.device(goes).type == "cpu"
    if packet is aten.copy_:
        if not _non_blocking(arguments[2:], options) and len({x.device.type for x in arguments[:2]}) == 2:
            _record("copy_")
    elif leaves:
        if _non_blocking((), options):
            return _send(operator(arguments[0].data_on_cpu, *arguments[1:], **options))
        _record(operator.name())
    else:
        _check_devices(operator, arguments, options)
        if packet in WAITING or _waits_for_indices(packet, arguments):
            _record(operator.name())
    if goes is not None and not leaves:
        options = {**options, "device": "cpu"}
    given: dict[int, PretendTensor] = {}
    result = operator(*_on_cpu(arguments, given), **{name: _on_cpu(value, given) for name, value in options.items()})
    return result if leaves or packet is aten._local_scalar_dense else _on_device(result, given)


def _on_cpu(value: Any, given: dict[int, PretendTensor]) -> Any:
    """`value` with the numbers of its tensors; `given` notes whose they are."""
    if isinstance(value, PretendTensor):
        given[id(value.data_on_cpu)] = value
        return value.data_on_cpu
    if isinstance(value, (list, tuple)):
        return [_on_cpu(one, given) for one in value]
    return value


def _on_device(value: Any, given: dict[int, PretendTensor]) -> Any:
    """A result on the device. What an operator has written into stays the tensor that it was."""
    if isinstance(value, Tensor):
        tensor = given.get(id(value))
        if tensor is None:
            return PretendTensor(value)
        if tensor.shape != value.shape:  # squeeze_, t_, resize_
            Tensor.data.__set__(tensor, PretendTensor(value))  # type: ignore[attr-defined]
        return tensor
    if isinstance(value, (list, tuple)):
        return type(value)(_on_device(one, given) for one in value)
    return value


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@cache
def _takes_scalars(operator: Any) -> bool:
    return operator.overloadpacket in SCALARS or torch.Tag.pointwise in operator.tags


def _check_devices(operator: Any, arguments: Any, options: dict[str, Any]) -> None:
    packet = operator.overloadpacket
    scalars = _takes_scalars(operator)
    if packet in INDEXING:  # indices may come from the CPU
        arguments = (arguments[0], *arguments[2:])
    for tensor in _tensors((*arguments, *options.values())):
        if not isinstance(tensor, PretendTensor) and not (scalars and tensor.ndim == 0):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
                f"{tensor.device}! ({operator.name()})"
            )


INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def _waits_for_indices(packet: Any, arguments: Any) -> bool:
    """Whether an operator has to count what a mask picks, or to fetch indices from the CPU."""
    if packet is aten.repeat_interleave:
        return True
    if packet not in INDEXING:
        return False
    indices = [index for index in arguments[1] if index is not None]
    if any(not isinstance(index, PretendTensor) for index in indices):
        return True
    filled = packet is not aten.index and arguments[2].ndim == 0  # on a GPU that is masked_fill
    return not filled and any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def _non_blocking(rest: Any, options: dict[str, Any]) -> bool:
    return bool(rest[0] if rest else options.get("non_blocking", False))


def _send(numbers: Tensor) -> Tensor:
    """A tensor of the CPU that holds `numbers` once they have arrived."""
    target = torch.zeros_like(numbers)
    _on_the_way.append((target, numbers))
    return target


def _arrive(copy: tuple[Tensor, Tensor]) -> None:
    target, numbers = copy
    if any(target is other for other, _ in _on_the_way):
        target.copy_(numbers)
        _on_the_way[:] = [one for one in _on_the_way if one[0] is not target]


def _record(what: str) -> None:
    """The host waits for the device: whatever is on its way arrives."""
    for copy in list(_on_the_way):
        _arrive(copy)
    if not _recorders:
        return
    here = Path(__file__).name
    frame = sys._getframe(1)
    places = []
    while frame is not None and len(places) < 1:
        path = Path(frame.f_code.co_filename)
        if "torch" not in path.parts and path.name != here:
            places.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    for recorder in _recorders:
        recorder.append(f"{what} at {', '.join(places) or 'backward'}")
