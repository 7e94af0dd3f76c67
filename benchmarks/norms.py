"""Attacks in L1 beside their authors' code (pyautoattack), on a small net and test images of digits.

    python benchmarks/norms.py [IMAGES]

Prints robust accuracy in % and CPU seconds for each part of AutoAttack, and for `pgd`. Needs the extra `reference`.
"""

import sys
import time

import pyautoattack
import torch
import torch.nn.functional as F
from torch import nn

from rkd import ops
from rkd.core.random import forked
from rkd.core.types import Batch, ThreatModel
from rkd.nets.net import Net
from rkd.plugins.attacks.apgd import ApgdCe, ApgdT
from rkd.plugins.attacks.autoattack import contained
from rkd.plugins.attacks.fab import FabT
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.square import Square
from rkd.plugins.datasets.digits import Digits
from rkd.plugins.models.small_cnn import SmallCNN
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
    """A small CNN after eight epochs of PGD in Linf, and the first test images."""
    data = Digits()()
    train = data.train.images(torch.arange(len(data.train))), data.train.labels
    with forked(0):
        net = Net(SmallCNN(width=8)(data.shape, 10), data.mean, data.std)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for epoch in range(8):
            eps = 38 / 255 * min(1, epoch / 3)
            for places in torch.randperm(len(train[0])).split(64):
                x, y = train[0][places], train[1][places]
                x_adv = x + eps * (2 * torch.rand_like(x) - 1)
                net.eval()
                for _ in range(4):
                    x_adv = x_adv.detach().requires_grad_()
                    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
                    x_adv = (x_adv.detach() + eps / 2 * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
                net.train()
                optimizer.zero_grad()
                F.cross_entropy(net(x_adv.detach()), y).backward()
                optimizer.step()
    net.eval().requires_grad_(False)
    places = torch.arange(images)
    return net, Batch(data.test.images(places), data.test.labels[places], places)


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
