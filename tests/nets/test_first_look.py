"""What a net's answers to a few training images say of it."""

from __future__ import annotations

import pytest
import torch

from rkd.data.dataset import ArraySplit
from rkd.nets.first_look import Answers, InputNormalization, compare, doubts, representative

CLASSES = ("cat", "dog", "fox", "owl")


def said(
    right: int, of: int = 400, gap: float = 4.0, order: tuple[int, ...] = (0, 1, 2, 3), random: bool = False
) -> Answers:
    """Answers of which `right` are right once the outputs are in `order`; the others name the next class, or any."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(of) % 4
    wrong = torch.randperm(of, generator=generator) >= right
    step = torch.randint(1, 4, (of,), generator=generator) if random else 1
    outputs = torch.tensor(order)[(labels + wrong * step) % 4]
    return Answers(gap * torch.nn.functional.one_hot(outputs, 4).float(), labels)


def test_every_class_has_its_share() -> None:
    """An image folder lists its classes one after the other: the first 512 images are all cats."""
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    split = ArraySplit(torch.zeros(1000, 1, 2, 2), labels)
    drawn = representative(split, 100)
    assert labels[drawn].bincount().tolist() == [90, 9, 1]
    assert torch.equal(drawn, representative(split, 100)) and len(set(drawn.tolist())) == 100
    assert sorted(representative(split, 5000).tolist()) == list(range(1000))


def test_a_clear_lead_decides() -> None:
    assert compare(said(380), said(250)) == 1
    assert compare(said(250), said(380)) == -1


def test_three_images_decide_nothing() -> None:
    assert compare(said(398), said(395)) == 0


def test_accuracy_and_likelihood_have_to_agree() -> None:
    """Images of a stronger contrast make larger logits: surer where right, and no better."""
    assert compare(said(380), said(320, gap=0.01)) == 1
    assert compare(said(380, gap=400.0), said(320, gap=0.5)) == 0, "right more often, but not more likely"


def test_few_images_decide_nothing() -> None:
    assert compare(said(10, of=12), said(8, of=12)) == 0


def test_a_good_teacher_raises_no_doubt() -> None:
    assert doubts(said(380), "the teacher", CLASSES, None, "teachers.clean") is None
    assert doubts(said(380), "the teacher", CLASSES, 0.97, "teachers.clean") is None


def test_a_teacher_at_chance() -> None:
    text = doubts(said(110, random=True), "the teacher w.pt", CLASSES, None, "teachers.clean")
    assert text is not None and "w.pt: 27.5% of 400 training images right, where chance is 25.0%" in text
    assert "normalisation" in text and "order" in text and "file" in text


def test_a_teacher_below_its_own_results() -> None:
    text = doubts(said(280), "the teacher", CLASSES, 0.95, "teachers.clean")
    assert text is not None and "its own results say 95.0%" in text


def test_classes_in_another_order() -> None:
    order = (2, 0, 3, 1)
    swapped = said(384, order=order)
    assert swapped.at_chance and swapped.order() == list(order)
    text = doubts(swapped, "the teacher", CLASSES, None, "teachers.clean")
    assert text is not None and "in which 96.0% are right: 'cat' is its output 2" in text
    assert "--set 'teachers.clean.classes=[2,0,3,1]'" in text
    again = doubts(swapped, "the teacher", CLASSES, None, "teachers.clean", outputs=(1, 0, 2, 3))
    assert again is not None and "classes=[2,1,3,0]'" in again, "of the net's own outputs, whatever was picked before"


def test_the_normalisation_of_a_teacher_whose_classes_are_in_another_order() -> None:
    order = (2, 0, 3, 1)
    assert compare(said(384, order=order), said(250, order=order)) == 1


def test_noise_is_no_order() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = Answers(torch.rand(200, 50, generator=generator), torch.arange(200) % 50)
    assert noise.order() is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    broken = said(380)
    broken.logits[:] = value
    assert broken.share == 0
    assert compare(said(380), broken) == 1


def test_what_results_hold() -> None:
    known = InputNormalization((0.0,), (1.0,), "none", "told")
    assert known.table() == {"mean": (0.0,), "std": (1.0,), "choice": "none", "known": "told"}
