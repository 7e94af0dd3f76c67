"""What a release holds fits together: version, changelog, citation, lower bounds, Pythons."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import rkd

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEWEST_ALONE = {"ruff", "mypy", "furo", "myst-parser", "sphinx", "sphinx-copybutton"}
"""Linters and the site's: `.ci/run` takes their newest versions."""


def bounds() -> dict[str, str]:
    """Package -> lower bound, over the dependencies and all extras."""
    wanted = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    others = [one for one in wanted if not one.startswith(PROJECT["name"])]
    assert all(one.count(">=") == 1 and "," not in one for one in others), "lower bounds only"
    return dict(one.split(">=") for one in others)


def test_the_lowest_versions_that_ci_tries_are_those_promised() -> None:
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert tried == {name: version for name, version in bounds().items() if name not in NEWEST_ALONE}


def test_the_version_has_a_section_and_is_what_is_cited() -> None:
    sections = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dates = dict(sections)
    assert sections[0] == ("Unreleased", "")
    assert sections[1][0] == rkd.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {rkd.__version__}\n" in citation
    assert f"\ndate-released: {dates[rkd.__version__]}\n" in citation


def test_every_python_that_ci_runs_is_promised() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (row,) = re.findall(r"python: \[(.+)\]", workflow)
    tried = re.findall(r"[\d.]+", row)
    named = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if ":: Python :: 3." in line]
    assert tried == named
    assert PROJECT["requires-python"] == f">={tried[0]}"
