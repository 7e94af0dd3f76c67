"""The diagram of what was trained from what."""

from __future__ import annotations

import pytest

from .folders import Page


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
