"""Each method's loss and gradient on one batch, against plain float64 loops written here.

`by_hand` has the loops that all methods share.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rkd.core.errors import Refused
from rkd.core.run import Run, TrainState
from rkd.core.step import AttackPlan, Step
from rkd.core.trainer import train_step
from rkd.core.types import Batch
from rkd.nets.student import NetStudent
from rkd.plugins.methods.adaad import AdaAD
from rkd.plugins.methods.advprop import AdvProp
from rkd.plugins.methods.ard import Ard
from rkd.plugins.methods.ce import CrossEntropy
from rkd.plugins.methods.defensive import DefensiveDistillation
from rkd.plugins.methods.kd import KnowledgeDistillation
from rkd.plugins.methods.mtard import Mtard, MtardAnl
from rkd.plugins.methods.pgd_at import AdversarialTraining
from rkd.plugins.methods.rslad import Rslad
from rkd.plugins.methods.trades import Trades
from rkd.plugins.objectives.kl import KlAdaptive, KlTeacher, kl_student
from rkd.plugins.schedulers.anl import AdaptiveNormalization
from rkd.registry.catalog import Catalog
from rkd.registry.recipes import read_recipe
from rkd.registry.schedules import Drops, Ramp
from rkd.testing import LinearNet, OneStep, TinyNet, tiny_batch, tiny_net, tiny_run, tiny_teachers
from rkd.testing.tiny import CLASSES, MEAN, STD
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve

from .by_hand import Rows, Setting, difference, kl, onehot, softmax

# Methods


@pytest.mark.parametrize("T", [1.0, 20.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_ce(T: float, rescale: bool) -> None:
    s = Setting(CrossEntropy(T, rescale), attack=False)
    scale = T if rescale else 1.0
    q = [softmax(z, T) for z in s.student()]
    values = [-scale * math.log(row[y]) for row, y in zip(q, s.y, strict=True)]
    s.expect(values, {"clean": [difference(row, onehot(y), scale / T) for row, y in zip(q, s.y, strict=True)]})


@pytest.mark.parametrize(("T", "alpha"), [(4.0, 0.9), (1.0, 0.5), (10.0, 0.0)])
def test_kd(T: float, alpha: float) -> None:
    s = Setting(KnowledgeDistillation(T, alpha), attack=False)
    values, gradients = [], []
    for z, t, y in zip(s.student(), s.teacher("clean"), s.y, strict=True):
        p, q, one = softmax(t, T), softmax(z, T), softmax(z)
        values.append(alpha * T**2 * kl(p, q) - (1 - alpha) * math.log(one[y]))
        soft, hard = difference(q, p, alpha * T), difference(one, onehot(y), 1 - alpha)
        gradients.append([a + b for a, b in zip(soft, hard, strict=True)])
    s.expect(values, {"clean": gradients})


@pytest.mark.parametrize("rescale", [True, False])
def test_defensive(rescale: bool) -> None:
    T = 20.0
    s = Setting(DefensiveDistillation(T, rescale), attack=False)
    scale = T if rescale else 1.0
    values, gradients = [], []
    for z, t in zip(s.student(), s.teacher("initial"), strict=True):
        p, q = softmax(t, T), softmax(z, T)
        values.append(-scale * sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
        gradients.append(difference(q, p, scale / T))
    s.expect(values, {"clean": gradients})


def test_pgd_at() -> None:
    s = Setting(AdversarialTraining())
    q = [softmax(z) for z in s.student("adv")]
    s.expect(
        [-math.log(row[y]) for row, y in zip(q, s.y, strict=True)],
        {"adv": [difference(row, onehot(y)) for row, y in zip(q, s.y, strict=True)]},
    )


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_ard(alpha: float, reduction: str) -> None:
    """T = 30; the teacher sees clean images, the student attacked ones."""
    s = Setting(Ard(alpha=alpha, reduction=reduction))
    T, share = 30.0, 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    for z, z_adv, t, y in zip(s.student(), s.student("adv"), s.teacher("robust"), s.y, strict=True):
        p, q, one = softmax(t, T), softmax(z_adv, T), softmax(z)
        values.append(alpha * T**2 * share * kl(p, q) - (1 - alpha) * math.log(one[y]))
        adv.append(difference(q, p, alpha * T * share))
        clean.append(difference(one, onehot(y), 1 - alpha))
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize(("alpha", "reduction"), [(5 / 6, "batchmean"), (5 / 6, "mean"), (0.3, "batchmean")])
def test_rslad(alpha: float, reduction: str) -> None:
    """One teacher's clean answer for both views."""
    s = Setting(Rslad(alpha, reduction))
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    for z, z_adv, t in zip(s.student(), s.student("adv"), s.teacher("robust"), strict=True):
        p, q, q_adv = softmax(t), softmax(z), softmax(z_adv)
        values.append(share * (alpha * kl(p, q_adv) + (1 - alpha) * kl(p, q)))
        adv.append(difference(q_adv, p, share * alpha))
        clean.append(difference(q, p, share * (1 - alpha)))
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize(("alpha", "reduction"), [(1.0, "batchmean"), (0.7, "batchmean"), (0.7, "mean")])
def test_adaad(alpha: float, reduction: str) -> None:
    """Each view has its own answer of the teacher."""
    s = Setting(AdaAD(alpha, reduction))
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    both = zip(s.student(), s.student("adv"), s.teacher("robust"), s.teacher("robust", "adv"), strict=True)
    for z, z_adv, t, t_adv in both:
        p, p_adv, q, q_adv = (softmax(row) for row in (t, t_adv, z, z_adv))
        values.append(share * (alpha * kl(p_adv, q_adv) + (1 - alpha) * kl(p, q)))
        adv.append(difference(q_adv, p_adv, share * alpha))
        clean.append(difference(q, p, share * (1 - alpha)))
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize(("beta", "reduction"), [(6.0, "batchmean"), (1.0, "mean")])
def test_trades(beta: float, reduction: str) -> None:
    """The gradient flows through both sides of the divergence: the clean answer is not detached."""
    s = Setting(Trades(beta, reduction))
    factor = beta / CLASSES if reduction == "mean" else beta
    values, adv, clean = [], [], []
    for z, z_adv, y in zip(s.student(), s.student("adv"), s.y, strict=True):
        p, q = softmax(z), softmax(z_adv)
        distance = kl(p, q)
        values.append(-math.log(p[y]) + factor * distance)
        adv.append(difference(q, p, factor))
        through = [factor * a * (math.log(a / b) - distance) for a, b in zip(p, q, strict=True)]
        clean.append([a + b for a, b in zip(difference(p, onehot(y)), through, strict=True)])
    assert max(abs(v) for row in clean for v in row) > 1e-3
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("T", [None, {"T.robust": 2.0, "T.clean": 3.0}])
def test_mtard(reduction: str, T: dict | None) -> None:
    """Robust teacher on attacked images, clean teacher on clean ones; temperatures divide the teachers' logits only."""
    s = Setting(Mtard({"adv": 0.7, "clean": 0.2}, reduction), state=TrainState(knobs=T or {}))
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    both = zip(s.student(), s.student("adv"), s.teacher("robust", "adv"), s.teacher("clean"), strict=True)
    for z, z_adv, robust, natural in both:
        p_adv, p = softmax(robust, (T or {}).get("T.robust", 1)), softmax(natural, (T or {}).get("T.clean", 1))
        q_adv, q = softmax(z_adv), softmax(z)
        values.append(share * (0.7 * kl(p_adv, q_adv) + 0.2 * kl(p, q)))
        adv.append(difference(q_adv, p_adv, share * 0.7))
        clean.append(difference(q, p, share * 0.2))
    s.expect(values, {"adv": adv, "clean": clean})


