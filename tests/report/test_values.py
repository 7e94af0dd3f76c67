"""What a stranger's values become before they are shown."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkd.report import values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_nothing_is_too_strange(value: Any) -> None:
    line = values.text(value)
    assert len(line) <= values.LINE and line.isprintable()
    assert isinstance(values.setting("eps", value), str)
    for found in (values.number(value), values.share(value), values.whole(value)):
        assert found is None or (math.isfinite(found) and abs(found) <= values.LARGEST)
    ends = values.interval(value)
    assert ends is None or 0 <= ends[0] <= ends[1] <= 1


def test_text_has_no_control_characters() -> None:
    assert values.text("a\x1b[31mred\x00\u202eb") == "a[31mredb"
    assert values.text("two\nlines\u2028and\ttabs") == "two lines and tabs"
    assert values.text("\ud800lone") == "lone"
    assert values.text("héllo 数字 ε") == "héllo 数字 ε"
    assert values.block("a\r\nb\x07") == "a\nb"


def test_text_is_cut() -> None:
    assert values.text("x" * 1000, 10) == "x" * 9 + "…"
    assert values.block("x" * 30, 10).startswith("x" * 10 + "\n... 20 more")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, None), ("1", None), (math.nan, None), (math.inf, None), (10**400, None), (1e16, None), (3, 3.0)],
)
def test_number(value: Any, expected: float | None) -> None:
    assert values.number(value) == expected


def test_shares_and_intervals() -> None:
    assert values.share(1.0000001) == 1.0  # a float32 softmax
    assert values.share(1.01) is None and values.share(-0.1) is None
    assert values.interval([0.25, 0.5]) == (0.25, 0.5)
    assert values.interval([0.5, 0.25]) is None and values.interval([0.5]) is None and values.interval("ab") is None


def test_how_numbers_are_written() -> None:
    assert values.percent(0.9324) == "93.2" and values.percent(None) == "–"
    assert values.between((0.91, 0.951)) == "[91.0–95.1]"
    assert [values.duration(s) for s in (0.44, 45, 200, 1200, 7500)] == ["0.4 s", "45 s", "3 min 20 s", "20 min",
                                                                         "2 h 5 min"]  # fmt: skip
    assert [values.plain(x) for x in (0.1, 1234.0, 1.25e-5, None)] == ["0.1", "1234", "1.25e-05", "–"]
    assert values.setting("eps", 8 / 255) == "8/255" and values.setting("steps", 8) == "8"
    assert values.setting("betas", [0.9, 0.99]) == "[0.9, 0.99]"
    assert values.radius("Linf", 8 / 255) == "Linf eps 8/255" and values.radius("L2", None) == ""


def test_magnitudes_and_times() -> None:
    written = [values.magnitude(value) for value in (None, 0, 999, 1000, 25_978, 999_600, 1.04e9, 3e13)]
    assert written == ["–", "0", "999", "1 k", "26 k", "1 M", "1.04 G", "30 T"]
    assert values.magnitude(104_832, "B") == "105 kB" and values.magnitude(12, "B") == "12 B"
    assert values.milliseconds(None, None) == "–" and values.milliseconds(0.28, None) == "0.28"
    assert values.milliseconds(0.28, (0.27, 0.39)) == "0.28 [0.27–0.39]"


def test_deep_nesting_ends() -> None:
    deep: Any = "bottom"
    for _ in range(5000):
        deep = {"a": deep}
    flat = values.shallow(deep)
    levels = 0
    while isinstance(flat, dict) and flat:
        flat, levels = flat["a"], levels + 1
    assert levels <= 12
