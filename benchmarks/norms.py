"""Attacks in L1 beside their authors' code (pyautoattack), on a small net and test images of digits.

    python benchmarks/norms.py [IMAGES]

Prints robust accuracy in % and CPU seconds for each part of AutoAttack, and for `pgd`. Needs the extra `reference`.
"""

import sys
import time
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
from rkd.testing.attack import run_attack

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


def theirs(net: nn.Module, batch: Batch, eps: float, name: str) -> torch.Tensor:
    """What one part of the authors' code makes of the images."""
    part = name.split(",")[0]
    attack = pyautoattack.AutoAttack(net, attacks=[part], eps=eps, norm="L1", seed=0, version="custom")
    attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
    attack.apgd.n_restarts = 5 if "five" in name else 1
    attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
    attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes = 5, 9
    attack.square.n_queries = 1000
    with contained(0, torch.device("cpu")):
        return attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))[0]


def main() -> None:
    torch.set_num_threads(1)
    net, batch = trained(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    eps = 2.0

    def told(images: torch.Tensor, started: float) -> str:
        with torch.no_grad():
            share = ops.correct(net(images), batch.y).float().mean()
        return f"{100 * float(share):.1f} in {time.process_time() - started:.1f} s"

    print(f"{len(batch)} images, clean {told(batch.x, time.process_time())}; L1 radius {eps:g}")
    for name, attack in OURS.items():
        started = time.process_time()
        line = f"{name}: rkd {told(run_attack(attack, net, batch, ThreatModel('L1', eps, eps / 4)), started)}"
        if not name.startswith("pgd"):
            started = time.process_time()
            line += f", pyautoattack {told(theirs(net, batch, eps, name), started)}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
