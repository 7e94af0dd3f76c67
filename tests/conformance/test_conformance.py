"""Every registered component goes through the checks that authors of plugins use. A new one gets them for free."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rkd import ops, testing
from rkd.core.errors import Refused, RkdError
from rkd.core.step import AttackPlan, Step
from rkd.core.traits import traits_of
from rkd.core.types import ThreatModel
from rkd.evaluation.evaluate import rehearse
from rkd.evaluation.samples import EvalSettings
from rkd.nets.sources import TeacherReference
from rkd.nets.student import NetStudent
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.hooks import KINDS, Family
from rkd.training.dry_run import counting

CATALOG = load_catalog()
HEAVY = {"resnet101", "resnet152"}  # the same code as resnet50, at three times the cost
LIGHT = {
    "wrnDEPTH-WIDTH": "wrn10-1",
    "dm-wrnDEPTH-WIDTH": "dm-wrn10-1",
    "wrnDEPTH-WIDTH-swish": "wrn10-1-swish",
    "timm:NAME": "timm:resnet10t",
}
CITES_NOTHING = {"ce", "cgard"}  # its file says why
VIEWS = {"cgard": ("adv", "adv-teacher")}
"""Of losses that train on more attacked views than one."""
ASKS_A_TEACHER = {"pgd-joint"}
"""No evaluation has one."""
OPTIONS = {
    "mixup": {"classes": 4},
    "cutmix": {"classes": 4},
    "transfer": {"source": "another net", "options": {"steps": 3}},
    # The same code as with the standard numbers of steps.
    "cw-l2": {"steps": 60, "searches": 3},
    "square": {"queries": 500},
    "autoattack": {"steps": 20, "queries": 200},
    "autoattack+": {"steps": 20, "queries": 200, "restarts": 2},
    "autoattack-reference": {"queries": 50},
    **{name: {"steps": 20} for name in ("apgd-ce", "apgd-dlr", "apgd-margin", "apgd-t", "fab-t", "gama", "pma+")},
    **{name: {"steps": 50} for name in ("ddn", "fmn", "sigma-zero")},
}
L0 = ThreatModel("L0", 4, 1)
ATTACKS = {
    "square": {"optimum": 0.1},  # random: no gradient leads it
    "cw-l2": {"optimum": 0},  # looks for the nearest image, not for the worst one of a ball
    "ddn": {"optimum": 0},  # the same
    "fmn": {"sparse_optimum": 0.9},
    "sigma-zero": {"plainest": L0, "sparse_optimum": 0.9},  # counts changes: another ball tells it nothing
    "jsma": {"optimum": 0, "eps": math.inf},  # counts pixels: its ball is neither Linf nor L2
    "msd": {"optimum": 0, "eps": math.inf},  # each image in one of several balls
    "n-fgsm": {"optimum": 0, "eps": math.inf},  # noise twice as large as the step, and no ball
    "noise": {"optimum": 0},
    "pgd-joint": {"optimum": 0},  # looks for where student and teacher differ
    "transfer": {"optimum": 0},  # looks for the worst image for another net
}
"""What of `check_attack` an attack does not promise, and why."""
SPARSE = {
    "fgsm", "pgd", "cw", "cw-30", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "autoattack",
}  # fmt: skip
"""Attacks that reach the best image of a linear net in L1 and L0 as well, if they know these norms. Not `pgd-sat` and
`pgd-trades`: after their random start, 20 of their steps of a hundredth of the values each reach 42 % of it in L1."""
TERMS = {
    "entropy-weights": ("adv", "adv_entropy", "clean", "clean_entropy", "entropy"),
    "magnitude": ("adv", "clean", "push"),
}
"""Of the loss that a scheduler is for, where it is for one."""


def names(kind: str) -> list[str]:
    """Names of components; of a family one example."""
    found = []
    for name in CATALOG.names(kind):
        component = CATALOG.entries[kind][name][0].component
        found.append(LIGHT.get(name, component.examples[0]) if isinstance(component, Family) else name)
    return [name for name in found if name not in HEAVY]


def test_no_builtin_plugin_is_broken() -> None:
    assert not CATALOG.plugins.broken, [(p.name, p.error) for p in CATALOG.plugins.broken]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "extension"])
def test_each_kind_has_a_component(kind: str) -> None:
    assert CATALOG.names(kind)


@pytest.mark.parametrize("entry", list(CATALOG.all()), ids=lambda e: f"{e.kind}-{e.name}")
def test_entry(entry) -> None:
    testing.check_entry(entry)


@pytest.mark.parametrize("name", names("loss"))
def test_method(name: str, catalog: Catalog) -> None:
    testing.check_method(catalog, name, cited=name not in CITES_NOTHING)


@pytest.mark.parametrize("name", names("loss"))
def test_loss(name: str) -> None:
    testing.check_loss(CATALOG.create("loss", name), views=VIEWS.get(name, ("adv",)))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("name", names("loss"))
def test_loss_with_each_reduction(name: str, reduction: str) -> None:
    if "reduction" not in getattr(CATALOG.find("loss", name).component, "__dataclass_fields__", {}):
        pytest.skip("has no KL")
    testing.check_loss(CATALOG.create("loss", name, {"reduction": reduction}), views=VIEWS.get(name, ("adv",)))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("attack"))
def test_attack(name: str, short_reference: None) -> None:
    attack = testing.TinyParts(CATALOG).attack(name, OPTIONS.get(name, {}))
    options = {"sparse_optimum": 0.9} if name in SPARSE else {}
    testing.check_attack(attack, **options | ATTACKS.get(name, {}))


@pytest.mark.parametrize("name", names("attack"))
def test_attack_can_be_rehearsed(name: str) -> None:
    """Called on two images and stopped: cheap, and the net and the random numbers stay as they are."""
    net, data = testing.tiny_net(), testing.tiny_dataset()
    attack = testing.TinyParts(CATALOG).attack(name, OPTIONS.get(name, {}) if name == "transfer" else {})
    plan = AttackPlan(attack, CATALOG.create("objective", "ce"))
    refused = pytest.raises(Refused, match="a teacher is needed") if name in ASKS_A_TEACHER else nullcontext()
    with refused, testing.untouched(net), counting({"net": net}) as counts:
        rehearse(net, data.train, {name: plan}, EvalSettings(threat=ATTACKS.get(name, {}).get("plainest", data.threat)))
    assert counts["net"].forwards <= 5


class Enough(Exception):
    pass


@pytest.mark.parametrize("name", names("attack"))
def test_attack_asks_for_the_objective_or_says_that_it_has_its_own(name: str) -> None:
    attack = testing.TinyParts(CATALOG).attack(name, OPTIONS.get(name, {}))
    asked, queries = [], []

    def objective(step, probe, x):
        asked.append(len(x))
        return ops.cross_entropy(probe(x), step.y)

    def count(*of) -> None:
        queries.append(of)
        if len(queries) > 9:
            raise Enough

    net, batch = testing.tiny_net(), testing.tiny_batch()
    with torch.no_grad():
        batch = replace(batch, y=net.eval()(batch.x).argmax(1))
    plans = {"adv": AttackPlan(attack, objective)}
    teachers = testing.tiny_teachers(("robust",))
    threat = ATTACKS.get(name, {}).get("plainest", ThreatModel())
    step = Step(batch, NetStudent(net), teachers, plans, threat=threat, on_query=count, on_query_others=True)
    with suppress(Enough):
        step.image("adv")
    assert bool(asked) != traits_of(attack).own_objective


@pytest.mark.parametrize("name", names("objective"))
def test_objective(name: str) -> None:
    testing.check_objective(CATALOG.create("objective", name))


@pytest.mark.parametrize("name", names("objective"))
def test_objective_among_two_teachers(name: str) -> None:
    testing.check_objective(CATALOG.create("objective", name), roles=("clean", "robust"))


@pytest.mark.parametrize("name", names("scheduler"))
def test_scheduler(name: str) -> None:
    testing.check_scheduler(CATALOG.create("scheduler", name), terms=TERMS.get(name, ("adv", "clean")))


@pytest.mark.parametrize("name", names("student"))
def test_conversion(name: str) -> None:
    testing.check_conversion(CATALOG.create("student", name))


@pytest.mark.parametrize("name", names("extension"))
def test_extension(name: str) -> None:
    testing.check_extension(CATALOG.create("extension", name))


@pytest.mark.parametrize("name", names("augment"))
def test_augment(name: str) -> None:
    testing.check_augment(CATALOG.create("augment", name, OPTIONS.get(name, {})), soft=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", names("corruption"))
def test_corruption(name: str) -> None:
    testing.check_corruption(CATALOG.create("corruption", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("model"))
def test_model(name: str) -> None:
    testing.check_model(CATALOG.create("model", name), shape=(3, 16, 16))


def test_digits() -> None:
    testing.check_dataset(CATALOG.create("dataset", "digits")())


@pytest.mark.parametrize("name", [n for n in CATALOG.names("dataset") if n != "digits"])
def test_data_that_is_not_there_is_said_so(name: str, tmp_path: Path) -> None:
    """Without its files each source names what is missing; none downloads unasked."""
    component = CATALOG.entries["dataset"][name][0].component
    missing = str(tmp_path / "nowhere")
    with pytest.raises(RkdError) as error:
        if isinstance(component, Family):
            CATALOG.create("dataset", f"{name.partition(':')[0]}:{missing}")()
        else:
            CATALOG.create("dataset", name, {"dir": missing})()
    assert "nowhere" in str(error.value)


@pytest.mark.parametrize("name", names("teacher"))
def test_teacher_source_leaves_others_alone(name: str) -> None:
    """A source returns None for a reference that is not for it: a bare model's name."""
    data = testing.tiny_dataset()
    reference = TeacherReference("resnet8", "robust", "resnet8")
    assert CATALOG.create("teacher", name)(reference, lambda *_: None, data) is None
