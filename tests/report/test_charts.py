"""Pictures: what they show, and that they fit into any page."""

from __future__ import annotations

import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.axes import Axes
from PIL import Image

from rkd.report import charts, draw, epochs
from rkd.report.data import Calibration, Curve, Net

from .folders import EPS, epoch

HISTORY = [{**epoch(number), "epoch": number + 1} for number in range(6)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every picture, as they were drawn on."""
    kept: list[Axes] = []
    render = draw.render

    def spy(name, title, alt, paint, height=draw.HEIGHT):
        def painted(axes: Axes) -> None:
            paint(axes)
            kept.append(axes)

        return render(name, title, alt, painted, height)

    for module in (charts, epochs):
        monkeypatch.setattr(module, "render", spy)
    return kept


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}


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
    assert colors == {"adv": draw.ATTACKED, "clean": draw.CLEAN}, "everywhere the same colours"
    assert epochs.weights([line | {"weight.adv": 0.5, "weight.clean": 0.5} for line in HISTORY]) is None


def test_other_scheduled_values(drawn: list[Axes]) -> None:
    picture = epochs.knobs(HISTORY)
    assert picture is not None and lines(drawn[0]) == {"T.robust": [1, 2, 3, 4, 5, 6]}
    assert epochs.knobs([{"epoch": 1, "loss": 1.0, "seconds": 3.0, "lr": 0.1}]) is None


def test_without_data_there_is_no_picture() -> None:
    for chart in (epochs.losses, epochs.accuracies, epochs.weights, epochs.knobs, epochs.learning_rate):
        assert chart([]) is None
    assert charts.reliability(Net()) is None and charts.class_bars(Net(), []) is None
    assert charts.trade_off([], "PGD") is None


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


def test_files() -> None:
    picture = epochs.losses(HISTORY)
    assert picture is not None
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    image = Image.open(io.BytesIO(picture.png))
    assert image.size == (960, 600)
    assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert epochs.losses(HISTORY) == picture, "the same data give the same bytes"


def test_the_inline_form_takes_colours_and_font_from_the_page() -> None:
    picture = epochs.losses(HISTORY)
    assert picture is not None
    root = ElementTree.fromstring(str(picture.inline))
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert "var(--series-0)" in styles and "var(--ink)" in styles and "var(--quiet)" in styles
    assert not re.findall(r"#[0-9a-f]{6}", styles), "no colour of its own"
    assert "font-family" not in styles and "font-size" in styles
    assert {element.tag for element in root.iter()} <= draw.KEPT
    assert root.get("role") == "img" and root.get("aria-label") == picture.alt
    assert "width" not in root.attrib and root.get("viewBox") == "0 0 345.6 216"


def test_ids_are_the_pictures_own() -> None:
    first, second = epochs.losses(HISTORY), epochs.accuracies(HISTORY)
    assert first is not None and second is not None
    ids = [re.findall(r' id="([^"]+)"', str(picture.inline)) for picture in (first, second)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for picture, own in zip((first, second), ids, strict=True):
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', str(picture.inline))
        assert used and set(used) <= set(own)


def test_names_are_text_and_nothing_else() -> None:
    name = '<script>alert("&")</script>$\\frac{1}$'
    history = [line | {f"loss.{name}": 1.0, "loss.x": 2.0} for line in HISTORY]
    picture = epochs.losses(history)
    assert picture is not None
    for form in (str(picture.inline), picture.svg.decode()):
        assert "<script" not in form
        assert ElementTree.fromstring(form) is not None
    texts = [element.text for element in ElementTree.fromstring(str(picture.inline)).iter("text")]
    assert '<script>alert("&")</s…' in texts


def test_drawing_leaves_no_trace_in_matplotlib() -> None:
    before = dict(rcParams)
    assert epochs.losses(HISTORY) is not None
    assert dict(rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
