"""Running a net in a mode, and putting every module's own flags back, also after an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from ..core.errors import Refused
from ..core.traits import training_flag
from ..core.types import Mode


@contextmanager
def running(net: nn.Module, mode: Mode) -> Iterator[None]:
    """Inside, `net` runs in `mode`; afterwards each module has the flags it had.

    `frozen` is `train` with batch statistics that are used but not recorded: batch norm looks at
    `track_running_stats` to decide whether its running mean and variance take part at all. Instance norm does not
    look: its running ones are taken away meanwhile.
    """
    training = mode != "eval"
    flags: list[tuple[nn.Module, bool]] = []
    tracking: list[_NormBase] = []
    taken: list[tuple[_InstanceNorm, Tensor | None, Tensor | None]] = []
    try:
        for module in net.modules():
            flag = training_flag(module)
            if flag is not None and flag != training:
                flags.append((module, flag))
                module.training = training
            if mode == "frozen" and isinstance(module, _NormBase) and module.track_running_stats:
                tracking.append(module)
                module.track_running_stats = False
                if isinstance(module, _InstanceNorm):
                    taken.append((module, module.running_mean, module.running_var))
                    module.running_mean = module.running_var = None
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for norm in tracking:
            norm.track_running_stats = True
        for instance, mean, variance in taken:
            instance.running_mean, instance.running_var = mean, variance


@contextmanager
def frozen_parameters(net: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `net` takes part in autograd: a search for images needs no weight gradients.

    Raises Refused for a net that torch takes no gradients through at all, before anything is changed.
    """
    if any(tensor.is_inference() for tensor in chain(net.parameters(), net.buffers())):
        raise Refused(
            "the net's weights were made under torch.inference_mode(), and torch takes no gradients through such: "
            "build the net and load its weights outside of it (calling rkd inside is fine)"
        )
    thawed = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
