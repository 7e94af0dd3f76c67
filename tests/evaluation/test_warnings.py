"""What is odd about the numbers of a result."""

from __future__ import annotations

import torch

from rkd.evaluation.result import Evaluation
from rkd.evaluation.warnings import find_warnings

from .made import made, outcome


def checks(result: Evaluation) -> list[str]:
    return [warning.check for warning in find_warnings(result) if warning.check != "few-samples"]


def test_warnings() -> None:
    clean = [True] * 100
    half, most = [True] * 50 + [False] * 50, [True] * 60 + [False] * 40
    assert checks(made(clean, fgsm=[True] * 20 + [False] * 80, pgd=most)) == ["fgsm-beats-iterated"]
    assert checks(made(clean, pgd=clean)) == ["no-effect"]
    assert checks(made(clean, fgsm=most, pgd=half)) == []
    assert [warning.check for warning in find_warnings(made(clean, pgd=half))] == ["few-samples"]
    assert "40.4% and 59.6%" in str(find_warnings(made(clean, pgd=half))[0])
    assert find_warnings(made(clean * 10, pgd=half * 10)) == []


def attacked(margins: list[float], lost: float, fooled: int = 0, eps: float = 0.01) -> Evaluation:
    """All images right, all but the first few under an attack that took `lost` off each margin."""
    count = len(margins)
    result = made([True] * count, pgd=[row >= fooled for row in range(count)])
    result.outcomes["clean"].margin = torch.tensor(margins)
    result.outcomes["pgd"].margin = torch.tensor(margins) - lost
    result.outcomes["pgd"].about = {"norm": "Linf", "eps": eps}
    return result


def test_an_attack_without_effect_where_none_is_expected() -> None:
    """With a slope of 10 a radius of 0.01 lowers margins by 0.1."""

    def no_effect(result: Evaluation, slope: float | None) -> list[str]:
        return [warning.check for warning in find_warnings(result, slope) if warning.check == "no-effect"]

    far, near = [5.0] * 100, [0.05] * 4 + [5.0] * 96
    assert no_effect(attacked(far, 0.1), None) == ["no-effect"], "nobody knows the slope"
    assert no_effect(attacked(far, 0.1), 10.0) == []
    assert no_effect(attacked(far, 0.0), 10.0) == [], "it hands the images out as they were: what the slope says stands"
    assert no_effect(attacked(near[2:], 0.1), 10.0) == [], "two expected to be fooled: none may be luck"
    assert no_effect(attacked(near, 0.1), 10.0) == ["no-effect"], "four expected to be fooled: none is odd"
    assert no_effect(attacked(near * 6, 0.1, fooled=1), 10.0) == ["no-effect"], "24 expected, one found"
    assert no_effect(attacked(far, 0.01), 10.0) == ["no-effect"], "margins hardly fell: the attack does not climb"
    assert no_effect(attacked(far, 0.1), 1000.0) == ["no-effect"], "with that slope all should have fallen"
    elsewhere = attacked(far, 0.1)
    elsewhere.outcomes["pgd"].about["norm"] = "L2"
    assert no_effect(elsewhere, 10.0) == ["no-effect"], "a slope in another norm"


def test_an_attack_of_another_norm_is_none_to_be_measured_by() -> None:
    """The nearest image in L2 is hardly ever inside an Linf ball: that FGSM does better there says nothing."""
    clean = [True] * 100
    result = made(clean, fgsm=[True] * 60 + [False] * 40)
    result.outcomes["cw-l2"] = outcome(clean, measure="L2")
    assert checks(result) == []
    result.outcomes["cw-l2"] = outcome(clean, measure="Linf")
    assert checks(result) == ["fgsm-beats-iterated", "no-effect"]


def test_a_black_box_that_sees_more_than_the_white_boxes() -> None:
    clean = [True] * 100
    result = made(clean, pgd=[True] * 60 + [False] * 40)
    result.outcomes["square"] = outcome([False] * 2 + [True] * 98, black_box=True)
    assert checks(result) == ["black-box"]
    result.outcomes["square"] = outcome([False] * 1 + [True] * 98 + [False], black_box=True)
    assert checks(result) == [], "one image more is luck"
    result.outcomes["square"] = outcome([True] * 60 + [False] * 40, black_box=True)
    assert checks(result) == []
