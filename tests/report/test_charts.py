"""Pictures: what they show, and that they fit into any page."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from rkd.report import charts, epochs
from rkd.report.data import Calibration, Curve, Net

from .conftest import lines
from .folders import EPS


def test_without_data_there_is_no_picture() -> None:
    for chart in (epochs.losses, epochs.accuracies, epochs.weights, epochs.knobs, epochs.learning_rate):
        assert chart([]) is None
    assert charts.reliability(Net()) is None and charts.class_bars(Net(), []) is None
    assert charts.trade_off([], "PGD") is None


def test_against_eps(drawn: list[Axes]) -> None:
    curve = Curve("pgd", "Linf", [EPS / 2, EPS, 2 * EPS], [0.8, 0.6, 0.1], [(0.7, 0.9), None, (0.0, 0.2)])
    picture = charts.against_eps(curve, EPS, 0.95)
    assert list(drawn[0].lines[0].get_ydata()) == [0.95, 0.8, 0.6, 0.1], "the clean accuracy is the point at 0"
    assert len(drawn[0].collections) == 1, "the band"
    assert "the threat, 38/255" in picture.inline and "64/255" in picture.inline


def test_class_bars_take_the_strongest_attack_where_there_is_no_worst_case() -> None:
    net = Net(attacks={"fgsm": 0.7, "pgd": 0.5}, per_class={"clean": [1.0], "fgsm": [0.7], "pgd": [0.5]})
    bars = charts.class_bars(net, ["cat"])
    assert bars is not None and (bars.under, bars.attacked, bars.names) == ("pgd", [0.5], ["cat"])


def test_of_many_classes_the_weakest_are_shown() -> None:
    shares = [place / 100 for place in range(100)]
    bars = charts.class_bars(Net(per_class={"clean": [1.0] * 100, "worst_case": [None, *shares[:0:-1]]}), [])
    assert bars is not None and bars.total == 100
    assert bars.names == [str(place) for place in range(99, 79, -1)]
    assert bars.attacked == shares[1:21]


def test_reliability(drawn: list[Axes]) -> None:
    bins = [(10, 0.25, 0.5), (1, 0.5, 0.0), (30, 0.75, 0.625)]
    attacks = {f"a{n}": 0.1 * n for n in range(1, 6)}
    net = Net(attacks=attacks, calibration={name: Calibration(0.125, 0.5, bins) for name in ("clean", *attacks)})
    picture = charts.reliability(net)
    assert picture is not None and "clean: expected calibration error 12.5 %" in picture.alt
    shown = lines(drawn[0])
    assert {"clean", "a1", "a2", "a3"} <= set(shown) and "a5" not in shown, "the strongest three"
    assert shown["clean"] == [0.5, 0.625], "no line through a single image"
    assert len(drawn[0].collections[0].get_offsets()) == 3, "but a mark"


def test_trade_off(drawn: list[Axes]) -> None:
    points = [
        charts.Point("one", 0.9, 0.5, (0.02, 0.01), (0.04, 0.03), [(0.9, 0.5)]),
        charts.Point("two", 0.8, 0.6, (0.01, 0.01), (0.02, 0.02), [(0.79, 0.58), (0.81, 0.62)]),
    ]
    assert charts.trade_off(points, "worst case") is not None
    across, upright = drawn[0].containers[0][2]
    assert np.allclose(across.get_segments()[0], [[0.88, 0.5], [0.91, 0.5]])
    assert np.allclose(upright.get_segments()[0], [[0.9, 0.46], [0.9, 0.53]])
    seeds = next(c for c in drawn[0].collections if len(c.get_offsets()) == 2)
    assert seeds.get_offsets().tolist() == [[0.79, 0.58], [0.81, 0.62]]


def test_percentages_have_no_more_digits_than_they_need(drawn: list[Axes]) -> None:
    bar = (0.02, 0.02)
    charts.trade_off([charts.Point(n, 0.97, y, bar, bar, [(0.97, y)]) for n, y in (("a", 0.2), ("b", 0.6))], "PGD")
    across = [drawn[0].xaxis.get_major_formatter()(share, 0) for share in (0.95, 0.965, 0.99125, 1)]
    assert across == ["95%", "96.5%", "99.125%", "100%"]


def test_a_tiny_difference_does_not_fill_the_picture(drawn: list[Axes]) -> None:
    bar = (0.0, 0.0)
    charts.trade_off([charts.Point(n, 0.9, y, bar, bar, [(0.9, y)]) for n, y in (("a", 0.5), ("b", 0.501))], "PGD")
    low, high = drawn[0].get_ylim()
    assert high - low > 0.0199


# The three forms of a picture
