"""Numbers that change over training: their values, how they are written, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.core.types import ThreatModel, at
from rkd.registry.schedules import Cosine, Drops, OneCycle, Points, Ramp, check_range, parse_number, parse_schedule
from rkd.storage.text import fraction

VALUES = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-12, 1e-3),
    st.integers(-1000, 1000).map(lambda n: n / 255),
    st.integers(-5, 5).map(float),
)
SHARES = st.one_of(st.floats(0, 1), st.integers(0, 300).map(lambda n: n / 300))


def spans(draw) -> tuple[float, float]:
    since, until = sorted(draw(st.lists(SHARES, min_size=2, max_size=2, unique=True)))
    return since, until


@st.composite
def schedules(draw):
    kind = draw(st.sampled_from([Ramp, Cosine, Drops, Points, OneCycle]))
    if kind is OneCycle:
        steps = draw(st.none() | st.integers(2, 100_000).map(float))
        return OneCycle(draw(VALUES), draw(SHARES), draw(st.floats(0.1, 1e6)), draw(st.floats(0.1, 1e6)), steps)
    if kind is Drops:
        return Drops(draw(VALUES), tuple(sorted(draw(st.lists(SHARES, max_size=4)))), draw(VALUES))
    if kind is Points:
        places = sorted(draw(st.lists(SHARES, min_size=1, max_size=4, unique=True)))
        return Points(tuple((place, draw(VALUES)) for place in places))
    return kind(draw(VALUES), draw(VALUES), *spans(draw))


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_a_schedule_is_read_as_it_is_written(schedule) -> None:
    assert parse_schedule(str(schedule)) == schedule


@settings(max_examples=100, deadline=None)
@given(schedules(), st.floats(0, 1))
def test_values_are_finite(schedule, progress: float) -> None:
    assert math.isfinite(at(schedule, progress))


def test_it_is_written_as_people_write_it() -> None:
    assert str(parse_schedule("ramp(0, 1)")) == "ramp(0, 1)"
    assert str(parse_schedule("cosine(1,0, since=0.25)")) == "cosine(1, 0, since=0.25)"
    assert str(parse_schedule("drops(1, 215/300, 260/300, 285/300)")).endswith("0.95, factor=0.1)")
    assert str(parse_schedule("points(0:8/255, 1:16/255)")) == "points(0:8/255, 1:16/255)"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ramp(0, 0.3, until=0.4)", {0: 0, 0.2: 0.15, 0.4: 0.3, 1: 0.3}),
        ("ramp(1, 0, since=0.5)", {0: 1, 0.5: 1, 0.75: 0.5, 1: 0}),
        ("cosine(1, 0)", {0: 1, 0.5: 0.5, 1: 0, 0.25: (1 + math.cos(math.pi / 4)) / 2}),
        ("drops(1, 0.5, 0.75)", {0: 1, 0.499: 1, 0.5: 0.1, 0.75: 0.01, 1: 0.01}),
        ("drops(2, 0.5, factor=0.5)", {0.4: 2, 0.6: 1}),
        ("points(0:0, 0.3:1, 1:0)", {0: 0, 0.15: 0.5, 0.3: 1, 0.65: 0.5, 1: 0}),
        ("points(0.2:3, 0.4:5)", {0: 3, 0.2: 3, 0.3: 4, 1: 5}),
        ("onecycle(1)", {0: 1 / 25, 0.15: (1 + 1 / 25) / 2, 0.3: 1, 0.65: (1 + 4e-6) / 2, 1: 4e-6}),
        ("onecycle(2, pct_start=0)", {0: 2, 0.5: 1 + 4e-6, 1: 8e-6}),
        ("onecycle(2, pct_start=1)", {0: 0.08, 1: 2}),
        ("8/255", {0: 8 / 255, 1: 8 / 255}),
        (0.25, {0.5: 0.25}),
    ],
)
def test_values(text, values: dict[float, float]) -> None:
    schedule = parse_schedule(text)
    for progress, value in values.items():
        assert at(schedule, progress) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"pct_start": 0.25}, {"div_factor": 10.0, "final_div_factor": 100.0}])
@pytest.mark.parametrize("steps", [100, 391, 7])
def test_onecycle_is_torchs(options: dict[str, float], steps: int) -> None:
    """At each of its steps, and with the rate set once an epoch of several batches."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps, cycle_momentum=False, **options)
    options_text = "".join(f", {name}={value}" for name, value in options.items())
    ours = parse_schedule(f"onecycle(0.2, steps={steps}{options_text})")
    endless = parse_schedule(f"onecycle(0.2{options_text})")
    for step in range(steps):
        (rate,) = torchs.get_last_lr()
        for part in (0, 1 / 3, 0.99):
            assert at(ours, (step + part) / steps) == pytest.approx(rate, rel=1e-9)
        neighbours = at(endless, step / steps), at(endless, (step + 1) / steps), 0.2
        assert min(neighbours) * (1 - 1e-9) <= rate <= max(neighbours) * (1 + 1e-9)
        optimizer.step()
        torchs.step()


