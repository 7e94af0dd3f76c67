"""The three forms of a picture: SVG, PNG, and the part of a page."""

from __future__ import annotations

import io
import re
import sys
from xml.etree import ElementTree

import pytest
from matplotlib import rcParams
from PIL import Image

from rkd.report import epochs, figures

from .folders import HISTORY


@pytest.mark.slow
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
    assert {element.tag for element in root.iter()} <= figures.KEPT
    assert root.get("role") == "img" and root.get("aria-label") == picture.alt
    assert "width" not in root.attrib and root.get("viewBox") == "0 0 345.6 216"


@pytest.mark.slow
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
