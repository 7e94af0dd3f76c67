"""Any loss with any attack, scheduler, conversion and companion: it trains, or it is refused and words say why."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from rkd.core.errors import Refused, RkdError
from rkd.registry.catalog import load_catalog
from rkd.registry.config import RunConfig
from rkd.testing import check_trains, tiny_teachers
from rkd.workflow.build import build
from rkd.workflow.resolve import load_data, resolve

CATALOG = load_catalog()
DIGITS = load_data(RunConfig(), CATALOG)
EVALUATION_ONLY = {"autoattack-reference", "transfer", "sigma-zero"}
"""No option makes the first one short, the second needs another net, the third knows no ball of Linf."""
ATTACKS = [None, *(name for name in CATALOG.names("attack") if name not in EVALUATION_ONLY)]
SHORT = {"steps": 2, "queries": 4, "targets": 1, "searches": 1, "candidates": 2, "fraction": 0.02}
SCHEDULERS = [None, *CATALOG.names("scheduler")]
CONVERSIONS = [None, *CATALOG.names("student")]
ATTACKED_ALONE = {"cgard", "pgd-at", "adr", "ltd-at", "akd2", "kd-swa"}
"""Losses that train on attacked images alone: auxiliary norms would take all of them."""
TERMS = {
    "ce": 1,
    "defensive": 1,
    "pgd-at": 1,
    "adr": 1,
    "ltd-at": 1,
    "igdm": 1,
}  # two otherwise


def table(loss: str, attack: str | None, conversion: str | None, scheduler: str | None) -> dict:
    found: dict = {
        "loss": {"name": loss},
        "student": {"model": "small-cnn", "width": 4, "conversions": {conversion: {}} if conversion else {}},
        "schedulers": {scheduler: {}} if scheduler else {},
        "data": {"name": "digits", "validation": 0},
        "batch_size": 16,
        "epochs": 1,
    }
    if attack:
        options = {field.name for field in fields(CATALOG.find("attack", attack).component)}
        found["attack"] = {"name": attack, **{name: value for name, value in SHORT.items() if name in options}}
    elif "attack" in CATALOG.find("loss", loss).component.defaults:
        found["attack"] = {"steps": SHORT["steps"]}
    return found


def reasons(loss: str, attack: str | None, conversion: str | None, scheduler: str | None) -> list[str]:
    """Words that a refusal must hold one of; none: the combination has to train."""
    component = CATALOG.find("loss", loss).component
    attacks = "attack" in component.defaults
    found = []
    if attack and not attacks:
        found.append("attack")
    if attack == "pgd-joint" and not component.roles:
        found.append("a teacher is needed")
    if loss == "cgard" and attack not in (None, "pgd-joint"):
        found.append("adv-teacher")
    if scheduler == "anl" and TERMS.get(loss, 2) < 2:
        found.append("anl")
    if scheduler == "fair" and not attacks:
        found.append("attack")
    if scheduler == "class-temperature" and loss != "absld":
        found += ["class_T", "attack"]
    if scheduler == "entropy-weights" and loss != "saad":
        found += ["entropy-weights", "attack"]
    if scheduler == "magnitude" and loss != "ciard":
        found += ["magnitude", "attack"]
    if scheduler == "entropy-balance" and "mtard" not in loss and loss != "ciard":
        found += ["teacher", "T.robust"]
    if conversion == "aux-bn" and (not attacks or loss in ATTACKED_ALONE):
        found.append("batch norm")
    return found


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits are read once for all combinations."""
    monkeypatch.setattr("rkd.workflow.resolve.load_data", lambda config, catalog: DIGITS)


