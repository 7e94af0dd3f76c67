"""The pages in a real browser: nothing is wider than a phone, every picture is there, nothing complains or runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rkd.report import build_report, compare, write_comparison

from .folders import full_net, make_evaluation, make_run, net
from .test_pages import POISON, hostile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium browser")

MEASURE = """
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, wide = frame.clientWidth;
  const inside = element => element.closest('.scroll, pre, details:not([open])');
  const over = [...page.body.querySelectorAll('*')].filter(
    element => !inside(element) && !element.closest('svg') && element.getBoundingClientRect().right > wide + 0.5);
  const letters = [...page.querySelectorAll('svg.drawing text')].map(text => text.getBoundingClientRect());
  return {
    width: wide, scroll: root.scrollWidth, over: over.map(element => element.outerHTML.slice(0, 120)),
    images: page.images.length, broken: [...page.images].filter(image => !image.naturalWidth).length,
    drawings: page.querySelectorAll('svg.drawing').length,
    empty: [...page.querySelectorAll('svg.drawing')].filter(svg => svg.getBoundingClientRect().height < 80).length,
    smallest: Math.min(...letters.filter(box => box.height).map(box => box.height)),
    ground: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(page.querySelector('svg.drawing text') || page.body).fill,
    scripts: page.scripts.length, hacked: frame.contentWindow.hacked === undefined ? 0 : 1,
  };
}
window.onload = () => setTimeout(() => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe')) found[frame.id] = measure(frame);
  document.getElementById('found').textContent = JSON.stringify(found);
}, 100);
"""


def browse(pages: dict[str, tuple[str, int]], folder: Path, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """Open each page {name: (html, width)} in a frame of that width. Returns what was measured, and the console."""
    frames = "".join(
        f'<iframe id="{name}" width="{width}" height="900" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
        for name, (page, width) in pages.items()
    )
    (folder / "frames.html").write_text(f"<!DOCTYPE html><pre id=found></pre>{frames}<script>{MEASURE}</script>")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom", f"file://{folder / 'frames.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match and match.group(1), done.stderr[-2000:]
    return json.loads(html.unescape(match.group(1))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    long = {"name": "a-method-with-quite-a-long-name" * 4, "scale": 1.0}
    wide = full_net()
    wide["attacks"] |= {f"an-attack-called-{place}": 0.5 for place in range(12)}
    finished = make_run(folder / ("a-run-with-a-name-without-any-blank" * 4), config={"loss": long}, student=wide)
    unfinished = make_run(folder / "open", finished=False)
    other = make_run(folder / "other", config={"epochs": 9}, student=net(0.9, 0.8, 0.7))
    comparison = write_comparison(compare([finished, other]), folder / "compare.html")[0]
    nets = [f"runs/a-net-with-quite-a-long-name-{place}" for place in range(6)]
    accuracy = {one: dict.fromkeys(nets, 0.5) for one in nets}
    matrix = {"attack": "pgd", "clean": dict.fromkeys(nets, 0.9), "accuracy": accuracy}
    saved = make_evaluation(folder / "kept", found={"transfer": matrix, "net": "/".join(["a-long-folder"] * 12)})
    # Without the policy that forbids scripts: the escaping alone has to hold.
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", build_report(hostile(folder / "bad")).html)
    assert "Content-Security-Policy" not in bare and POISON[:8] not in bare
    citations = {"x": "@misc{x, title={" + "A long title " * 30 + "}}"}
    return {
        "run": build_report(finished, citations).html,
        "evaluation": build_report(saved, citations).html,
        "open": build_report(unfinished).html,
        "compare": comparison.read_text(encoding="utf-8"),
        "bad": bare,
    }


def test_on_a_phone_and_on_a_desk(pages: dict[str, str], tmp_path: Path) -> None:
    shown = {f"{name}-{width}": (page, width) for name, page in pages.items() for width in (390, 1280)}
    # All parts that fold open, as wide as they get.
    shown["unfolded"] = (pages["run"].replace("<details>", "<details open>"), 390)
    shown["small"] = (pages["run"], 320)
    found, console = browse(shown, tmp_path, dark=False)
    assert console == []
    for name, page in found.items():
        assert page["scroll"] <= page["width"] and page["over"] == [], f"{name}: {page['over']}"
        assert page["broken"] == page["empty"] == page["scripts"] == page["hacked"] == 0, f"{name}: {page}"
    assert (found["run-390"]["drawings"], found["run-390"]["images"]) == (8, 6)
    assert (found["open-390"]["drawings"], found["compare-390"]["drawings"]) == (5, 1)
    assert (found["evaluation-390"]["drawings"], found["evaluation-390"]["images"]) == (3, 6)
    assert found["bad-390"]["drawings"] >= 5 and found["bad-390"]["images"] == 6
    assert found["run-390"]["smallest"] >= 9, "letters in pictures can be read on a phone"


def test_light_and_dark(pages: dict[str, str], tmp_path: Path) -> None:
    def brightness(color: str) -> float:
        return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 765

    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        found, console = browse({name: (pages[name], 390) for name in ("run", "compare")}, folder, dark)
        assert console == []
        for page in found.values():
            ground, ink = brightness(page["ground"]), brightness(page["ink"])
            assert (ground < 0.2 and ink > 0.5) if dark else (ground > 0.9 and ink < 0.5), page
