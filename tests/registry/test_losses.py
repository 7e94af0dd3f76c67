"""Losses side by side: terms, roles and defaults, and what cannot be put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rkd import ops
from rkd.core.errors import ConfigError, UnknownName
from rkd.core.step import Step
from rkd.core.types import Companion, DerivedView
from rkd.registry.catalog import Catalog
from rkd.registry.defaults import method_defaults
from rkd.registry.losses import LossSum, create_loss, loss_class, loss_options
from rkd.testing import OneStep, check_loss, tiny_batch, tiny_run
from rkd.workflow.resolve import resolve


@dataclass
class Mirror:
    """A term on a view that follows from others."""

    scale: float = 1.0

    auxiliary: ClassVar = True
    roles: ClassVar = ("robust",)
    defaults: ClassVar = {"attack": "fgsm", "scheduler": "anl", "extension": "ema"}
    derived_views: ClassVar = {"mirror": DerivedView(lambda step: 2 * step.image() - step.image("adv"), bounded=False)}
    weights: ClassVar = {"adv": 3.0}

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {"adv": self.scale * ops.kl(step.student("mirror"), step.teacher("robust", "mirror"))}


def test_terms_side_by_side(catalog: Catalog) -> None:
    rslad = catalog.create("loss", "rslad")
    both = LossSum({"rslad": rslad, "mirror": Mirror()})
    check_loss(both)
    run = tiny_run(both, attack=OneStep())
    batch = next(run.loader.batches(0))
    one, other, whole = (
        run_loss(tiny_run(loss, attack=OneStep()).step(batch))
        for run_loss, loss in ((rslad, rslad), (Mirror(), Mirror()), (both, both))
    )
    assert list(whole) == ["adv", "clean", "mirror.adv"]
    torch.testing.assert_close(whole["adv"], one["adv"])
    torch.testing.assert_close(whole["mirror.adv"], other["adv"])
    assert both.weights["adv"] == rslad.alpha and both.weights["mirror.adv"] == 3.0
    expected = 5 / 6 * one["adv"].mean() + 1 / 6 * one["clean"].mean() + 3 * other["adv"].mean()
    fresh = tiny_run(both, attack=OneStep())
    torch.testing.assert_close(fresh.total_loss(fresh.step(batch)), expected)


def test_an_auxiliary_term_takes_the_others_attack(catalog: Catalog) -> None:
    for parts in ({"rslad": catalog.create("loss", "rslad"), "mirror": Mirror()},
                  {"mirror": Mirror(), "rslad": catalog.create("loss", "rslad")}):  # fmt: skip
        both = LossSum(parts)
        assert both.defaults == {
            "attack": "pgd", "objective": "kl-teacher", "scheduler": ["anl"], "extension": ["ema"],
        } and not both.clashes  # fmt: skip
        wanted = method_defaults(both, {}, catalog)
        assert wanted["attack"]["name"] == "pgd" and wanted["schedulers"] == {"anl": {}}
        assert wanted["extensions"] == {"ema": {}}
        assert list(both.roles) == ["robust"]


def test_options_of_what_one_loss_alone_brings_are_no_contradiction(catalog: Catalog) -> None:
    both = loss_class(catalog, "mtard+ciard")
    assert not both.clashes
    assert both.defaults["scheduler"] == ["entropy-balance", "magnitude"]
    assert both.defaults["schedulers.entropy-balance.robust"] == "learner"


def test_each_loss_asks_its_own_teacher(catalog: Catalog) -> None:
    """`step.teacher()` is a loss's only teacher, whatever others stand beside it."""
    parts = {name: catalog.create("loss", name) for name in ("rslad", "kd", "mtard", "pgd-at")}
    both, batch = LossSum(parts), tiny_batch()
    run = tiny_run(both, attack=OneStep())
    terms = both(run.step(batch))
    assert list(run.teachers) == ["robust", "clean"]
    for name, term, role in (("rslad", "adv", "robust"), ("kd", "kd", "clean")):
        alone = tiny_run(parts[name], attack=OneStep())
        alone.teachers = {role: run.teachers[role]}
        torch.testing.assert_close(terms[term], parts[name](alone.step(batch))[term])
    # A single teacher may come in another role than the usual one, also here.
    both = LossSum({name: parts[name] for name in ("rslad", "pgd-at")})
    run = tiny_run(both, attack=OneStep())
    run.teachers = {"clean": run.teachers["robust"]}
    assert both(run.step(batch))


