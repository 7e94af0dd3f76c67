"""The nets of `defensive_distillation.py`: trained by the `rkd` command, then measured at T = 1.

What is finished is skipped. Each measurement is a JSON file of its own; the page is made of these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rkd
from rkd.api import attack_plan
from rkd.core.step import AttackPlan, Step
from rkd.data.dataset import Dataset, fetch
from rkd.evaluation.samples import choose_samples
from rkd.nets.student import NetStudent

CAP = 112 / 784
"""JSMA may change as large a share of the features; an attack that fails counts as this much."""

JSMA: dict[str, Callable[[float], dict[str, Any]]] = {
    "printed": lambda T: {"scaled": False},
    "softmax": lambda T: {},
    "softmax/T": lambda T: {"temperature": T},
    "logits": lambda T: {"of": "logits"},
}
LINF: dict[str, tuple[str, dict[str, Any]]] = {
    "FGSM": ("fgsm", {}),
    "PGD-40": ("pgd", {"steps": 40, "step_size": 0.01, "start": "uniform"}),
    "CW (margin)": ("cw", {}),
    "APGD-DLR": ("apgd-dlr", {}),
}
INITIAL = ["clean", "jsma-printed", "jsma-softmax"]
"""What is measured of the initial nets with T > 1, which were not distilled."""

Numbers = dict[str, Any]


def nets(arguments: argparse.Namespace) -> dict[str, tuple[Path, int]]:
    """The nets of the tables: name, run, and the temperature it was trained at."""
    distilled = {str(T): (arguments.out / f"distilled-T{T}", T) for T in arguments.temperatures}
    return {"none": (arguments.out / "initial-T1", 1), **distilled}


# Training


def train(arguments: argparse.Namespace, T: int) -> None:
    """The initial net on the labels, then the distilled one on its probabilities, both at T."""
    initial = arguments.out / f"initial-T{T}"
    rkd_run(arguments, initial, ["--loss", "ce", "--set", f"loss.T={T}", "--seed", str(arguments.seed)])
    teacher = ["--loss", "defensive", "--set", f"loss.T={T}", "--teacher", f"initial={initial}"]
    rkd_run(arguments, arguments.out / f"distilled-T{T}", [*teacher, "--seed", str(arguments.seed + 1)])


def rkd_run(arguments: argparse.Namespace, run: Path, options: list[str]) -> None:
    """One `rkd run` in a process of its own, unless its folder holds a finished run already."""
    if (run / "evaluation.json").is_file():
        return
    common = ["--dataset", "mnist", "--data-dir", arguments.data_dir, "--student", "papernot-cnn"]
    common += ["--epochs", str(arguments.epochs), "--batch-size", "128", "--lr", "1e-3", "--evaluate", "fgsm"]
    for setting in (
        "student.padding=valid",
        "data.validation=0",
        "validate.select=last",
        "optimizer.name=adam",
        "optimizer.weight_decay=0",
        "optimizer.schedule=points(0:1, 1:0)",
        "evaluate.limit=1000",
    ):
        common += ["--set", setting]
    program = str(Path(sys.executable).with_name("rkd"))
    command = [program, "run", *common, *options, "--out", str(arguments.out), "--name", run.name, "-q"]
    if (run / "config.toml").is_file():
        command = [program, "run", "--resume", str(run), "-q"]
    started, before = time.perf_counter(), children()
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stderr[-2000:]}\n{' '.join(command)} failed")
    took = {"wall": time.perf_counter() - started, "cpu": children() - before}
    (run / "took.json").write_text(json.dumps(took))
    print(f"{run.name}: {took['wall']:.0f} s, {took['cpu']:.0f} s of the processor", flush=True)


def children() -> float:
    """Seconds of the processor that finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Measuring


def measure(
    arguments: argparse.Namespace, name: str, run: Path, T: int, data: Dataset, only: Sequence[str] = ()
) -> None:
    """The measurements of one net, each kept in a JSON file of its own with what it was asked for."""
    torch.set_num_threads(1)
    net: nn.Module | None = None
    parts: list[tuple[str, Numbers, Callable[[nn.Module, Numbers], Numbers]]] = [
        ("clean", {}, lambda net, asked: clean(net, data)),
        ("gradients", {"samples": arguments.gradients}, lambda net, asked: gradients(net, data, asked["samples"])),
        ("l2", {"samples": arguments.l2}, lambda net, asked: nearest(net, data, asked["samples"], T)),
    ]
    for way, options in JSMA.items():
        asked = {"samples": arguments.jsma, **options(T)}
        parts.append((f"jsma-{way.replace('/', '-')}", asked, lambda net, asked: jsma(net, data, **asked)))
    for attack, settings in LINF.values():
        asked = {"samples": arguments.linf, "attack": attack, **settings}
        parts.append((f"linf-{attack}", asked, lambda net, asked: linf(net, data, **asked)))
    for part, asked, work in parts:
        if only and part not in only:
            continue
        file = measured(arguments, name, part)
        if file.is_file() and json.loads(file.read_text())["asked"] == asked:
            continue
        net = net or rkd.load_student(run)
        started, before = time.perf_counter(), time.process_time()
        found = work(net, asked)
        took = {"wall": time.perf_counter() - started, "cpu": time.process_time() - before}
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps({"asked": asked, "took": took, **found}))
        temporary.replace(file)
        short = {key: value for key, value in found.items() if not isinstance(value, list)}
        print(f"{name}: {part}, {took['cpu']:.0f} s of the processor: {short}", flush=True)


def measured(arguments: argparse.Namespace, name: str, part: str) -> Path:
    return arguments.out / "measured" / f"{name}-{part}.json"


