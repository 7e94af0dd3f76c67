"""Objectives against plain loops in float64, and what they ask of the step."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import Refused
from rkd.plugins.objectives import ce, kl, margin
from rkd.plugins.objectives.kl import KlAdaptive, KlTeacher, kl_student
from rkd.plugins.objectives.margin import Margin
from rkd.registry.catalog import reference_keys

ALL = {name: component for module in (ce, kl, margin) for name, component in module.rkd_objectives().items()}
CLASSES = 5


class FakeStep:
    """What objectives may ask of a step, and a note of every question."""

    def __init__(self, student: nn.Module, x: Tensor, y: Tensor, **teachers: nn.Module) -> None:
        self.student, self.x, self.y, self.teachers = student, x, y, teachers
        self.asked: list[tuple[str, str]] = []

    def probe_logits(self, view: str = "clean") -> Tensor:
        assert view == "clean"
        self.asked.append(("student", view))
        with torch.no_grad():
            return self.student(self.x)

    def role(self, role: str | None = None) -> str:
        if role is None:
            role = next(iter(self.teachers)) if len(self.teachers) == 1 else "robust"
        if role not in self.teachers:
            raise Refused(f"no teacher {role}")
        return role

    def teacher(self, role: str | None = None, view: str = "clean") -> Tensor:
        assert role is not None
        self.asked.append((role, view))
        with torch.no_grad():
            return self.teachers[role](self.x)

    def ask(self, role: str | None, x: Tensor) -> Tensor:
        assert role is not None
        self.asked.append((role, "attacked"))
        return self.teachers[role](x)


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x_adv(x: Tensor) -> Tensor:
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    return (x + 0.2 * noise).clamp(0, 1).requires_grad_()


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 3, 1, 4])


def doubles(logits: Tensor) -> list[list[float]]:
    return logits.detach().double().tolist()


def softmax(z: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def divergence(p: list[float], q: list[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def check(score: Tensor, expected: list[float], x_adv: Tensor) -> None:
    assert score.shape == (4,) and score.dtype == torch.float32
    assert score.tolist() == pytest.approx(expected, abs=2e-6)
    (gradient,) = torch.autograd.grad(score.sum(), x_adv)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_ce(x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    student = net(0)
    expected = [-math.log(softmax(z)[k]) for z, k in zip(doubles(student(x_adv)), y.tolist(), strict=True)]
    check(ce.ce(FakeStep(student, x, y), student, x_adv), expected, x_adv)


def test_ce_takes_soft_labels(x: Tensor, x_adv: Tensor) -> None:
    student = net(0)
    soft = torch.softmax(torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(3)), dim=1)
    expected = [
        -math.fsum(p * math.log(q) for p, q in zip(row, softmax(z), strict=True))
        for z, row in zip(doubles(student(x_adv)), soft.double().tolist(), strict=True)
    ]
    check(ce.ce(FakeStep(student, x, soft), student, x_adv), expected, x_adv)


def test_kl_student(x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    student = net(0)
    step = FakeStep(student, x, y)
    pairs = zip(doubles(student(x)), doubles(student(x_adv)), strict=True)
    check(kl_student(step, student, x_adv), [divergence(softmax(z), softmax(z_adv)) for z, z_adv in pairs], x_adv)
    assert step.asked == [("student", "clean")]


def test_kl_student_has_no_gradient_at_the_image_itself(x: Tensor, y: Tensor) -> None:
    student, x = net(0), x.requires_grad_()
    (gradient,) = torch.autograd.grad(kl_student(FakeStep(student, x, y), student, x).sum(), x)
    assert gradient.abs().amax() < 1e-6


def test_kl_teacher(x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    student, teacher = net(0), net(1)
    step = FakeStep(student, x, y, robust=teacher)
    pairs = zip(doubles(teacher(x)), doubles(student(x_adv)), strict=True)
    expected = [divergence(softmax(z_t), softmax(z_s)) for z_t, z_s in pairs]
    check(KlTeacher()(step, student, x_adv), expected, x_adv)
    assert step.asked == [("robust", "clean")]


def test_kl_adaptive(x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    student, teacher = net(0), net(1)
    step = FakeStep(student, x, y, robust=teacher)
    pairs = zip(doubles(teacher(x_adv)), doubles(student(x_adv)), strict=True)
    expected = [divergence(softmax(z_t), softmax(z_s)) for z_t, z_s in pairs]
    check(KlAdaptive()(step, student, x_adv), expected, x_adv)
    assert step.asked == [("robust", "attacked")]


def test_kl_adaptive_counts_the_teachers_gradient(x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    """Against central differences in float64: without the teacher's part they would not agree."""
    student, teacher = net(0).double(), net(1).double()

    def score(images: Tensor) -> Tensor:
        p, q = torch.log_softmax(teacher(images), 1), torch.log_softmax(student(images), 1)
        return (p.exp() * (p - q)).sum()

    point = x_adv.detach().double()
    numeric = torch.zeros_like(point).flatten()
    for i in range(point.numel()):
        shift = torch.zeros_like(numeric)
        shift[i] = 1e-5
        shift = shift.view_as(point)
        numeric[i] = (score(point + shift) - score(point - shift)) / 2e-5
    student, teacher = student.float(), teacher.float()
    step = FakeStep(student, x, y, robust=teacher)
    (gradient,) = torch.autograd.grad(KlAdaptive()(step, student, x_adv).sum(), x_adv)
    assert torch.allclose(gradient.double(), numeric.view_as(point), atol=1e-6)
    (fixed,) = torch.autograd.grad(KlTeacher()(step, student, x_adv).sum(), x_adv)
    assert not torch.allclose(fixed.double(), numeric.view_as(point), atol=1e-3)


