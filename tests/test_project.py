"""What a release holds fits together: version, changelog, citation, lower bounds, Pythons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import rkd

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINTERS = {"ruff", "mypy"}
"""Run with the newest versions alone: `.ci/run`."""


def bounds(*extras: str) -> dict[str, str]:
    """Package -> lower bound, over the dependencies and these extras, with the extras that they name."""
    wanted = list(PROJECT["dependencies"]) if not extras else []
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    found: dict[str, str] = {}
    for one in wanted:
        if one.startswith(PROJECT["name"]):
            found |= bounds(*one.partition("[")[2].rstrip("]").split(","))
        else:
            assert one.count(">=") == 1 and "," not in one, "lower bounds only"
            name, version = one.split(">=")
            found[name] = version
    return found


def test_every_extra_has_lower_bounds_alone() -> None:
    for extra in PROJECT["optional-dependencies"]:
        assert bounds(extra)


def test_the_lowest_versions_that_ci_tries_are_those_promised() -> None:
    """Those of the extra `test`; what it lacks is too large for CI, or (`docs`) built with the newest versions."""
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    promised = bounds() | bounds("test")
    assert tried == {name: version for name, version in promised.items() if name not in LINTERS}


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