def test_drops_fall_on_the_epoch() -> None:
    """Epoch 215 of 300 in batches of 391: not one step late."""
    drops = parse_schedule("drops(1, 215/300)")
    assert at(drops, (215 + 0 / 391) / 300) == pytest.approx(0.1)
    assert at(drops, (214 + 390 / 391) / 300) == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ramp(0)", "two values"),
        ("ramp(0, 1, 2)", "two values"),
        ("ramp(0, 1, till=0.4)", "till"),
        ("ramp(0, 1, since=0.5, until=0.5)", "since < until"),
        ("ramp(0, 1, until=2)", "until <= 1"),
        ("ramp(a, 1)", "'a'"),
        ("cosin(1, 0)", "cosine"),
        ("drops()", "expected a number"),
        ("drops(1, 215, 260)", "0 to 1"),
        ("drops(1, 0.7, 0.5)", "grow"),
        ("points()", "progress:value"),
        ("points(0, 1)", "progress:value"),
        ("points(0:1, 0:2)", "grow"),
        ("points(0:0, 30:1)", "0 to 1"),
        ("points(0:1, a=2)", "progress:value"),
        ("onecycle()", "expected a number"),
        ("onecycle(0, 1)", "one value"),
        ("onecycle(1, pct_start=1.5)", "pct_start is a share"),
        ("onecycle(1, div_factor=0)", "above 0"),
        ("onecycle(1, steps=1)", "whole number from 2"),
        ("onecycle(1, steps=2.5)", "whole number from 2"),
        ("onecycle(1, anneal=linear)", "expected a number"),
        ("ramp(0, 1", "expected a number"),
        ("", "expected a number"),
        ("ten", "expected a number"),
        ("1/0", "expected a number"),
        ("1/2/3", "expected a number"),
        ("nan", "finite"),
        ("inf", "finite"),
        ("ramp(0, inf)", "finite"),
        (True, "expected a number"),
        (None, "expected a number"),
        ([1], "expected a number"),
    ],
)
def test_what_cannot_be_read_is_said(text, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)):
        parse_schedule(text)


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("8/255", 8 / 255), (3, 3.0), ("1e-3", 1e-3), ("-2", -2)])
def test_numbers(text, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (38 / 255, "38/255"), (0.031, "0.031"), (0, "0"), (1e-9, "1e-09"), (9.5 / 255, "0.0372549")],
)
def test_fractions(value: float, text: str) -> None:
    assert fraction(value) == text


def test_a_threat_keeps_its_share() -> None:
    threat = ThreatModel("Linf", 8 / 255, 2 / 255).with_eps(4 / 255)
    assert threat.step_size == pytest.approx(1 / 255)
    assert ThreatModel("Linf", 0.0, 0.0).with_eps(0.1).eps == 0.1


def test_ranges_of_numbers_and_schedules() -> None:
    check_range("eps", 0.5, 0, 1)
    check_range("eps", lambda progress: progress, 0, 1)
    with pytest.raises(ValueError, match="eps must be between 0 and 1, got 2"):
        check_range("eps", 2, 0, 1)
    with pytest.raises(ValueError, match=r"rate must be at least 0, got -0.5 at progress 0.5"):
        check_range("rate", lambda progress: -0.5 if progress == 0.5 else 0.0, 0)
