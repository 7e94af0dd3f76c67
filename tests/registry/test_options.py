"""Options of components: the fields of their dataclasses, as recipes and `--set` write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import pytest

from rkd.core.errors import ConfigError, RkdError
from rkd.core.types import Schedule, at
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.options import describe, plain, validate, values_of
from rkd.registry.schedules import Cosine, Ramp, parse_schedule

CATALOG = load_catalog()


@dataclass
class Everything:
    required: float
    eps: float | None = None
    alpha: Schedule = 1.0
    beta: Schedule | None = None
    steps: int = 10
    joint: bool = False
    name: str = "x"
    kind: Literal["a", "b"] = "a"
    views: tuple[str, ...] = ("adv",)
    sizes: list[int] = field(default_factory=lambda: [1])
    weights: dict[str, Schedule] = field(default_factory=lambda: {"adv": 0.5, "clean": 0.5})
    nested: dict[str, float] = field(default_factory=dict)

    fixed: ClassVar[float] = 3.0
    _private: Any = field(default=None, init=False)


def options(**given: Any) -> Everything:
    return Everything(**validate(Everything, {"required": 1, **given}, "it"))


def problems(**given: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate(Everything, {"required": 1, **given}, "it")
    return error.value.problems


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eps": "8/255"}, 8 / 255),
        ({"eps": 0.03}, 0.03),
        ({"eps": 1}, 1.0),
        ({"required": "1/2"}, 0.5),
        ({"alpha": "8/255"}, 8 / 255),
        ({"alpha": 2}, 2.0),
        ({"alpha": "ramp(0, 0.3, until=0.4)"}, Ramp(0, 0.3, 0, 0.4)),
        ({"beta": "cosine(1, 0)"}, Cosine(1, 0)),
        ({"beta": None}, None),
        ({"steps": 3}, 3),
        ({"joint": True}, True),
        ({"kind": "b"}, "b"),
        ({"views": ["adv", "weak"]}, ("adv", "weak")),
        ({"sizes": [1, 2]}, [1, 2]),
        ({"weights": {"adv": 0.9}}, {"adv": 0.9, "clean": 0.5}),
        ({"weights": {"clean": "ramp(0, 1)"}}, {"adv": 0.5, "clean": Ramp(0, 1)}),
        ({"nested": {"a": "1/4"}}, {"a": 0.25}),
    ],
)
def test_what_is_read(given: dict, expected: Any) -> None:
    (name,) = given
    value = getattr(options(**given), name)
    assert value == expected
    assert type(value) is type(expected)


def test_defaults_stay_as_they_are() -> None:
    made = options()
    assert made == Everything(required=1.0)
    made.weights["adv"] = 7.0
    made.sizes.append(5)
    assert options() == Everything(required=1.0), "no default is shared between instances"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"eps": "8/0"}, "it.eps: expected a number such as 0.3 or 8/255, got '8/0'"),
        ({"eps": "big"}, "it.eps"),
        ({"eps": True}, "it.eps"),
        ({"eps": math.nan}, "it.eps: expected a finite number"),
        ({"eps": math.inf}, "it.eps: expected a finite number"),
        ({"eps": "ramp(0, 1)"}, "it.eps"),
        ({"alpha": "ramp(0)"}, "it.alpha: cannot read the schedule"),
        ({"alpha": "slope(0, 1)"}, "it.alpha: unknown schedule 'slope'"),
        ({"steps": 2.5}, "it.steps"),
        ({"steps": "ten"}, "it.steps"),
        ({"joint": "perhaps"}, "it.joint"),
        ({"kind": "c"}, "it.kind"),
        ({"views": "adv"}, "it.views"),
        ({"views": [1]}, "it.views"),
        ({"weights": 3}, "it.weights"),
        ({"weights": {"adv": "much"}}, "it.weights.adv"),
        ({"name": 3}, "it.name"),
        ({"stepps": 3}, "it.stepps: there is no such option. Did you mean steps"),
        ({"fixed": 3}, "it.fixed: there is no such option"),
        ({"_private": 3}, "it._private: there is no such option"),
    ],
)
def test_what_is_refused(given: dict, word: str) -> None:
    (said,) = problems(**given)
    assert said.startswith(word.split(":")[0])
    assert word in said
    assert "function-before" not in said, "no words of pydantic's"


def test_what_was_given_is_said_once() -> None:
    assert problems(eps="8/0") == ["it.eps: expected a number such as 0.3 or 8/255, got '8/0'"]
    assert problems(steps=2.5)[0].endswith("(got 2.5)")


def test_all_problems_at_once() -> None:
    said = problems(steps="x", kind="c", other=1, eps="y")
    assert len(said) == 4
    with pytest.raises(ConfigError, match=r"it\.required: is required"):
        validate(Everything, {}, "it")


def test_a_component_without_options() -> None:
    class Plain:
        pass

    assert validate(Plain, {}, "it") == {}
    with pytest.raises(ConfigError, match="It has no options"):
        validate(Plain, {"a": 1}, "it")


@pytest.mark.parametrize("entry", list(CATALOG.all()), ids=lambda e: f"{e.kind}-{e.name}")
def test_every_component_lists_its_options(entry) -> None:
    for option in describe(entry.component):
        assert option.type
        assert "typing" not in option.type
        assert "ForwardRef" not in option.type


@pytest.mark.parametrize("kind", ["loss", "attack", "objective", "scheduler", "student", "augment", "extension"])
def test_every_option_survives_being_written(kind: str) -> None:
    """What `values_of` writes makes the same instance again."""
    for name in CATALOG.names(kind):
        made = CATALOG.create(kind, name)
        if isinstance(made, type) or not hasattr(made, "__dataclass_fields__"):
            continue
        again = CATALOG.create(kind, name, values_of(made))
        for f in fields(made):
            if f.init:
                assert getattr(again, f.name) == getattr(made, f.name), (name, f.name)


@pytest.mark.parametrize(
    "text", ["ramp(0, 0.3, until=0.4)", "drops(1, 0.5, 0.75, factor=0.5)", "points(0:0, 1:8/255)", "cosine(1, 0)"]
)
def test_schedules_survive_being_written(text: str, catalog: Catalog) -> None:
    loss = catalog.create("loss", "rslad", {"alpha": text})
    assert values_of(loss)["alpha"] == str(parse_schedule(text))
    again = catalog.create("loss", "rslad", values_of(loss))
    assert again == loss
    assert at(again.alpha, 0.3) == at(loss.alpha, 0.3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(8 / 255, "8/255"), (0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (5 / 6, 5 / 6), (True, True), (None, None), (3, 3)],
)
def test_plain_values(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)
    assert plain({"a": (value,)}) == ({"a": [expected]})


def test_annotations_that_are_not_there_at_run_time() -> None:
    @dataclass
    class Broken:
        x: "Missing" = None  # noqa: F821, UP037

    for read in (describe, lambda component: validate(component, {"x": 1}, "it")):
        with pytest.raises(RkdError, match=r"Broken cannot be read: name 'Missing' is not defined"):
            read(Broken)


def test_what_a_stranger_may_annotate() -> None:
    """Annotations that exist for the type checker alone, and callables, do not break anything."""

    @dataclass
    class Odd:
        f: Callable[[float], float] | float = 1.0
        anything: Any = None
        maybe: "int | None" = None  # noqa: UP037 - a stranger may quote

    made = Odd(**validate(Odd, {"f": "ramp(0, 1)", "anything": {"a": [1]}, "maybe": 3}, "it"))
    assert (made.f, made.anything, made.maybe) == (Ramp(0, 1), {"a": [1]}, 3)
