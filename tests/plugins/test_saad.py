"""SAAD: weights against the batch's surest sample, and the search along the teacher's first-order expansion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rkd.core.errors import Refused
from rkd.core.run import Run, TrainState
from rkd.core.trainer import train_step
from rkd.nets.student import NetStudent
from rkd.plugins.methods.rslad import Rslad
from rkd.plugins.methods.saad import Saad
from rkd.plugins.objectives.first_order import KlFirstOrder
from rkd.plugins.schedulers.entropy_weights import EntropyWeights
from rkd.testing import LinearNet, OneStep, TinyNet, tiny_batch, tiny_net, tiny_run, tiny_step
from rkd.testing.tiny import CLASSES, MEAN, STD
from rkd.training.accumulation import Accumulation

from .test_methods import Setting, difference, kl, softmax


def entropy(p: list[float], order: float) -> float:
    if order == 1:
        return -sum(a * math.log(a) for a in p)
    return math.log(sum(a**order for a in p)) / (1 - order)


@pytest.mark.parametrize("order", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("beta", "alpha"), [(0.0, 1.0), (0.7, 3.0), (0.7, 0.0)])
def test_loss_and_gradient(order: float, beta: float, alpha: float) -> None:
    """As the official code writes it: each sample's weight from the batch's least and largest entropy."""
    scheduler = EntropyWeights(scale=5.0, beta=beta)
    half_way = {"state": TrainState(epoch=1), "epochs": 2}
    s = Setting(Saad(order, alpha), schedulers={"entropy-weights": scheduler}, **half_way)
    s.images["mirror"] = 2 * s.images["clean"] - s.images["adv"]
    on_adv, on_mirror, on_clean = (s.teacher("robust", view) for view in ("adv", "mirror", "clean"))
    uncertainty = [entropy(softmax(t), order) for t in on_adv]
    w = [5 * (h - min(uncertainty)) for h in uncertainty]
    v = [beta * (1 - a / max(w)) for a in w]
    values, rows = [], {"adv": [], "mirror": [], "clean": []}
    for place, (z, z_adv, z_mirror) in enumerate(zip(s.student(), s.student("adv"), s.student("mirror"), strict=True)):
        p_adv, p, q_adv, q = (softmax(row) for row in (on_adv[place], on_clean[place], z_adv, z))
        p_slope = softmax(difference(on_adv[place], on_mirror[place]))
        q_slope = softmax(difference(z_adv, z_mirror))
        share = alpha * 0.5
        values.append(w[place] * (kl(p_adv, q_adv) + share * kl(p_slope, q_slope)) + v[place] * kl(p, q))
        by_slope = difference(q_slope, p_slope, w[place] * share)
        by_answer = difference(q_adv, p_adv, w[place])
        rows["adv"].append([a + b for a, b in zip(by_answer, by_slope, strict=True)])
        rows["mirror"].append([-b for b in by_slope])
        rows["clean"].append(difference(q, p, v[place]))
    s.expect(values, rows)
    assert min(w) == 0
    assert max(w) > 0.1


def test_without_its_scheduler_every_sample_counts_the_same() -> None:
    s = Setting(Saad())
    values = [kl(softmax(t), softmax(z)) for t, z in zip(s.teacher("robust", "adv"), s.student("adv"), strict=True)]
    assert float(s.loss) == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_a_teacher_that_is_equally_sure_of_all_leaves_the_clean_term_whole() -> None:
    """1 - (H - min H) / (max H - min H) is 1 where all H are the same; the attacked term has no weight then."""
    run = tiny_run(Saad(), attack=OneStep(), schedulers={"entropy-weights": EntropyWeights(beta=0.5)})
    run.teachers["robust"].net.arch.weight.zero_()
    loss = run.total_loss(run.step(tiny_batch()))
    assert float(loss.detach()) == pytest.approx(float(0.5 * run.terms["clean"].mean()), rel=1e-3)


def test_micro_batches_weigh_against_the_whole_batch() -> None:
    def tiny(**parts) -> Run:
        run = tiny_run(Saad(), attack=OneStep(), schedulers={"entropy-weights": EntropyWeights(beta=0.5)}, **parts)
        run.student = NetStudent(tiny_net(LinearNet, seed=3))
        run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.2)
        return run

    runs = [tiny(), tiny(backward=Accumulation(micro_batches=4))]
    losses = [float(train_step(run, tiny_batch())) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*(run.student.net.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_search_corrects_the_true_class_alone(scale: float) -> None:
    """The teacher is linear: to first order its true logit is exact. The gradient runs through the correction too."""
    step = tiny_step(net=tiny_net(LinearNet, seed=3), roles=("robust",))
    student, teacher = step._student.net.arch, step._teachers["robust"].net.arch
    clean = tiny_batch().x
    x = (clean + 0.05 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    x.requires_grad_()
    score = KlFirstOrder(scale=scale)(step, step._student.net, x)
    (gradient,) = torch.autograd.grad(score.sum(), x)

    def logits(arch, images: torch.Tensor) -> np.ndarray:
        flat = (images.detach().double().numpy().reshape(8, -1) - MEAN) / STD
        return flat @ arch.weight.detach().double().numpy().T + arch.bias.detach().double().numpy()

    on_clean, on_x, z = logits(teacher, clean), logits(teacher, x), logits(student, x)
    for place, y in enumerate(step.y.tolist()):
        corrected = on_clean[place].tolist()
        corrected[y] += scale * (on_x[place][y] - on_clean[place][y])
        p, q = softmax(corrected), softmax(z[place].tolist())
        assert float(score.detach()[place]) == pytest.approx(kl(p, q), rel=1e-4, abs=1e-6)
        expected = np.array(difference(q, p)) @ student.weight.detach().double().numpy() / STD
        through = p[y] * (math.log(p[y] / q[y]) - kl(p, q))  # by the corrected logit
        expected = expected + scale * through * teacher.weight[y].detach().double().numpy() / STD
        assert np.allclose(gradient[place].flatten().numpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_expansion_is_made_once_for_each_batch() -> None:
    step = tiny_step(net=tiny_net(), roles=("robust",))
    teacher, objective, net = step._teachers["robust"], KlFirstOrder(), step._student.net
    x = step.image("clean")
    first = [objective(step, net, x) for _ in range(3)]
    assert teacher.asked == 1
    assert torch.equal(first[0], first[2])
    other = tiny_step(tiny_batch(seed=1), net, teachers=step._teachers)
    assert not torch.equal(objective(other, net, other.image("clean")), first[0])
    assert teacher.asked == 2
    assert torch.equal(objective(step, net, x), first[0])


def test_a_teacher_that_ignores_the_images() -> None:
    step = tiny_step(roles=("robust",))
    step._teachers["robust"].net = lambda x: torch.zeros(len(x), CLASSES)
    step._teachers["robust"].logits = lambda x: torch.zeros(len(x), CLASSES)
    score = KlFirstOrder()(step, step._student.net, step.image("clean"))
    assert score.isfinite().all()


def test_no_gradient_reaches_the_teachers_weights() -> None:
    run = tiny_run(Saad(), attack=OneStep(), objective=KlFirstOrder())
    run.teachers["robust"].net = tiny_net(TinyNet, seed=9).eval().requires_grad_(False)
    train_step(run, tiny_batch())
    assert all(p.grad is None for p in run.teachers["robust"].net.parameters())


def test_blended_labels_are_refused_by_the_search() -> None:
    step = tiny_step(tiny_batch(soft=True), roles=("robust",))
    with pytest.raises(Refused, match="hard labels"):
        KlFirstOrder()(step, step._student.net, step.image("clean"))


def test_running_statistics_see_the_views_in_the_official_order() -> None:
    run = tiny_run(Saad(), attack=OneStep())
    seen = []
    run.student.net.arch.conv.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None
    )
    step = run.step(tiny_batch())
    run.total_loss(step)
    assert len(seen) == 3
    for images, view in zip(seen, ("adv", "mirror", "clean"), strict=True):
        assert torch.allclose(images, (step.image(view) - MEAN) / STD)
    assert step.image("mirror").min() < 0, "not clamped"


def test_the_scheduler_knows_its_loss() -> None:
    run = tiny_run(Rslad(), attack=OneStep(), schedulers={"entropy-weights": EntropyWeights()})
    with pytest.raises(Refused, match="--loss saad, and this loss has no adv_entropy"):
        run.total_loss(run.step(tiny_batch()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Saad(order=0.0), "order must be positive, got 0"),
        (lambda: Saad(alpha=-1.0), "alpha must be at least 0"),
        (lambda: EntropyWeights(scale=-1.0), "scale must be at least 0"),
        (lambda: EntropyWeights(beta=-1.0), "beta must be at least 0"),
    ],
)
def test_numbers_that_make_no_sense(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
