"""Curves over the epochs of a training."""

from __future__ import annotations

from matplotlib.axes import Axes

from rkd.report import epochs, figures

from .conftest import lines
from .folders import HISTORY


def test_losses(drawn: list[Axes]) -> None:
    picture = epochs.losses(HISTORY)
    assert picture is not None and picture.name == "losses"
    found = lines(drawn[0])
    assert set(found) == {"adv", "clean", "total"}
    assert found["total"] == [1.5 / (n + 1) for n in range(6)]
    assert picture.alt == "training loss from 1.5 in epoch 1 to 0.25 in epoch 6"


def test_accuracies_skip_epochs_without_validation(drawn: list[Axes]) -> None:
    history = [line if line["epoch"] % 2 else {k: v for k, v in line.items() if "val" not in k} for line in HISTORY]
    picture = epochs.accuracies(history, kept=3)
    assert picture is not None
    assert list(drawn[0].lines[0].get_xdata()) == [1, 3, 5]
    assert lines(drawn[0])["attacked"] == [0.5, 0.625, 0.75]
    assert list(next(x for x in drawn[0].lines if x.get_label() == "weights kept").get_xdata()) == [3, 3]
    assert picture.alt.endswith("attacked validation accuracy ends at 75.0 %")


def test_weights_are_shown_if_they_move(drawn: list[Axes]) -> None:
    assert epochs.weights(HISTORY) is not None
    assert lines(drawn[0])["clean"][-1] == 0.1875
    colors = {str(line.get_label()): line.get_color() for line in drawn[0].lines}
    assert colors == {"adv": figures.ATTACKED, "clean": figures.CLEAN}, "everywhere the same colours"
    assert epochs.weights([line | {"weight.adv": 0.5, "weight.clean": 0.5} for line in HISTORY]) is None


def test_other_scheduled_values(drawn: list[Axes]) -> None:
    picture = epochs.knobs(HISTORY)
    assert picture is not None and lines(drawn[0]) == {"T.robust": [1, 2, 3, 4, 5, 6]}
    assert epochs.knobs([{"epoch": 1, "loss": 1.0, "seconds": 3.0, "lr": 0.1}]) is None


def test_a_long_training_is_thinned(drawn: list[Axes]) -> None:
    history = [{"epoch": float(n + 1), "loss": 1 / (n + 1)} for n in range(20_000)]
    assert epochs.losses(history) is not None
    shown = list(drawn[0].lines[0].get_xdata())
    assert len(shown) <= epochs.POINTS + 1 and (shown[0], shown[-1]) == (1, 20_000)


def test_many_terms_and_extreme_values() -> None:
    history = [
        {"epoch": 1.0, "loss": 1e15, **{f"loss.t{n}": -1e15 for n in range(100)}},
        {"epoch": 2.0, "loss": -1e15, **{f"loss.t{n}": 1e-300 for n in range(100)}},
    ]
    picture = epochs.losses(history)
    assert picture is not None and picture.inline.count("t1</text>") == 1 and "t99" not in picture.inline
