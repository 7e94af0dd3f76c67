"""Teachers side by side: what is measured is what a plain loop measures, and wrong use is refused before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, RkdError
from rkd.registry.catalog import load_catalog
from rkd.workflow.choosing.rank import rank_teachers
from rkd.workflow.choosing.unlearnable import KEY, LEAST
from rkd.workflow.evaluate import EvalSettings, evaluate, settings_of
from rkd.workflow.nets import load_run
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve
from rkd.workflow.train import train_run

CATALOG = load_catalog()
STUDENT = {"student": {"model": "small-cnn", "width": 4}, "batch_size": 16, "attack": {"steps": 1}, "engine": "plain"}
FEW: dict[str, Any] = {"train_limit": 200, "steps": 2, "seconds": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three small robust nets, hardly trained: many images are wrong for all of them."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in "abc"]
    for seed, folder in enumerate(folders):
        table = {
            "loss": {"name": "pgd-at"}, "seed": seed, "epochs": 2, "attack": {"steps": 1}, "engine": "plain",
            "student": {"model": "small-cnn", "width": 4}, "optimizer": {"lr": 0.2},
            "evaluate": {"attacks": [], "limit": 20, "checks": "off"}, "validate": {"steps": 0, "select": "last"},
        }  # fmt: skip
        train_run(table, CATALOG, folder)
    return [str(folder) for folder in folders]


def table_of(*teachers: str, **more: Any) -> dict[str, Any]:
    return {**STUDENT, "evaluate": {"limit": 60}, "teachers": [{"reference": text} for text in teachers], **more}


@pytest.mark.slow
def test_the_numbers_are_those_of_plain_evaluations(runs: list[str], cache: Path, tmp_path: Path) -> None:
    found = rank_teachers(table_of(*runs[:2]), CATALOG, **FEW)
    assert not list(cache.glob("evaluations/*")), "the journal is gone"
    evaluated = {"attacks": ["pgd"], "options": {"pgd": {"steps": 2, "start": "uniform"}}}
    plan = resolve({"loss": {"name": "ce"}, "evaluate": evaluated}, CATALOG)
    rights, means, errors = [], [], []
    for run, one in zip(runs, found["teachers"], strict=False):
        net = load_run(run, CATALOG).net
        test, train = (
            evaluate(net, split, plan.evaluation, plan_settings(plan, count))
            for split, count in ((plan.data.test, 60), (plan.data.train, 200))
        )
        assert (one["clean"], one["robust"]) == (test.accuracy(), test.accuracy("pgd"))
        assert (one["train_clean"], one["train_robust"]) == (train.accuracy(), train.accuracy("pgd"))
        assert one["ece"] == test.summary()["calibration"]["clean"]["ece"]
        assert one["ece_robust"] == test.summary()["calibration"]["pgd"]["ece"]
        rights.append(train.attacks["pgd"])
    rows = [row for row in range(200) if not any(right[row] for right in rights)]
    assert len(rows) >= LEAST and found["unlearnable"]["by"] == "teachers"
    assert found[KEY] == train.index[rows].tolist()
    for run in runs[:2]:
        p = load_run(run, CATALOG).net(plan.data.train.images(torch.tensor(found[KEY]))).double().softmax(1)
        entropies = [-sum(float(q) * float(q.log()) for q in image) for image in p]
        means.append(sum(entropies) / len(entropies))
        errors.append(float(torch.tensor(entropies).std()) / len(entropies) ** 0.5)
    assert [one["entropy"] for one in found["teachers"]] == pytest.approx(means, rel=1e-5)
    assert [one["entropy_error"] for one in found["teachers"]] == pytest.approx(errors, rel=1e-4)
    order = sorted((0, 1), key=lambda place: -means[place])
    assert found["ranking"] == [runs[place] for place in order] and found["refused"] is None
    assert [found["teachers"][place]["rank"] for place in order] == [1, 2]
    assert all(one["step_images"] == 16 and one["step_seconds"] > 0 < one["step_flops"] for one in found["teachers"])

    # The same set from a file; and another one, of another net.
    file = tmp_path / "set.json"
    file.write_text(json.dumps(found))
    again = rank_teachers(table_of(*runs[:2]), CATALOG, unlearnable=str(file), **FEW)
    assert again["unlearnable"] == {"by": "file", "images": len(rows), "of": len(rows), "references": []}
    assert (again[KEY], again["ranking"]) == (found[KEY], found["ranking"])
    assert [one["entropy"] for one in again["teachers"]] == pytest.approx(means, rel=1e-5)
    other = rank_teachers(table_of(*runs[:2]), CATALOG, references=runs[2:], **FEW)
    right = evaluate(load_run(runs[2], CATALOG).net, plan.data.train, plan.evaluation, plan_settings(plan, 200))
    assert other["unlearnable"]["by"] == "references"
    assert other[KEY] == right.index[~right.attacks["pgd"]].tolist() != found[KEY]


def plan_settings(plan: Plan, limit: int) -> EvalSettings:
    plan.config.evaluate.limit = limit
    return settings_of(plan)


@pytest.mark.slow
def test_what_says_nothing_gives_no_ranking(runs: list[str], tmp_path: Path) -> None:
    few = rank_teachers(table_of(*runs[:2]), CATALOG, **FEW | {"train_limit": LEAST - 1})
    assert few["ranking"] is None and "are too few" in few["refused"]
    assert {one["rank"] for one in few["teachers"]} == {one["entropy"] for one in few["teachers"]} == {None}

    # A net that knows nothing has the highest entropy of all.
    net = load_run(runs[0], CATALOG).net
    weights = tmp_path / "blank.pt"
    torch.save({name: torch.zeros_like(value) for name, value in net.arch.state_dict().items()}, weights)
    blank = f"small-cnn@{weights}"
    teachers = [{"reference": runs[0]}, {"reference": blank, "options": {"width": 4}, "normalize": "none"}]
    with pytest.warns(UserWarning, match="training images right, where chance"):
        found = rank_teachers(table_of(teachers=teachers), CATALOG, **FEW)
    one, two = found["teachers"]
    assert two["at_chance"] and two["entropy"] == pytest.approx(math.log(10))
    assert two["entropy"] > one["entropy"]
    assert found["ranking"] is None and found["refused"].startswith("1 of 2 teachers are robust beyond chance")
    assert any(text.startswith(f"{blank}: not robust beyond chance") for text in found["warnings"])


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        (["resnet8"], "a ranking needs two teachers or more, as in --teacher A --teacher B; given: 1"),
        (["resnet8", "resnet8"], "the teacher resnet8 is given twice"),
        (["resnet8", "resnet20"], "the teacher resnet8 is not trained yet.*--student resnet8 --loss trades"),
        (["resnet8", "resnet"], "the teacher resnet8 is not trained yet"),
    ],
)
def test_what_cannot_be_ranked(teachers: list[str], said: str, cache: Path) -> None:
    with pytest.raises(RkdError, match=f"(?s){said}"):
        rank_teachers(table_of(*teachers), CATALOG, **FEW)


def test_wrong_tables() -> None:
    with pytest.raises(ConfigError, match="teachers: is a list of tables"):
        rank_teachers(table_of(teachers="a"), CATALOG, **FEW)
    with pytest.raises(ConfigError, match="evaluate: is a table of settings"):
        rank_teachers(table_of("resnet8", "resnet20", evaluate=3), CATALOG, **FEW)
    with pytest.raises(ConfigError, match="the loss 'trades' needs none"):
        rank_teachers(table_of("resnet8", "resnet20", loss={"name": "trades"}), CATALOG, **FEW)
    entries = [{"reference": "resnet8"}, {"reference": "resnet20"}, {"role": "clean"}]
    with pytest.raises(ConfigError, match="there is no such teacher"):
        rank_teachers(table_of(teachers=entries), CATALOG, **FEW)


@pytest.mark.slow
def test_wrong_words_beside_sound_teachers(runs: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "set.json"
    listed.write_text("[1, 2, 3]")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"train_limit": 100_000}, "--train-limit: 100000 is above the 1,438 training images"),
        ({"limit": 400}, "--limit: 400 is above the 359 test images"),
        ({"unlearnable": str(listed)}, "3 robustly unlearnable images are too few"),
        ({"references": ["resnet8"]}, "resnet8 is not trained yet"),
    ]
    for more, said in wrong:
        with pytest.raises(RkdError, match=said):
            rank_teachers(table_of(*runs[:2]), CATALOG, **FEW | more)