@pytest.mark.slow
@pytest.mark.parametrize("loss", CATALOG.names("loss"))
def test_every_combination(loss: str) -> None:
    for attack in ATTACKS:
        # What a scheduler or a conversion asks for has nothing to do with how an attack searches: each attack meets
        # them beside these losses, and each loss beside its own attack.
        beside = attack is None or loss in ("mtard-anl", "advprop", "ce")
        for conversion in CONVERSIONS if beside else (None,):
            for scheduler in SCHEDULERS if attack is None else (None, "anl") if beside and not conversion else (None,):
                parts = (loss, attack, conversion, scheduler)
                expected = reasons(*parts)
                try:
                    plan = resolve(table(*parts), CATALOG)
                    check_trains(build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10)))
                except RkdError as error:
                    message = str(error)
                    assert expected, f"{parts} was refused: {message}"
                    assert any(word in message for word in expected), f"{parts}: {message}"
                else:
                    assert not expected, f"{parts} trains, but {expected} should have stopped it"


@pytest.mark.slow
@pytest.mark.parametrize("loss", CATALOG.names("loss"))
@pytest.mark.parametrize("objective", CATALOG.names("objective"))
def test_every_objective(loss: str, objective: str) -> None:
    """An objective that needs a teacher is refused where there is none."""
    component = CATALOG.find("loss", loss).component
    parts = table(loss, None, None, None) | {"objective": {"name": objective}}
    try:
        plan = resolve(parts, CATALOG)
        check_trains(build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10)))
    except RkdError as error:
        assert any(word in str(error) for word in ("attack", "teacher")), error
        assert "attack" not in component.defaults or ("kl-" in objective and not component.roles), error
    else:
        assert "attack" in component.defaults


BESIDE_ALL = load_catalog([Path(__file__).with_name("companions_plugin.py")])
COMPANIONS = "second+mean+goes-on"
"""A net of each kind beside the student."""


def beside_companions(
    loss: str, attack: str | None = None, conversion: str | None = None, scheduler: str | None = None
):
    """A run of the loss with companions of each kind, the one that has an architecture with one of its own."""
    parts = table(loss, attack, conversion, scheduler)
    parts["loss"]["name"] += f"+{COMPANIONS}"
    parts["companions"] = {"second": {"model": "small-cnn", "width": 2}}
    plan = resolve(parts, BESIDE_ALL)
    return build(plan, BESIDE_ALL, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))


@pytest.mark.slow
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_every_loss_beside_companions(conversion: str | None) -> None:
    for loss in CATALOG.names("loss"):
        attacks = "attack" in CATALOG.find("loss", loss).component.defaults
        if conversion == "aux-bn" and not attacks:
            with pytest.raises(Refused, match="batch norm"):
                check_trains(beside_companions(loss, conversion=conversion))
        else:
            check_trains(beside_companions(loss, conversion=conversion))


@pytest.mark.slow
def test_companions_beside_every_attack_and_scheduler() -> None:
    for attack in ATTACKS:
        check_trains(beside_companions("rslad", attack))
    for scheduler in SCHEDULERS:
        expected = reasons("mtard-anl", None, None, scheduler)
        try:
            check_trains(beside_companions("mtard-anl", scheduler=scheduler))
        except RkdError as error:
            assert any(word in str(error) for word in expected), f"{scheduler}: {error}"
        else:
            assert not expected, f"{scheduler} trains, but {expected} should have stopped it"


BLENDING = ("mixup", "cutmix")
BESIDE = [(loss, augment) for augment in BLENDING for loss in CATALOG.names("loss")]
BESIDE += [(loss, one) for one in CATALOG.names("augment") if one not in BLENDING for loss in ("ce", "trades", "rslad")]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "augment"), BESIDE)
def test_every_augmentation(loss: str, augment: str) -> None:
    """Soft labels go everywhere, or are refused; what leaves the labels alone concerns no loss."""
    options = {"classes": 10} if augment in BLENDING else {}
    plan = resolve(table(loss, None, None, None) | {"augments": {augment: options}}, CATALOG)
    run = build(plan, CATALOG, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))
    try:
        check_trains(run)
    except RkdError as error:
        assert "labels" in str(error)