def test_advprop() -> None:
    s = Setting(AdvProp())
    values, rows = [0.0] * len(s.y), {}
    for view in ("clean", "adv"):
        q = [softmax(z) for z in s.student(view)]
        values = [v - math.log(row[y]) for v, row, y in zip(values, q, s.y, strict=True)]
        rows[view] = [difference(row, onehot(y)) for row, y in zip(q, s.y, strict=True)]
    s.expect(values, rows)


HARD = {
    CrossEntropy: {"ce": "clean"},
    KnowledgeDistillation: {"ce": "clean"},
    Ard: {"ce": "clean"},
    AdversarialTraining: {"adv": "adv"},
    Trades: {"clean": "clean"},
    AdvProp: {"clean": "clean", "adv": "adv"},
}
"""Terms with hard labels, and the views they look at."""


@pytest.mark.parametrize("method", HARD)
def test_label_smoothing_of_terms_with_hard_labels(method) -> None:
    attack = "attack" in method.defaults
    plain, smooth = Setting(method(), attack), Setting(method(label_smoothing=0.4), attack)
    assert smooth.run.terms.keys() == plain.run.terms.keys()
    for name, term in smooth.run.terms.items():
        if name in HARD[method]:
            q = [softmax(z) for z in smooth.student(HARD[method][name])]
            target = [[0.6 * p + 0.4 / CLASSES for p in onehot(y)] for y in smooth.y]
            pairs = zip(target, q, strict=True)
            values = [-sum(p * math.log(v) for p, v in zip(a, b, strict=True)) for a, b in pairs]
            assert term.tolist() == pytest.approx(values, rel=1e-5)
        else:
            assert torch.equal(term, plain.run.terms[name])
    if attack:
        assert torch.equal(smooth.images["adv"], plain.images["adv"]), "the search has an objective of its own"


