"""`rkd cite`: the papers of components and runs, each once."""

from __future__ import annotations

import re

import pytest


def keys(text: str) -> list[str]:
    return re.findall(r"@\w+\{([^,]+),", text)


def test_cite_a_component(rkd) -> None:
    said = rkd("cite", "pgd-sat")
    assert keys(said.stdout) == ["madry2018towards", "zhang2019theoretically", "carlini2017towards"]
    assert said.stdout.count("{") == said.stdout.count("}")


@pytest.mark.parametrize("name", ["gaussian-noise", "motion-blur", "contrast", "jpeg", "snow", "elastic"])
def test_cite_what_a_family_cites(rkd, name: str) -> None:
    """The paper stands once, in the package of the corruptions."""
    assert keys(rkd("cite", name).stdout) == ["hendrycks2019benchmarking"]


def test_cite_names_each_paper_once(rkd) -> None:
    # `ce` is a loss and an objective.
    found = keys(rkd("cite", "ce").stdout)
    assert found.count("madry2018towards") == 1


@pytest.mark.slow
def test_cite_losses_side_by_side(rkd) -> None:
    said = rkd("cite", "rslad+igdm").stdout
    assert "zi2021revisiting" in said and "lee2025indirect" in said


def test_cite_a_run(rkd, finished) -> None:
    run, _ = finished
    found = keys(rkd("cite", run).stdout)
    assert {"madry2018towards", "alpaydin1998optical", "goodfellow2015explaining"} <= set(found)
    assert len(found) == len(set(found))


def test_cite_an_unknown_name(rkd) -> None:
    assert rkd("cite", "rslda").exit_code == 2