def test_facts(catalog: Catalog) -> None:
    facts = create_loss(catalog, "rslad+igdm+peeraid", {}).facts(catalog)
    assert [part["name"] for part in facts["parts"]] == ["rslad", "igdm", "peeraid"]
    assert facts["roles"] == ["robust"] and list(facts["companions"]) == ["peer"]
    assert facts["parts"][1]["weights"] == {"igdm": [0, 0.5, 1]}
    assert [text.partition(":")[0] for text in facts["contradictions"]] == ["objective.role"]


def test_roles_are_everybodys(catalog: Catalog) -> None:
    both = loss_class(catalog, "rslad+mtard")
    assert list(both.roles) == ["robust", "clean"]


def test_contradictory_defaults_are_refused_until_the_user_chooses(catalog: Catalog) -> None:
    table: dict[str, Any] = {"loss": {"name": "rslad+mtard"}, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=r"objective: .* kl-teacher \(rslad\) and ce \(mtard\); .*objective\.name="):
        resolve(table, catalog)
    plan = resolve({**table, "objective": {"name": "ce"}}, catalog)
    assert plan.config.objective is not None and plan.config.objective.name == "ce"


def test_options_stand_in_tables_of_their_own(catalog: Catalog) -> None:
    both = create_loss(catalog, "rslad+mtard", {"rslad": {"alpha": 0.5}})
    assert loss_options(both)["rslad"]["alpha"] == 0.5
    with pytest.raises(ConfigError, match=r"loss\.alpha: say of which loss, loss\.rslad\.alpha or loss\.mtard\.alpha"):
        create_loss(catalog, "rslad+mtard", {"alpha": 0.5})
    with pytest.raises(ConfigError, match=r"loss\.rslad: alpha must be between 0 and 1"):
        create_loss(catalog, "rslad+mtard", {"rslad": {"alpha": 7}})
    with pytest.raises(ConfigError, match=r"loss\.rslad: is a table"):
        create_loss(catalog, "rslad+mtard", {"rslad": 7})
    plan = resolve(
        {"loss": {"name": "rslad+mtard", "rslad": {"alpha": 0.5}}, "objective": {"name": "ce"},
         "data": {"name": "digits"}}, catalog,
    )  # fmt: skip
    again = resolve(plan.config.model_dump(by_alias=True, exclude_none=True), catalog)
    assert again.config.text() == plan.config.text() and "[loss.rslad]" in plan.config.text()


@pytest.mark.parametrize("name", ["rslad+rslad", "rslad+", "+"])
def test_no_sums(name: str, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match="no sum of different losses"):
        create_loss(catalog, name, {})


def test_an_unknown_part(catalog: Catalog) -> None:
    with pytest.raises(UnknownName, match=r"there is no loss 'rslat'.*rslad"):
        create_loss(catalog, "rslat+mtard", {})


def test_what_two_losses_make_each_in_its_own_way() -> None:
    class One(Mirror):
        companions: ClassVar = {"peer": Companion()}

    class Other(Mirror):
        companions: ClassVar = {"peer": Companion(lr=0.1)}

    with pytest.raises(ConfigError, match="one and other both declare the companion 'peer'"):
        LossSum({"one": One(), "other": Other()})

    class Elsewhere(Mirror):
        derived_views: ClassVar = {"mirror": DerivedView(lambda step: step.image())}

    with pytest.raises(ConfigError, match="both make the view 'mirror'"):
        LossSum({"one": Mirror(), "other": Elsewhere()})


def test_targets_of_a_sum_are_those_of_the_one_that_has_them() -> None:
    class Taught(Mirror):
        def targets(self, step: Any) -> str:
            return "one's"

    assert LossSum({"one": Mirror(), "other": Taught()}).targets(None) == "one's"
    assert LossSum({"one": Mirror()}).targets is None
    with pytest.raises(ConfigError, match="one and other both make 'targets', each in its own way"):
        LossSum({"one": Taught(), "other": Taught()})