@pytest.mark.parametrize("component", [KlTeacher, KlAdaptive])
def test_teachers_are_chosen_by_role(component: type, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
    student = net(0)
    two = FakeStep(student, x, y, clean=net(1), robust=net(2))
    component()(two, student, x_adv)
    component(role="clean")(two, student, x_adv)
    assert [role for role, _ in two.asked] == ["robust", "clean"]
    only = FakeStep(student, x, y, clean=net(1))
    component()(only, student, x_adv)
    assert only.asked[0][0] == "clean"
    with pytest.raises(Refused):
        component(role="robust")(only, student, x_adv)


@pytest.mark.parametrize("kappa", [0.0, 0.1, 50.0])
def test_margin(kappa: float, x: Tensor, x_adv: Tensor) -> None:
    student = net(0)
    rows = doubles(student(x_adv))
    y = torch.tensor([max(range(CLASSES), key=row.__getitem__) for row in rows])
    y[:2] = (y[:2] + 1) % CLASSES  # two are fooled already
    expected = [
        min(max(v for k, v in enumerate(row) if k != label) - row[label], kappa)
        for row, label in zip(rows, y.tolist(), strict=True)
    ]
    assert min(expected[:2]) >= 0 >= max(expected[2:])
    check(Margin(kappa)(FakeStep(student, x, y), student, x_adv), expected, x_adv)


def test_margin_stops_rising_at_kappa(x_adv: Tensor) -> None:
    def student(images: Tensor) -> Tensor:
        z = images.flatten(1)[:, :1]
        return torch.cat([-100 * z - 100, z], dim=1)

    step = FakeStep(None, x_adv, torch.zeros(4, dtype=torch.long))
    score = Margin()(step, student, x_adv)
    (gradient,) = torch.autograd.grad(score.sum(), x_adv)
    assert torch.equal(score, torch.full((4,), 50.0)) and not gradient.any()
    assert torch.autograd.grad(Margin(1e6)(step, student, x_adv).sum(), x_adv)[0].any()


def test_margin_keeps_a_gradient_where_cross_entropy_has_none(x_adv: Tensor) -> None:
    """Logits far too large, as a distilled net has at temperature 1 (Carlini and Wagner)."""
    student = net(0)

    def distilled(images: Tensor) -> Tensor:
        return 1e6 * student(images)

    y = student(x_adv).argmax(1)
    step = FakeStep(student, x_adv, y)
    (by_ce,) = torch.autograd.grad(ce.ce(step, distilled, x_adv).sum(), x_adv)
    (by_margin,) = torch.autograd.grad(Margin()(step, distilled, x_adv).sum(), x_adv)
    assert not by_ce.any() and by_margin.flatten(1).abs().amax(1).gt(1).all()


@pytest.mark.parametrize("kappa", [-1.0, float("nan")])
def test_kappa_below_zero_is_refused(kappa: float) -> None:
    with pytest.raises(ValueError, match="kappa"):
        Margin(kappa)


def test_names_and_descriptions() -> None:
    assert sorted(ALL) == ["ce", "ce-targets", "kl-adaptive", "kl-student", "kl-teacher", "margin"]
    for component in ALL.values():
        assert inspect.getdoc(component).splitlines()[0].endswith(".")


@pytest.mark.parametrize("module", [ce, kl, margin])
def test_cites_a_paper(module: object) -> None:
    assert reference_keys(inspect.getdoc(module))
