"""From terms to the loss: schedulers, weights, class weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import Refused
from rkd.core.run import Run, TrainState
from rkd.core.step import Step
from rkd.registry.schedules import Ramp
from rkd.testing import tiny_batch, tiny_run

from .losses import Clean, Setter


def value(run: Run) -> tuple[float, dict[str, float]]:
    loss = run.total_loss(run.step(tiny_batch())).detach()
    return float(loss), {name: float(term.mean()) for name, term in run.terms.items()}


def test_weights_of_terms() -> None:
    loss, terms = value(tiny_run(Clean()))
    assert loss == pytest.approx(2 * terms["a"] + terms["b"], rel=1e-6)


def test_weights_may_be_schedules() -> None:
    run = tiny_run(Clean({"a": Ramp(0, 1), "b": lambda progress: 10 * progress}), epochs=4)
    for run.state.epoch in (0, 1, 3):
        loss, terms = value(run)
        assert loss == pytest.approx(
            run.state.epoch / 4 * terms["a"] + 10 * run.state.epoch / 4 * terms["b"], rel=1e-5, abs=1e-7
        )


def test_a_weight_acts_in_the_very_step() -> None:
    loss, terms = value(tiny_run(Clean(), schedulers={"s": Setter({"weight.a": 0.25, "weight.b": torch.tensor(0.5)})}))
    assert loss == pytest.approx(0.25 * terms["a"] + 0.5 * terms["b"], rel=1e-6)


def test_a_weight_stays_until_it_is_set_again() -> None:
    run = tiny_run(Clean(), schedulers={"s": Setter(lambda step: {"weight.a": 7.0} if not step.progress else {})})
    value(run)
    run.state.epoch = 1
    loss, terms = value(run)
    assert loss == pytest.approx(7 * terms["a"] + terms["b"], rel=1e-6)


def test_a_knob_acts_in_the_next_step() -> None:
    class Warm(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": ops.cross_entropy(step.student("clean"), step.y) * step.knob("T", 1.0)}

    run = tiny_run(Warm({}), schedulers={"s": Setter({"T": 5.0})})
    first, second = value(run)[0], value(run)[0]
    assert second == pytest.approx(5 * first, rel=1e-5)
    later = tiny_run(Warm({}), schedulers={"s": Setter({"T": 5.0})}, state=TrainState(knobs={"T": 2.0}))
    step = later.step(tiny_batch())
    loss = float(later.total_loss(step).detach())
    assert loss == pytest.approx(2 * first, rel=1e-5)
    again = float(later.loss(step)["a"].mean().detach())
    assert again == pytest.approx(loss), "also not for a second look at the same step, as AWP takes one"


def test_schedulers_see_the_terms_once_and_in_order() -> None:
    order: list[str] = []

    class Named(Setter):
        def update(self, step: Step, terms: Mapping[str, Tensor]) -> Mapping[str, Any]:
            order.append(self.log[0])
            return {}

    run = tiny_run(Clean(), schedulers={name: Named({}, [name]) for name in ("z", "a", "m")})
    value(run)
    assert order == ["z", "a", "m"]


def test_terms_are_given_to_schedulers_before_weights_and_averages() -> None:
    setter = Setter({"weight.a": 100.0})
    run = tiny_run(Clean(), schedulers={"s": setter})
    _, terms = value(run)
    assert setter.log[0]["a"].shape == (8,)
    assert float(setter.log[0]["a"].mean()) == pytest.approx(terms["a"])


def test_two_schedulers_that_set_one_value() -> None:
    run = tiny_run(Clean(), schedulers={"one": Setter({"weight.a": 1.0}), "two": Setter({"weight.a": 2.0})})
    with pytest.raises(Refused, match=r"'one' and 'two' both set 'weight.a'"):
        value(run)


@pytest.mark.parametrize("name", ["weight.c", "class_weights.c"])
def test_a_scheduler_that_names_an_unknown_term(name: str) -> None:
    with pytest.raises(Refused, match=r"no term 'c' \(its terms: a, b\)"):
        value(tiny_run(Clean(), schedulers={"s": Setter({name: 1.0})}))


def test_class_weights() -> None:
    """Of all terms, and of one; under soft labels the mean that the labels give."""
    values, only_b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 0.0, 0.0, 0.0])
    run = tiny_run(Clean({}), schedulers={"s": Setter({"class_weights": values, "class_weights.b": only_b})})
    batch = tiny_batch()
    loss = float(run.total_loss(run.step(batch)).detach())
    expected = 0.0
    for label, a, b in zip(batch.y.tolist(), run.terms["a"].tolist(), run.terms["b"].tolist(), strict=True):
        expected += (values[label] * a + values[label] * only_b[label] * b).item() / 8
    assert loss == pytest.approx(expected, rel=1e-5)
    soft = tiny_batch(soft=True)
    loss = float(run.total_loss(run.step(soft)).detach())
    expected = float(
        (soft.y @ values * run.terms["a"]).mean() + (soft.y @ values * (soft.y @ only_b) * run.terms["b"]).mean()
    )
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [lambda t: t.mean(), lambda t: t[:3], lambda t: t.unsqueeze(1)])
def test_terms_hold_one_value_per_sample(shape) -> None:
    class Bad(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {"a": shape(ops.cross_entropy(step.student("clean"), step.y))}

    with pytest.raises(Refused, match="one value per sample"):
        value(tiny_run(Bad()))


def test_a_loss_without_terms() -> None:
    class Empty(Clean):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            return {}

    with pytest.raises(Refused, match="no terms"):
        value(tiny_run(Empty()))