def clean(net: nn.Module, data: Dataset) -> Numbers:
    """Accuracy, confidence and the size of the logits on all test images, at T = 1."""
    logits = []
    with torch.no_grad():
        for positions in torch.arange(len(data.test)).split(500):
            logits.append(net(data.test.images(positions)))
    z = torch.cat(logits)
    top = z.topk(2, dim=1).values
    size = z.abs().sum(1)
    return {
        "samples": len(z),
        "accuracy": float((z.argmax(1) == data.test.labels).double().mean()),
        "confidence": float(z.double().softmax(1).amax(1).mean()),
        "logits": float(size.mean()),
        "logits_sd": float(size.std()),
        "lead": float((top[:, 0] - top[:, 1]).median()),
    }


def gradients(net: nn.Module, data: Dataset, samples: int) -> Numbers:
    """log10 of each image's mean of |dF_k/dx_j| over classes k and pixels j, F = softmax(z): the net's own, and what
    automatic differentiation finds in float32 (None where that is 0)."""
    own, single = [], []
    for positions in choose_samples(len(data.test), samples).split(100):
        x = data.test.images(positions).requires_grad_()
        z = net(x)
        F = z.softmax(1)
        slopes = [jacobian(output, x) for output in (z, F)]
        own.append(softmax_amplitude(z.detach(), slopes[0]))
        single.append(slopes[1].double().abs().mean((1, 2)).log10())
    return {"own": torch.cat(own).tolist(), "float32": [v if v > -999 else None for v in torch.cat(single).tolist()]}


def jacobian(output: Tensor, x: Tensor) -> Tensor:
    """The derivatives of `output (B, K)` by each image, `(B, K, n)`."""
    rows = [torch.autograd.grad(output[:, k].sum(), x, retain_graph=True)[0] for k in range(output.shape[1])]
    return torch.stack([row.flatten(1) for row in rows], dim=1)


def softmax_amplitude(z: Tensor, slopes: Tensor) -> Tensor:
    """log10 of the mean of |dF_k/dx_j|, `(B,)`, from logits `(B, K)` and their derivatives `(B, K, n)`.

    dF_k = sum_l F_k F_l (dz_k - dz_l): with the largest F_k F_l as a factor outside, which only its logarithm enters,
    nothing underflows.
    """
    log_F = z.double().log_softmax(1)
    pairs = log_F.unsqueeze(2) + log_F.unsqueeze(1)
    pairs.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    largest = pairs.amax((1, 2))
    share = (pairs - largest[:, None, None]).exp()
    mixed = torch.diag_embed(share.sum(2)) - share
    return largest / math.log(10) + (mixed @ slopes.double()).abs().mean((1, 2)).log10()


class Asked:
    """An attack that is asked something else than for its images."""

    mode = "eval"

    def __init__(self, question: Callable[[Tensor, Any], Any]) -> None:
        self.question = question
        self.answers: list[Any] = []

    def __call__(self, x: Tensor, target: Any) -> Tensor:
        self.answers.append(self.question(x, target))
        return x


def ask(net: nn.Module, data: Dataset, positions: Tensor, question: Callable[[Tensor, Any], Any]) -> list[Any]:
    """What `question(x, target)` answers, in batches, for those of the test images that the net gets right."""
    plan = AttackPlan(asked := Asked(question), attack_plan("cw").objective)
    with torch.no_grad():
        right = net(data.test.images(positions)).argmax(1) == data.test.labels[positions]
    for part in positions[right].split(20):
        Step(fetch(data.test, part), NetStudent(net), attacks={"adv": plan}, threat=data.threat).image("adv")
    return asked.answers


def jsma(net: nn.Module, data: Dataset, samples: int, **options: Any) -> Numbers:
    """Targeted JSMA at all nine other classes: the share that reached its class, and features changed."""
    attack: Any = attack_plan("jsma", **options).attack
    answers = ask(net, data, choose_samples(len(data.test), samples), attack.run)
    reached = torch.cat([answer[1] for answer in answers])
    changed = torch.cat([answer[2] for answer in answers])
    share = (changed / 784).double()
    counted = torch.where(reached, share, CAP)
    return {
        "images": len(reached),
        "pairs": reached.numel(),
        "reached": int(reached.sum()),
        "any": int(reached.any(1).sum()),
        "still": int((~reached & (changed == 0)).sum()),
        "features": float(counted.mean()),
        "features_nearest": float(counted.amin(1).mean()),
        "features_reached": float(share[reached].mean()) if bool(reached.any()) else None,
    }


def linf(net: nn.Module, data: Dataset, samples: int, attack: str, **options: Any) -> Numbers:
    """Accuracy under an untargeted attack in the data set's ball."""
    plans = {attack: attack_plan(attack, **options)}
    result = rkd.evaluate(net, data, plans, limit=samples, batch_size=128)
    return {"accuracy": result.accuracy(attack), "clean": result.accuracy()}


def nearest(net: nn.Module, data: Dataset, samples: int, T: int) -> Numbers:
    """Untargeted Carlini and Wagner L2: success and mean distance. c starts at 1 / T, as logits grow with T."""
    attack: Any = attack_plan("cw-l2", searches=6, steps=150, lr=0.05, c=1 / T, bounded=False).attack

    def question(x: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        images = attack(x, target)
        with torch.no_grad():
            fooled = target.logits(images).argmax(1) != target.y
        return fooled, (images - x).flatten(1).norm(dim=1)

    answers = ask(net, data, choose_samples(len(data.test), samples), question)
    fooled = torch.cat([answer[0] for answer in answers])
    distance = torch.cat([answer[1] for answer in answers])
    return {
        "images": len(fooled),
        "fooled": int(fooled.sum()),
        "distance": float(distance[fooled].mean()) if bool(fooled.any()) else None,
    }
