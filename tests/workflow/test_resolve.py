"""From settings to a plan and a run: customs, overriding, roles, and a written configuration that repeats the run."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit, Dataset
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.recipes import read_recipe, recipes
from rkd.workflow import resolve as resolving
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve

CATALOG = load_catalog()
LOSSES = CATALOG.names("loss")


@pytest.fixture(autouse=True)
def _digits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits are read once; other data sets have no files here, and stand-ins of their shape will do."""
    kept: dict[str, Dataset] = {}
    real = resolving.load_data

    def load(config: Any, catalog: Catalog) -> Dataset:
        name = config.data.name
        if name not in kept:
            kept[name] = stand_in(name, catalog) if name in SHAPES else real(config, catalog)
        return kept[name]

    monkeypatch.setattr(resolving, "load_data", load)


SHAPES = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "mnist": ((1, 28, 28), 10)}


def stand_in(name: str, catalog: Catalog) -> Dataset:
    catalog.find("dataset", name)
    shape, classes = SHAPES[name]
    split = ArraySplit(torch.zeros(6000, *shape, dtype=torch.uint8), torch.arange(6000) % classes)
    return Dataset(
        name, split, split, shape, tuple(map(str, range(classes))), (0.5,) * shape[0], (0.25,) * shape[0],
        teachers={"robust": {"model": "resnet8"}, "clean": {"model": "resnet8"}}, fingerprint=name,
    )  # fmt: skip


def plan(loss: str | None = None, **table: Any) -> Plan:
    return resolve({**({"loss": {"name": loss}} if loss else {}), **table}, CATALOG)


def problems(**table: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        resolve(table, CATALOG)
    return error.value.problems


# A written configuration repeats the run


def fixed_point(table: dict[str, Any]) -> None:
    first = resolve(table, CATALOG)
    second = resolve(tomllib.loads(first.config.text()), CATALOG)
    assert second.config.text() == first.config.text()
    for part in ("loss", "attacks", "schedulers", "evaluation", "teachers", "validation_attack"):
        assert getattr(second, part) == getattr(first, part), part
    assert second.data.threat == first.data.threat


@pytest.mark.parametrize("loss", LOSSES)
def test_each_method(loss: str) -> None:
    fixed_point({"loss": {"name": loss}})


@pytest.mark.parametrize("name", recipes())
def test_each_recipe(name: str) -> None:
    fixed_point(read_recipe(name))


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"loss": {"name": "rslad", "alpha": "ramp(0, 5/6, until=0.4)"}},
        {"loss": {"name": "mtard", "weights": {"adv": "points(0:0.1, 1:1)"}}},
        {"loss": {"name": "rslad"}, "attack": {"name": "cw"}},
        {"loss": {"name": "ard"}, "attack": {"name": "fgsm"}},
        {"loss": {"name": "rslad"}, "attack": {"eps": "16/255", "steps": 3}},
        {"loss": {"name": "rslad"}, "objective": {"name": "margin", "kappa": 3}},
        {"loss": {"name": "mtard-anl"}, "schedulers": {"anl": False}},
        {"loss": {"name": "advprop"}, "student": {"conversions": {"aux-bn": False}}},
        {"loss": {"name": "advprop"}, "student": {"conversions": {"aux-bn": {"joint": True}}}},
        {"loss": {"name": "trades"}, "schedulers": {"anl": {"rate": "1/40"}}},
        {"loss": {"name": "kd"}, "augments": {"flip": {}, "crop": {"padding": 1}}},
        {"loss": {"name": "kd"}, "augments": {"flip": False}},
        {"loss": {"name": "kd"}, "threat": {"eps": "20/255"}, "optimizer": {"schedule": "drops(1, 215/300)"}},
        {"loss": {"name": "kd"}, "evaluate": {"attacks": ["cw"], "options": {"cw": {"eps": "4/255", "steps": 3}}}},
        {"loss": {"name": "pgd-at"}, "student": {"model": "resnet20-B"}, "threat": {"norm": "L2", "eps": 1.0}},
        {"loss": {"name": "kd"}, "teachers": [{"reference": "wrn10-1", "role": "clean"}]},
        {"loss": {"name": "defensive", "T": 100.0}},
        {"loss": {"name": "kd"}, "extensions": {"ema": {"decay": 0.9}}},
    ],
    ids=str,
)
def test_settings(table: dict[str, Any]) -> None:
    fixed_point(table)


