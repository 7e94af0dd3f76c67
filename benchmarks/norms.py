"""Attacks in L1 beside their authors' code (pyautoattack), on a small net and test images of digits.

    python benchmarks/norms.py [IMAGES]

Prints robust accuracy in %, over five seeds of the attack, and CPU seconds of one for each part of AutoAttack, and for
`pgd`. Needs the extra `reference`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyautoattack
import torch
from torch import nn

import rkd
from rkd import ops
from rkd.core.types import Batch, ThreatModel
from rkd.plugins.attacks.apgd import ApgdCe, ApgdT
from rkd.plugins.attacks.autoattack import contained
from rkd.plugins.attacks.fab import FabT
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.square import Square
from rkd.plugins.datasets.digits import Digits

EPS, SEEDS = 2.0, 5

OURS = {
    "apgd-ce, one start": ApgdCe(),
    "apgd-ce, five starts": ApgdCe(restarts=5),
    "apgd-t, five classes": ApgdT(targets=5),
    "fab-t, nine classes": FabT(),
    "square, 1,000 queries": Square(queries=1000),
    "pgd, 20 steps": Pgd(steps=20, start="uniform"),
    "pgd, 100 steps": Pgd(steps=100, start="uniform", step_size=0.2),
}


def trained(images: int) -> tuple[nn.Module, Batch]:
    """A small CNN after ten epochs of adversarial training in Linf, and the first test images."""
    student = {"model": "small-cnn", "width": 8}
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rkd.train(student=student, data="digits", loss="pgd-at", epochs=10, out=run, evaluate=["fgsm"], device="cpu")
        net = rkd.load_student(run)
    test, places = Digits()().test, torch.arange(images)
    return net, Batch(test.images(places), test.labels[places], places)


def ours(net: nn.Module, batch: Batch, name: str, seed: int) -> float:
    """The share of images that stand."""
    threat = ThreatModel("L1", EPS, EPS / 4)
    result = rkd.evaluate(
        net,
        (batch.x, batch.y),
        {name: OURS[name]},
        threat=threat,
        seed=seed,
        checks="off",
        engine="plain",
        device="cpu",
    )
    return result.accuracy(name)


def theirs(net: nn.Module, batch: Batch, name: str, seed: int) -> float:
    """The same by one part of the authors' code."""
    part = name.split(",")[0]
    attack = pyautoattack.AutoAttack(net, attacks=[part], eps=EPS, norm="L1", seed=seed, version="custom")
    attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
    attack.apgd.n_restarts = 5 if "five" in name else 1
    attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
    attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes = 5, 9
    attack.square.n_queries = 1000
    with contained(seed, torch.device("cpu")):
        images = attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))[0]
    with torch.no_grad():
        return float(ops.correct(net(images), batch.y).double().mean())


def measured(attack: Callable[[int], float]) -> str:
    """Mean and standard deviation over the seeds, and CPU seconds of one."""
    started = time.process_time()
    shares = [100 * attack(seed) for seed in range(SEEDS)]
    seconds = (time.process_time() - started) / SEEDS
    return f"{statistics.mean(shares):.1f} ± {statistics.stdev(shares):.1f} in {seconds:.1f} s"


def main() -> None:
    torch.set_num_threads(1)
    net, batch = trained(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    with torch.no_grad():
        clean = 100 * float(ops.correct(net(batch.x), batch.y).double().mean())
    print(f"{len(batch)} images, clean {clean:.1f}; L1 radius {EPS:g}; {SEEDS} seeds")
    for name in OURS:
        line = f"| {name} | {measured(partial(ours, net, batch, name))} |"
        known = not name.startswith("pgd")
        print(line + (f" {measured(partial(theirs, net, batch, name))} |" if known else " |"), flush=True)


if __name__ == "__main__":
    main()
