"""From a drawing to its three forms: SVG and PNG files, and the SVG that goes into a page.

matplotlib draws on a `Figure` of its own, without pyplot. In the page the drawing takes its colours from the page's CSS
variables and its letters from the page's font, so that one picture is right in the light and in the dark; it is
rebuilt from matplotlib's XML element by element, and only elements that draw are kept.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET, GRID, PAPER = "#1c2126", "#69717b", "#dde2e8", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a828c")
"""Okabe and Ito's colours, which colour-blind readers tell apart. The first means clean, the second attacked."""

CLEAN, ATTACKED = SERIES[0], SERIES[1]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VARIABLES = {INK: "ink", QUIET: "quiet", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{place}" for place, color in enumerate(SERIES)
}
"""Colours that a page's style sheet sets anew: `var(--ink)` and so on."""

WIDTH, HEIGHT = 4.8, 3.0
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: searchable, and in the page's own font
    "svg.hashsalt": "rkd",
    "text.usetex": False,  # a matplotlibrc in the current folder may not start LaTeX
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 11.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}
KEPT = {"svg", "g", "path", "use", "text", "tspan", "defs", "clipPath", "rect", "circle"}
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Picture:
    """A drawing. `name` is its files' name; `alt` says in words what it shows; `inline` goes into a page."""

    name: str
    title: str
    alt: str
    svg: bytes
    png: bytes
    inline: Markup


def render(name: str, title: str, alt: str, draw: Callable[[Axes], None], height: float = HEIGHT) -> Picture:
    """Draw on the axes of a new figure, `height` inches high."""
    with rc_context(STYLE), warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks: the page, with the reader's fonts, shows it.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure = Figure(figsize=(WIDTH, height), facecolor=PAPER, layout="constrained")
        figure.patch.set_gid("paper")
        draw(figure.add_subplot())
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "rkd"})
        figure.set_layout_engine("none")  # the layout stands; finding it again costs as much as drawing
        figure.savefig(png, format="png", dpi=200, metadata={"Software": "rkd"})
    return Picture(name, title, alt, svg.getvalue(), png.getvalue(), inline(svg.getvalue(), name, alt))


def inline(svg: bytes, name: str, alt: str) -> Markup:
    """matplotlib's SVG as a part of a page, its ids prefixed with `name`."""
    root = _rebuilt(ElementTree.fromstring(svg), name)
    assert root is not None
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {"viewBox": box, "role": "img", "aria-label": alt, "class": "drawing"}
    # ElementTree has escaped every text and attribute.
    return Markup(ElementTree.tostring(root, encoding="unicode", method="xml"))


def _rebuilt(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    tag = element.tag.removeprefix(SVG) if isinstance(element.tag, str) else ""
    if tag not in KEPT or element.get("id") == "paper":
        return None
    copy = ElementTree.Element(tag)
    copy.text, copy.tail = element.text, element.tail
    for key, value in element.attrib.items():
        if key == "id":
            copy.set("id", f"{name}-{value}")
        elif key in (LINK, "href"):
            copy.set("href", f"#{name}-{value.removeprefix('#')}")
        elif key == "clip-path":
            copy.set("clip-path", re.sub(r"url\(#(\w+)\)", rf"url(#{name}-\1)", value))
        elif key == "style":
            copy.set("style", _style(value))
        elif not key.startswith("{"):
            copy.set(key, value)
    for child in element:
        if (kept := _rebuilt(child, name)) is not None:
            copy.append(kept)
    return copy


def _style(value: str) -> str:
    """A style with the page's colours and without a font family."""
    kept = []
    for rule in value.split(";"):
        key, _, setting = rule.partition(":")
        key, setting = key.strip(), setting.strip()
        if key == "font-family" or not setting:
            continue
        if key == "font":
            size = re.search(r"[\d.]+px", setting)
            key, setting = "font-size", size.group() if size else "10px"
        if key in ("fill", "stroke") and setting in VARIABLES:
            setting = f"var(--{VARIABLES[setting]})"
        kept.append(f"{key}: {setting}")
    return "; ".join(kept)


def legend(axes: Axes, longest: int = 22) -> None:
    """Names above the drawing, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [label if len(label) <= longest else label[: longest - 1] + "…" for label in labels]
    if not labels:
        return
    columns = max(1, min(4, int(WIDTH / (0.5 + 0.09 * max(map(len, labels))))))
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