# Customs and overriding


def test_who_goes_before_whom() -> None:
    """The schema's defaults < the data set's < the method's < the user's."""
    assert plan("rslad").config.batch_size == 64, "the custom of digits, not the schema's 128"
    assert plan("rslad", batch_size=16).config.batch_size == 16
    assert plan("kd").config.validate_.select == "clean", "the custom of kd"
    assert plan("kd", validate={"select": "robust"}).config.validate_.select == "robust"


def test_a_method_brings_its_attack() -> None:
    config = plan("ard").config
    assert config.attack.name == "pgd"
    assert (config.attack.options["mode"], config.attack.options["start"]) == ("train", "uniform")
    assert config.objective.name == "ce"
    assert plan("kd").config.attack is None


def test_another_attack_brings_none_of_the_options() -> None:
    config = plan("ard", attack={"name": "fgsm"}).config
    assert config.attack.name == "fgsm"
    assert config.attack.options["mode"] == "eval"
    assert plan("ard", attack={"name": "pgd"}).config.attack.options["mode"] == "train", "the same attack keeps them"
    assert plan("ard", attack={"steps": 3}).config.attack.options["mode"] == "train", "and so does an option of it"


def test_an_attack_with_a_goal_keeps_it() -> None:
    assert plan("rslad").config.objective.name == "kl-teacher"
    assert plan("rslad", attack={"name": "cw"}).config.objective.name == "margin"
    assert plan("rslad", attack={"name": "fgsm"}).config.objective.name == "kl-teacher"
    chosen = plan("rslad", attack={"name": "cw"}, objective={"name": "ce"})
    assert chosen.config.objective.name == "ce"
    assert chosen.attacks["adv"].objective is CATALOG.find("objective", "ce").component


def test_an_objective_that_an_attack_does_not_ask_for() -> None:
    said = plan("pgd-at", attack={"name": "apgd-ce"}, objective={"name": "kl-student"}).notes
    assert said == ["objective: the attack apgd-ce has a loss of its own, so that kl-student makes no difference"]
    attacks = {"attacks": ["square", "pgd"], "options": {n: {"objective": "ce"} for n in ("square", "pgd")}}
    said = plan("ce", evaluate=attacks).notes
    assert len(said) == 1 and said[0].startswith("evaluate.options.square.objective: the attack square has")
    again = plan("pgd-at", attack={"name": "apgd-ce"}).config.text()
    assert resolve(tomllib.loads(again), CATALOG).notes == [], "the one that config.toml names is its own"


def test_weights_chosen_under_attack_need_an_attack() -> None:
    for loss, select in (("rslad", {}), ("ce", {"select": "robust"})):
        with pytest.raises(ConfigError, match=r"validate\.select: (w-)?robust needs .* --set validate\.select=clean"):
            plan(loss, validate={"steps": 0, **select})
    for select in ("clean", "last"):
        assert plan("rslad", validate={"steps": 0, "select": select}).validation_attack is None
    nothing_held_out = plan("rslad", validate={"steps": 0}, data={"validation": 0})
    assert nothing_held_out.validation_attack is None, "nothing is validated, and the last weights are kept"


def test_a_named_scheduler_takes_the_place_of_the_methods() -> None:
    assert list(plan("mtard-anl").schedulers) == ["anl"]
    assert list(plan("mtard-anl", schedulers={"anl": {"rate": 0.5}}).schedulers) == ["anl"]
    assert list(plan("mtard-anl", schedulers={"anl": False}).schedulers) == []
    assert plan("mtard-anl", schedulers={"anl": {"rate": 0.5}}).schedulers["anl"].rate == 0.5


