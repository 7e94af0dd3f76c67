"""The diagram of what was trained from what."""

from __future__ import annotations

import pytest

from rkd.report.origin import origin
from rkd.report.read import read_run

from .folders import Page, make_run


@pytest.mark.slow
def test_the_diagram(page: Page) -> None:
    text = page.text("origin")
    for words in (
        "images digits threat: Linf eps 38/255",
        "10.0 % held out",
        "robust teacher wrn10-2 prepared clean 98.3",
        "clean teacher wrn10-2",
        "loss mtard-anl loss = 0.625 × adv + 0.375 × clean",
        "attack PGD maximises ce steps = 10",
        "scheduler anl rate = 0.025",
        "student small-cnn width = 16 3 epochs sgd lr 0.1",
    ):
        assert words in text, words
    assert text.index("robust teacher") < text.index("mtard-anl") < text.index("small-cnn")


@pytest.mark.parametrize(("limit", "words"), [(0.1, "10.0 %"), (500, "500")])
def test_a_part_of_the_training_images(tmp_path, limit: float, words: str) -> None:
    data = {"name": "digits", "validation": 0, "limit_train": limit}
    run = read_run(make_run(tmp_path / "run", config={"data": data}, epochs=0))
    assert origin(run).images.chips == [f"{words} of the training images"]