@pytest.mark.parametrize("method", HARD)
@pytest.mark.parametrize("value", [1.0, -0.1])
def test_label_smoothing_leaves_the_label_a_share(method, value: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        method(label_smoothing=value)


@pytest.mark.parametrize("method", [KnowledgeDistillation, Ard, Rslad, AdaAD, Mtard, MtardAnl])
def test_mean_is_one_over_the_number_of_classes(method) -> None:
    values = {}
    for reduction in ("batchmean", "mean"):
        loss = method(reduction=reduction)
        setting = Setting(loss, attack="attack" in loss.defaults)
        name = "kd" if "kd" in setting.run.terms else "adv"
        values[reduction] = setting.run.terms[name]
    assert torch.allclose(values["mean"] * CLASSES, values["batchmean"], rtol=1e-6)


@pytest.mark.parametrize("method", [Rslad, Mtard, MtardAnl])
def test_scale_multiplies_the_loss(method) -> None:
    """The official scripts for CIFAR-100: averaged over classes, times ten."""
    values = [float(Setting(method(reduction="mean", scale=scale)).loss) for scale in (1.0, 10.0)]
    assert values[1] == pytest.approx(10 * values[0], rel=1e-5)


def test_numbers_may_be_schedules() -> None:
    """alpha from 0 to 1 over the training: half way it is a half."""
    run = tiny_run(Rslad(alpha=Ramp(0, 1)), attack=OneStep(), epochs=2)
    run.state.epoch = 1
    step = run.step(tiny_batch())
    value = run.total_loss(step).detach()
    assert float(value) == pytest.approx(float(0.5 * run.terms["adv"].mean() + 0.5 * run.terms["clean"].mean()))


# Searches


def linear_step(*roles: str) -> tuple[Step, dict]:
    teachers = tiny_teachers(roles)
    return Step(tiny_batch(), NetStudent(tiny_net(LinearNet, seed=3)), teachers, noise_key=1), teachers


@pytest.mark.parametrize("name", ["kl-teacher", "kl-adaptive", "kl-student"])
def test_gradient_of_each_search(name: str) -> None:
    """By the images; AdaAD's also through the teacher, which shifts it by W_T^T (p (log p - log q - KL))."""
    step, teachers = linear_step("robust")
    student, teacher = step._student.net.arch, teachers["robust"].net.arch
    objective = {"kl-teacher": KlTeacher(), "kl-adaptive": KlAdaptive(), "kl-student": kl_student}[name]
    x = (tiny_batch().x + 0.03 * torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    x.requires_grad_()
    score = objective(step, step._student.net, x)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    score = score.detach()

    def logits(arch, images: Tensor) -> Rows:
        flat = (images.detach().double().numpy().reshape(8, -1) - MEAN) / STD
        return (flat @ arch.weight.detach().double().numpy().T + arch.bias.detach().double().numpy()).tolist()

    clean = tiny_batch().x
    source = {"kl-teacher": (teacher, clean), "kl-adaptive": (teacher, x), "kl-student": (student, clean)}
    for place, (t, z) in enumerate(zip(logits(*source[name]), logits(student, x), strict=True)):
        p, q = softmax(t), softmax(z)
        assert float(score[place]) == pytest.approx(kl(p, q), rel=1e-4, abs=1e-6)
        expected = np.array(difference(q, p)) @ student.weight.detach().double().numpy() / STD
        if name == "kl-adaptive":
            inner = [a * (math.log(a / b) - kl(p, q)) for a, b in zip(p, q, strict=True)]
            expected = expected + np.array(inner) @ teacher.weight.detach().double().numpy() / STD
        assert np.allclose(gradient[place].flatten().numpy(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [AdaAD(alpha=0.5), Ard(alpha=0.5), Rslad(), Mtard(), AdvProp()])
def test_order_of_forwards(method) -> None:
    """Running statistics see the views in the order of the official scripts: attacked first, but in AdaAD's."""
    run = tiny_run(method, attack=OneStep())
    seen = []
    run.student.net.arch.conv.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None
    )
    batch = tiny_batch()
    step = run.step(batch)
    run.total_loss(step)
    first = "clean" if isinstance(method, (AdaAD, AdvProp)) else "adv"
    assert len(seen) == 2
    assert torch.allclose(seen[0], (step.image(first) - MEAN) / STD)


def test_trades_attacks_before_the_batch_moves_the_running_statistics() -> None:
    plain = tiny_run(Trades(), attack=OneStep(), objective=kl_student)
    batch = tiny_batch()
    expected = plain.step(batch).image("adv")
    step = plain.step(batch)
    plain.total_loss(step)
    assert torch.equal(step.image("adv"), expected)


# The adaptive normalization loss


class Recurrence:
    """The official script's update, in Python numbers."""

    def __init__(self, rate: float = 0.025, bert: float = 1.0) -> None:
        self.rate, self.bert = rate, bert
        self.natural, self.adversarial = 0.5, 0.5
        self.first: tuple[float, float] | None = None

    def update(self, adversarial: float, natural: float, lr_scale: float) -> None:
        if self.first is None:
            self.first = (adversarial, natural)
        ratio_adv = (adversarial / self.first[0]) ** self.bert
        ratio_nat = (natural / self.first[1]) ** self.bert
        wish = ratio_nat / (ratio_adv + ratio_nat)
        self.natural -= self.rate * lr_scale * (self.natural - wish)
        self.adversarial = 1 - self.natural


@pytest.mark.parametrize("bert", [1.0, 2.0])
def test_anl_follows_the_official_recurrence(bert: float) -> None:
    """Over eight steps with a drop of the learning rate; the weights act in the step whose losses they come from."""
    run = tiny_run(
        MtardAnl(), attack=OneStep(), schedulers={"anl": AdaptiveNormalization(0.3, bert)},
        lr_schedule=Drops(1.0, (0.5,), 0.1), epochs=4, lr=0.5,
    )  # fmt: skip
    run.teachers["clean"].net.arch.weight.mul_(0.1)  # easy to imitate: this loss falls faster than the other
    expected = Recurrence(0.3, bert)
    for epoch in range(run.epochs):
        for number, batch in enumerate(run.loader.batches(epoch)):
            run.state.epoch, run.state.batch = epoch, number
            scale = 1.0 if run.progress < 0.5 else 0.1
            run.optimizer.param_groups[0]["lr"] = run.lr * scale
            loss = float(train_step(run, batch))
            adv, clean = (float(run.terms[name].double().mean()) for name in ("adv", "clean"))
            expected.update(adv, clean, scale)
            assert float(run.state.knobs["weight.adv"]) == pytest.approx(expected.adversarial, abs=1e-6)
            assert float(run.state.knobs["weight.clean"]) == pytest.approx(expected.natural, abs=1e-6)
            assert loss == pytest.approx(expected.adversarial * adv + expected.natural * clean, rel=1e-5)
    assert abs(expected.natural - 0.5) > 1e-4, "the weights have not moved: the test shows nothing"


def anl(values: list[tuple[float, ...]], **options) -> list[list[float]]:
    scheduler = AdaptiveNormalization(**options)
    step = Step(tiny_batch(), NetStudent(tiny_net()))
    weights = []
    for row in values:
        terms = {name: torch.full((8,), value) for name, value in zip("abcd", row, strict=False)}
        weights.append([float(weight) for weight in scheduler.update(step, terms).values()])
    return weights


def test_anl_gives_more_weight_to_the_loss_that_has_fallen_least() -> None:
    weights = anl([(2.0, 1.0), (1.0, 1.0)], rate=1.0)
    assert weights[0] == [0.5, 0.5]
    assert weights[1] == pytest.approx([1 / 3, 2 / 3])


def test_anl_with_three_terms_sums_to_one() -> None:
    weights = anl([(2.0, 1.0, 3.0), (1.0, 1.0, 1.0), (0.1, 4.0, 2.0)], rate=0.3)
    assert all(sum(row) == pytest.approx(1) for row in weights)
    assert all(w > 0 for row in weights for w in row)


@pytest.mark.parametrize("values", [[(0.0, 1.0), (1.0, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(1e-30, 1.0), (1.0, 1e-30)]])
def test_anl_with_losses_of_nothing(values: list[tuple[float, ...]]) -> None:
    for row in anl(values, rate=0.5):
        assert all(math.isfinite(w) and 0 <= w <= 1 for w in row)
        assert sum(row) == pytest.approx(1)


def test_anl_needs_two_terms() -> None:
    with pytest.raises(Refused, match="two or more"):
        anl([(1.0,)])


# Refusals and options


@pytest.mark.parametrize("method", [CrossEntropy, DefensiveDistillation])
@pytest.mark.parametrize("T", [0.0, -1.0])
def test_temperatures_are_positive(method, T: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        method(T=T)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: KnowledgeDistillation(alpha=1.5), "alpha must be between 0 and 1, got 1.5"),
        (lambda: KnowledgeDistillation(T=0.0), "T must be at least 0.001, got 0"),
        (lambda: Ard(alpha=-0.1), "alpha"),
        (lambda: Ard(T=-30.0), "T"),
        (lambda: Rslad(alpha=Ramp(0, 2)), "alpha must be between 0 and 1, got 1.5 at progress 0.75"),
        (lambda: AdaAD(alpha=2), "alpha"),
        (lambda: Trades(beta=-1.0), "beta must be at least 0, got -1"),
        (lambda: Mtard(weights={"adv": -0.5, "clean": 0.5}), "weights.adv"),
        (lambda: MtardAnl(weights={"adv": 0.9, "clean": 0.1}), "here anl sets them"),
        (lambda: AdaptiveNormalization(rate=1.5), "rate"),
    ],
)
def test_numbers_that_make_no_sense(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_mtard_knows_its_terms() -> None:
    with pytest.raises(ValueError, match="avd"):
        Mtard(weights={"avd": 1.0})


def test_one_teacher_may_come_in_another_role() -> None:
    """`--teacher clean=...` for RSLAD: the role says how it is prepared; the loss asks for the only one."""
    run = tiny_run(Rslad(), attack=OneStep(), teachers=tiny_teachers(["clean"]))
    assert run.total_loss(run.step(tiny_batch())).isfinite()


def test_advprop_with_more_views() -> None:
    run = tiny_run(AdvProp(views=("adv", "weak")), attack=OneStep())
    run.attacks["weak"] = AttackPlan(OneStep(), run.attacks["adv"].objective)
    step = run.step(tiny_batch())
    run.total_loss(step)
    assert set(run.terms) == {"clean", "adv", "weak"}
    assert not torch.equal(step.image("adv"), step.image("weak")), "each view has noise of its own"


@pytest.mark.parametrize("method", [KnowledgeDistillation(), Ard(), Rslad(), Trades(), Mtard(), AdvProp()])
def test_soft_labels(method) -> None:
    """Methods that need no class numbers take probabilities; one-hot ones mean the same as labels."""

    def value(batch: Batch) -> Tensor:
        run: Run = tiny_run(method, attack=OneStep() if "attack" in method.defaults else None)
        return run.total_loss(run.step(batch)).detach()

    batch = tiny_batch()
    soft = dataclasses.replace(batch, y=torch.nn.functional.one_hot(batch.y, CLASSES).float())
    assert float(value(batch)) == pytest.approx(float(value(soft)), rel=1e-5)


def test_no_method_changes_a_teacher() -> None:
    """Teachers learn nothing: no gradient, no running statistics, whatever the method."""
    for method in (KnowledgeDistillation(), Ard(), Rslad(), AdaAD(), Mtard()):
        run = tiny_run(method, attack=OneStep() if "attack" in method.defaults else None, objective=None)
        for role, teacher in run.teachers.items():
            teacher.net = tiny_net(TinyNet, seed=9).eval().requires_grad_(False)
            assert role
        before = {r: {k: v.clone() for k, v in t.net.state_dict().items()} for r, t in run.teachers.items()}
        train_step(run, tiny_batch())
        for role, teacher in run.teachers.items():
            assert all(p.grad is None for p in teacher.net.parameters())
            assert all(torch.equal(v, before[role][k]) for k, v in teacher.net.state_dict().items())


def test_fine_grained_advprop_has_three_batch_norms(catalog: Catalog) -> None:
    """The recipe, on embedded digits with a small net: each source of images moves the statistics of its own norm."""
    table = read_recipe("cifar10-advprop-fine-grained") | {
        "data": {"name": "digits", "validation": 0},
        "batch_size": 16,
    }
    table["student"] = {**table["student"], "model": "small-cnn", "width": 4}
    run = build(resolve(table, catalog), catalog, {})
    step = run.step(run.loader.batch(torch.arange(16), 0))
    run.total_loss(step).backward()
    assert set(run.terms) == {"clean", "augmented", "adv"}
    images = [step.image(view) for view in ("clean", "augmented", "adv")]
    assert not torch.equal(images[0], images[1]) and float((images[2] - images[0]).abs().max()) <= 4 / 255 + 1e-6
    means = [value for name, value in run.student.net.state_dict().items() if name.endswith("running_mean")]
    assert len({tuple(value.tolist()) for value in means}) == len(means) == 9, "three where the net had one"