def test_an_attack_for_a_loss_that_runs_none() -> None:
    assert "runs no attack" in problems(loss={"name": "kd"}, attack={"steps": 3})[0]
    assert "runs no attack" in problems(loss={"name": "kd"}, objective={"name": "ce"})[0]


def test_the_threat() -> None:
    assert plan("kd").data.threat == ThreatModel("Linf", 38 / 255, 9.5 / 255)
    assert plan("kd", threat={"eps": "19/255"}).data.threat == ThreatModel("Linf", 19 / 255, 4.75 / 255)
    assert plan("kd", threat={"eps": 0.1, "step_size": 0.05}).data.threat == ThreatModel("Linf", 0.1, 0.05)
    assert plan("kd", threat={"norm": "L2", "eps": 2}).data.threat.norm == "L2"
    assert "at most 1" in problems(threat={"eps": 8})[0]
    assert "an L2 radius must be given" in problems(threat={"norm": "L2"})[0]
    assert plan("kd", threat={"norm": "L1", "eps": 4}).data.threat == ThreatModel("L1", 4, 1)
    assert "a number of pixels" in problems(threat={"norm": "L0", "eps": 2.5})[0]
    assert "every image is within 64" in problems(threat={"norm": "L1", "eps": 65})[0]


# Roles


def roles(loss: str, *teachers: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(t.role, t.model) for t in plan(loss, teachers=list(teachers)).teachers]


def test_roles_are_filled_in_order() -> None:
    assert roles("mtard") == [("robust", "wrn10-2"), ("clean", "wrn10-2")]
    assert roles("mtard", {"reference": "wrn10-1"}) == [("robust", "wrn10-1"), ("clean", "wrn10-2")]
    assert roles("mtard", {"reference": "resnet8"}, {"reference": "mlp"}) == [("robust", "resnet8"), ("clean", "mlp")]
    named = roles("mtard", {"reference": "resnet8", "role": "clean"}, {"reference": "mlp"})
    assert named == [("robust", "mlp"), ("clean", "resnet8")]
    assert roles("mtard", {"reference": "mlp", "role": "clean"}) == [("robust", "wrn10-2"), ("clean", "mlp")]
    assert roles("kd") == [("clean", "wrn10-2")]
    assert roles("pgd-at") == []


def test_the_only_teacher_may_have_another_role() -> None:
    assert roles("rslad", {"reference": "mlp", "role": "clean"}) == [("clean", "mlp")]


def test_the_teacher_of_defensive_distillation_is_the_students_twin() -> None:
    found = plan("defensive", student={"model": "small-cnn", "width": 4})
    assert [(t.role, t.model, t.options["width"]) for t in found.teachers] == [("initial", "small-cnn", 4)]


@pytest.mark.parametrize(
    ("loss", "teachers", "word"),
    [
        ("rslad", [{"reference": "mlp"}] * 2, "2 given, but the loss 'rslad' needs 1 (robust)"),
        ("pgd-at", [{"reference": "mlp"}], "needs none"),
        ("mtard", [{"reference": "mlp", "role": "clean"}] * 2, "the role 'clean' is given twice"),
        ("mtard", [{"reference": "mlp", "role": "claen"}], "no role 'claen'. Did you mean clean?"),
        ("rslad", [{"reference": "mpl"}], "there is no model 'mpl'. Did you mean mlp"),
        ("rslad", [{"reference": "runs/nowhere"}], "neither a model nor the folder of a run"),
        ("rslad", [{"reference": "teacher.pt"}], "--teacher robust=wrn34@teacher.pt"),
        ("rslad", [{"reference": "mlp", "options": {"widht": 3}}], "teacher robust.widht: there is no such option"),
    ],
)
def test_teachers_that_cannot_be(loss: str, teachers: list[dict], word: str) -> None:
    assert any(word in said for said in problems(loss={"name": loss}, teachers=teachers))


# All problems at once


