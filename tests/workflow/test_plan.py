"""The reporter that says nothing, and the plan as data."""

from __future__ import annotations

import inspect

from rkd.registry.catalog import Catalog
from rkd.workflow.plan import Plan, Reporter, Silent
from rkd.workflow.resolve import resolve


def test_silent_answers_all_that_a_reporter_is_told() -> None:
    for name, method in inspect.getmembers(Reporter, inspect.isfunction):
        if not name.startswith("_"):
            assert list(inspect.signature(getattr(Silent, name)).parameters) == list(
                inspect.signature(method).parameters
            )
    reporter = Silent()
    assert reporter.training("student") == {}
    assert reporter.evaluating("student")("clean", 1, 2) is None


def test_a_plan_is_made_of_instances(catalog: Catalog) -> None:
    plan = resolve({"loss": {"name": "trades"}, "teachers": []}, catalog)
    assert isinstance(plan, Plan)
    assert list(plan.attacks) == ["adv"] and set(plan.evaluation) == set(plan.config.evaluate.attacks)
    assert plan.config.loss.options["beta"] == plan.loss.beta
