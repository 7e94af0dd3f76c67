"""What a training step costs is part of a method: forwards and backwards of each net, pinned.

Written (forwards, backwards). The attack is the method's own: PGD with ten steps, for AdvProp five.
"""

from __future__ import annotations

import pytest

from rkd.core.errors import Refused
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_teachers
from rkd.training.dry_run import StepCost, dry_step
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve

STUDENT = {
    "ce": (1, 1),
    "kd": (1, 1),
    "defensive": (1, 1),
    "pgd-at": (11, 11),
    "trades": (13, 12),  # ten steps, the clean answer they start from, two in the loss
    "hat": (14, 13),  # as trades, and the helper images
    "mart": (12, 12),
    "akd2": (11, 11),
    "kd-swa": (11, 11),
    "ard": (12, 12),
    "iad": (12, 12),
    "iad2": (12, 12),
    "adaiad": (12, 12),
    "rslad": (12, 12),
    "absld": (12, 12),
    "adaad": (12, 12),
    "cgard": (11, 11),
    "dgad": (12, 12),
    "saad": (13, 13),
    "igdm": (12, 12),  # alone: two images of the same sample
    "fair-ard": (12, 12),
    "fair-iad": (12, 12),
    "fair-rslad": (12, 12),
    "fair-mtard": (12, 12),
    "mtard": (12, 12),
    "ltd": (13, 12),  # as trades
    "ltd-at": (11, 11),
    "mtard-anl": (12, 12),
    "b-mtard": (12, 12),
    "ciard": (12, 12),
    "peeraid": (12, 12),
    "adr": (11, 11),
    "trades-adr": (13, 12),
    "lbgat": (13, 12),  # as trades
    "advprop": (7, 7),
}
TEACHERS = {
    "kd": {"clean": (1, 0)},
    "defensive": {"initial": (1, 0)},
    "akd2": {"robust": (1, 0), "clean": (1, 0)},
    "kd-swa": {"robust": (1, 0), "clean": (1, 0)},
    "ard": {"robust": (1, 0)},
    "iad": {"robust": (2, 0)},  # its clean answer, and its confidence on the attacked images
    "iad2": {"robust": (1, 0), "clean": (1, 0)},
    "adaiad": {"robust": (11, 10)},
    "rslad": {"robust": (1, 0)},
    "absld": {"robust": (1, 0)},
    "adaad": {"robust": (12, 10)},  # the search differentiates the teacher
    "cgard": {"robust": (13, 10)},  # the last step's image is judged, and two images are answered
    "dgad": {"robust": (12, 10)},
    "saad": {"robust": (4, 1)},  # the search differentiates it once
    "hat": {"clean": (1, 0)},
    "igdm": {"robust": (12, 10)},
    "fair-ard": {"robust": (1, 0)},
    "fair-iad": {"robust": (2, 0)},
    "fair-rslad": {"robust": (1, 0)},
    "fair-mtard": {"robust": (1, 0), "clean": (1, 0)},
    "mtard": {"robust": (1, 0), "clean": (1, 0)},
    "ltd": {"clean": (1, 0)},
    "ltd-at": {"clean": (1, 0)},
    "mtard-anl": {"robust": (1, 0), "clean": (1, 0)},
    "b-mtard": {"robust": (1, 0), "clean": (1, 0)},
    "ciard": {"robust": (0, 0), "clean": (2, 0)},  # the robust one is the companion's beginning
}
COMPANIONS = {
    "peeraid": {"peer": (2, 1)},  # the search's clean answer, and attacked images
    "lbgat": {"guide": (1, 1)},
    "ciard": {"learner": (1, 0)},  # before it learns
    "adr": {"average": (1, 0)},
    "trades-adr": {"average": (1, 0)},
}
ONE_VIEW = {"cgard", "ce", "kd", "defensive", "pgd-at", "adr", "akd2", "kd-swa", "ltd-at"}
TWO_VIEWS = [loss for loss in STUDENT if loss not in ONE_VIEW]  # or more
THREE_VIEWS = {"hat", "saad"}


def cost(catalog: Catalog, loss: str, **table) -> StepCost:
    plan = resolve({"loss": {"name": loss}, **table}, catalog)
    return dry_step(build(plan, catalog, tiny_teachers(plan.loss.roles, (1, 8, 8), 10)))


def numbers(card: StepCost) -> dict[str, tuple[int, int]]:
    return {name: (count.forwards, count.backwards) for name, count in card.counts.items()}


@pytest.mark.parametrize("loss", STUDENT)
def test_cost(loss: str, catalog: Catalog) -> None:
    others = {f"teacher {role}": count for role, count in TEACHERS.get(loss, {}).items()}
    others |= {f"companion {name}": count for name, count in COMPANIONS.get(loss, {}).items()}
    assert numbers(cost(catalog, loss)) == {"student": STUDENT[loss], **others}


@pytest.mark.slow
@pytest.mark.parametrize("loss", TWO_VIEWS)
def test_auxiliary_norms_cost_nothing(loss: str, catalog: Catalog) -> None:
    table = {"student": {"conversions": {"aux-bn": {}}}}
    assert numbers(cost(catalog, loss, **table))["student"] == STUDENT[loss]


@pytest.mark.slow
@pytest.mark.parametrize("loss", TWO_VIEWS)
def test_a_joint_forward_saves_the_other_views_own(loss: str, catalog: Catalog) -> None:
    table = {"student": {"conversions": {"aux-bn": {"joint": True}}}}
    forwards, backwards = STUDENT[loss]
    saved = 2 if loss in THREE_VIEWS else 1
    assert numbers(cost(catalog, loss, **table))["student"] == (forwards - saved, backwards - saved)


@pytest.mark.parametrize("loss", sorted(ONE_VIEW))
def test_auxiliary_norms_that_would_be_idle_are_refused(loss: str, catalog: Catalog) -> None:
    with pytest.raises(Refused, match="batch norm"):
        cost(catalog, loss, student={"conversions": {"aux-bn": {}}})


@pytest.mark.parametrize(("attack", "forwards"), [("fgsm", 2 + 1), ("cw", 2 + 30), ("pgd-sat", 2 + 20)])
def test_another_attack(attack: str, forwards: int, catalog: Catalog) -> None:
    assert numbers(cost(catalog, "rslad", attack={"name": attack}))["student"] == (forwards, forwards)


def test_restarts_cost_two_more_forwards_each(catalog: Catalog) -> None:
    table = {"attack": {"name": "pgd", "restarts": 2, "steps": 3}}
    # Two searches, and each is judged: one forward for what it fools, one for its score.
    assert numbers(cost(catalog, "pgd-at", **table))["student"] == (1 + 2 * 3 + 2 * 2, 1 + 2 * 3)


def test_training_costs_what_the_dry_step_says(catalog: Catalog) -> None:
    from rkd.core.trainer import train_step
    from rkd.nets.net import MICRO_BATCH
    from rkd.training.dry_run import counting

    # A teacher on a CPU is asked about more images than these in several goes.
    plan = resolve({"loss": {"name": "mtard-anl"}, "batch_size": MICRO_BATCH}, catalog)
    run = build(plan, catalog, tiny_teachers(plan.loss.roles, (1, 8, 8), 10))
    nets = {"student": run.student.net, **{f"teacher {t.role}": t.net for t in run.teachers.values()}}
    with counting(nets) as counts:
        train_step(run, next(run.loader.batches(0)))
    assert {name: (c.forwards, c.backwards) for name, c in counts.items()} == numbers(dry_step(run))