def test_every_part_is_checked() -> None:
    said = problems(
        loss={"name": "rslad", "alpah": 3},
        attack={"name": "pgd", "step": 3, "eps": "8/0"},
        student={"model": "small-cnn", "widht": 3, "conversions": {"auxbn": {}}},
        evaluate={"attacks": ["fgsm", "pg"], "options": {"cw": {}}, "limit": 10**6},
        schedulers={"nal": {}},
        augments={"flip": {"p": 3}},
        teachers=[{"reference": "mpl"}],
        threat={"eps": 3},
    )
    words = [
        "loss.alpah", "attack.step", "attack.eps", "student.widht", "'auxbn'", "'pg'", "evaluate.options.cw",
        "evaluate.limit", "'nal'", "p must be a probability", "'mpl'", "threat.eps",
    ]  # fmt: skip
    for word in words:
        assert sum(word in line for line in said) == 1, (word, said)
    assert len(said) == len(words)


def test_names_are_looked_up_although_the_schema_is_broken() -> None:
    said = problems(loss={"name": "rsladd"}, attack={"name": "pgdd"}, epochs=0, student={"model": "resnt18"}, foo=1)
    for word in ("'rsladd'", "'pgdd'", "epochs:", "'resnt18'", "foo:"):
        assert sum(word in line for line in said) == 1, (word, said)


# A run


def test_parts_of_a_batch_need_two_images_each(catalog: Catalog) -> None:
    assert resolve({"batch_size": 8, "grad_accumulation": 4}, catalog).config.grad_accumulation == 4
    with pytest.raises(ConfigError, match="at most 4 are possible"):
        resolve({"batch_size": 8, "grad_accumulation": 5}, catalog)


@pytest.mark.parametrize(("changes", "size"), [({}, 128), ({"batch_size": 512}, 256), ({"batch_size": 32}, 64),
                                               ({"batch_size": 256, "grad_accumulation": 8}, 64),
                                               ({"batch_size": 8, "evaluate": {"batch_size": 300}}, 300)])  # fmt: skip
def test_the_evaluations_batches_follow_the_trainings_downwards(changes: dict[str, Any], size: int, catalog) -> None:
    table = {"loss": {"name": "ce"}, "data": {"name": "digits"}, **changes}
    assert resolve(table, catalog).config.evaluate.batch_size == size


def test_data_beyond_the_memory(catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def beyond(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("rkd.plugins.datasets.digits.Digits.__call__", beyond)
    with pytest.raises(ConfigError, match=r"do not fit into memory\. Batch by batch are read: a folder of images"):
        resolve({"loss": {"name": "ce"}, "data": {"name": "digits"}}, catalog)


def test_a_part_of_the_training_images() -> None:
    whole = resolve({"loss": {"name": "ce"}}, CATALOG).data
    plan = resolve({"loss": {"name": "ce"}, "data": {"limit_train": "1/10"}, "seed": 3}, CATALOG)
    assert len(plan.data.train) == round(len(whole.train) / 10) and len(plan.data.test) == len(whole.test)
    assert plan.data.fingerprint == whole.fingerprint, "or rkd compare would not put it beside others"
    assert "144 of the 1,438 training images, of each class its share (data.limit_train)" in plan.notes
    again = resolve(tomllib.loads(plan.config.text()) | {"seed": 4}, CATALOG).data
    assert torch.equal(again.train.images(torch.arange(144)), plan.data.train.images(torch.arange(144)))
    assert resolve({"loss": {"name": "ce"}, "data": {"limit_train": 1438}}, CATALOG).data.train is whole.train


@pytest.mark.parametrize(
    ("limit", "words"),
    [(1439, "above the 1,438"), (9, "below the 10 classes"), ("0.001", "below"), (0, "a share between"),
     (1.5, "a share between"), ("many", "expected a number")],
)  # fmt: skip
def test_parts_of_the_training_images_that_make_no_sense(limit: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.limit_train: .*{words}"):
        resolve({"loss": {"name": "ce"}, "data": {"limit_train": limit}}, CATALOG)
