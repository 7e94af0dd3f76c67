"""From a Plan to a Run: nets, optimiser, loader, on their device."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rkd.core.errors import RkdError
from rkd.core.hooks import run_hooks
from rkd.core.interfaces import Teacher
from rkd.core.random import key
from rkd.core.run import Run
from rkd.core.traits import LossTraits, declared
from rkd.data.dataset import hold_out
from rkd.data.loader import Loader
from rkd.distributed.ranks import ALONE, Ranks
from rkd.engine.accelerator import Engine
from rkd.nets.memory_format import arrange
from rkd.nets.net import Net, NetTeacher, autocast_of
from rkd.nets.student import NetStudent
from rkd.registry.catalog import PYTHON, Catalog
from rkd.registry.config import RunConfig, StudentConfig
from rkd.registry.schedules import parse_schedule
from rkd.storage.runfolder import RunFolder
from rkd.training.accumulation import Accumulation
from rkd.training.checkpoints import Checkpointer, CheckpointPolicy
from rkd.training.companions import Follower, Following, learning, make_companions
from rkd.training.divergence import DivergenceMonitor
from rkd.training.tracking import Tracking
from rkd.training.validation import Validation

from .nets import check_fits, new_student
from .plan import Plan

SMALL = 10_000_000
"""Parameters of a net up to which it gets a copy: larger ones gain nothing on a CPU in float32 (ResNet-18: plain takes
0.93 of the time and 0.91 of the memory, docs/results/ablation.md), and take their memory."""


def build(
    plan: Plan, catalog: Catalog, teachers: Mapping[str, Teacher], extensions: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE, tell: Callable[[str], None] = lambda text: None,
) -> Run:  # fmt: skip
    """The Run of a plan. `extensions` are further configured ones, such as a progress display; `tell` is told what the
    student starts from."""
    config, data = plan.config, plan.data
    device = choose_device(config.device)
    for teacher in teachers.values():
        if isinstance(teacher, NetTeacher) and isinstance(teacher.net, Net):
            arrange(teacher.net, data.shape, device)

    student = _student(config.student, plan, catalog, config.seed, device, tell)
    declarations = declared(plan.loss, LossTraits).companions
    companions = make_companions(
        declarations, student, teachers,
        lambda name: _student(config.companions[name], plan, catalog, key(config.seed, "companion", name), device),
    )  # fmt: skip
    optimizer = _optimizer(config, student.net)
    for name, companion in learning(companions).items():
        optimizer.add_param_group({"params": list(companion.net.parameters()), "share": declarations[name].lr})
    listeners = {f"scheduler {name}": scheduler for name, scheduler in plan.schedulers.items()} | plan.extensions
    listeners |= {f"tracker {name}": Tracking(name, tracker) for name, tracker in plan.trackers.items()}
    if any(isinstance(companion, Follower) for companion in companions.values()):
        listeners["companions"] = Following()
    train, held_out = hold_out(data.train, config.data.validation, config.seed)
    if config.validate_.on == "test":
        held_out = data.test
    validate: Validation | None = None
    if held_out is not None:
        micro_batch = -(-min(config.batch_size, len(train)) // config.grad_accumulation)
        rules = config.validate_
        validate = Validation(
            held_out, plan.validation_attack, rules.every, rules.limit, rules.select, max(micro_batch, 16), ranks
        )
    half = choose_precision(config.precision, device) is torch.float16
    schedule = parse_schedule(config.optimizer.schedule)
    return Run(
        student=student,
        loss=plan.loss,
        loader=Loader(
            train, config.batch_size, config.seed, plan.augments, device, ranks, config.data.workers, config.epochs
        ),
        data=data,
        optimizer=optimizer,
        epochs=config.epochs,
        seed=config.seed,
        lr=config.optimizer.lr,
        lr_schedule=schedule,
        clip_gradient=config.optimizer.clip_gradient,
        teachers=dict(teachers),
        companions=companions,
        attacks=plan.attacks,
        schedulers=plan.schedulers,
        hooks=run_hooks({**listeners, **(extensions or {})}),
        device=device,
        ranks=ranks,
        backward=Accumulation(
            config.grad_accumulation, ranks, config.sync_bn, torch.amp.GradScaler(device.type) if half else None
        ),
        monitor=DivergenceMonitor(config.on_nan, ranks),
        checkpoints=checkpointer(config, None, ranks),
        validate=validate,
    )


def _student(
    wanted: StudentConfig, plan: Plan, catalog: Catalog, seed: int, device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> NetStudent:  # fmt: skip
    """An untrained student with its conversions, or one that starts from weights, on its device."""
    net = new_student(wanted, plan.data, catalog, seed, tell).to(device)
    net.autocast = choose_precision(plan.config.precision, device)
    arrange(net, plan.data.shape, device)
    student = NetStudent(net)
    for name, options in wanted.conversions.items():
        if options is not False:
            student = catalog.create("student", name, options, f"student.conversions.{name}")(student)
    student.net.to(device)
    if catalog.find("model", wanted.model).plugin.distribution == PYTHON:  # no check of plugins has seen it
        check_fits(student.net, "the student", plan.data, device)
    return student


def checkpointer(config: RunConfig, folder: RunFolder | None, ranks: Ranks = ALONE, text: str = "") -> Checkpointer:
    """What writes a run's checkpoints; without a folder, what stops it when it is asked to. `text`: its config.toml."""
    rules = config.checkpoint
    return Checkpointer(folder, CheckpointPolicy(rules.epochs, rules.minutes or None, rules.keep), ranks, text)


def accelerate(run: Run, name: str, tell: Callable[[str], None] = lambda text: None) -> None:
    """Let nets run on faster copies: the student while it is attacked, and teachers small enough for a second copy. A
    student that is not gets one in reduced precision, on a GPU, and by a `name` other than `auto`. After the dry step,
    which counts what the nets themselves are asked. `tell` is told which copies nets get."""

    def small(net: nn.Module) -> bool:
        return sum(p.numel() for p in net.parameters()) <= SMALL

    if isinstance(run.student, NetStudent):
        gains = autocast_of(run.student.net) is not None or run.device.type != "cpu"
        if name != "auto" or gains or small(run.student.net):
            run.student.accelerator = Engine(name, tell)
    for teacher in run.teachers.values():
        if type(teacher) is NetTeacher and small(teacher.net):
            teacher.accelerator = Engine(name, tell)


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one, else the CPU. Raises RkdError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise RkdError(f"the device {name!r} cannot be used: {first}; try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast inside a net's forward; None for float32. Raises RkdError.

    `auto`: bf16 on GPUs whose hardware multiplies it (NVIDIA's from Ampere on), else float32; on a CPU bf16 has to be
    asked for.
    """
    if name == "fp16":
        if device.type == "cpu":
            raise RkdError(f"precision fp16 needs a GPU, and this run is on {device}; bf16 works here too")
        return torch.float16
    if name == "bf16" or (
        name == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    ):
        return torch.bfloat16
    return None


def _optimizer(config: RunConfig, net: nn.Module) -> torch.optim.Optimizer:
    """One kernel for all weights (`fused`) instead of several a weight: its rounding may differ in the last bit."""
    o = config.optimizer
    weights = list(net.parameters())
    fused = all(weight.is_floating_point() for weight in weights)
    if o.name == "sgd":
        return torch.optim.SGD(
            weights, o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay, fused=fused
        )
    kind = torch.optim.Adam if o.name == "adam" else torch.optim.AdamW
    return kind(weights, o.lr, weight_decay=o.weight_decay, fused=fused)
