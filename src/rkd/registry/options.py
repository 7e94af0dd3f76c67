"""Options of components: the fields of their dataclasses, validated by pydantic.

Any float may be written `8/255`; a field annotated `Schedule` also takes `ramp(0, 0.3, until=0.4)` and its like.
A mapping option is merged into its default, so that `--set loss.weights.adv=0.9` leaves the other weights alone.
"""

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from rkd.core.errors import ConfigError, RkdError
from rkd.registry.schedules import parse_number, parse_schedule
from rkd.storage.text import did_you_mean, fraction, with_input


@dataclass(frozen=True, slots=True)
class Option:
    """One option as `rkd info` lists it."""

    name: str
    type: str
    default: Any
    required: bool


def describe(component: Any) -> list[Option]:
    """The options of a component: its dataclass fields that its constructor takes."""
    if not dataclasses.is_dataclass(component):
        return []
    hints = _hints(component)
    options = []
    for field in dataclasses.fields(component):
        if field.init:
            default = _default(field)
            required = default is MISSING
            options.append(Option(field.name, _show_type(hints[field.name]), None if required else default, required))
    return options


def validate(component: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All options of `component` with `given` ones checked and converted. Raises ConfigError with every problem."""
    fields = {f.name: f for f in dataclasses.fields(component) if f.init} if dataclasses.is_dataclass(component) else {}
    problems = [
        f"{where}.{name}: there is no such option.{did_you_mean(name, fields)} "
        + (f"Options: {', '.join(fields)}" if fields else "It has no options")
        for name in given
        if name not in fields
    ]
    given = {name: value for name, value in given.items() if name in fields}
    for name, value in given.items():
        if isinstance(value, Mapping) and isinstance(default := _default(fields[name]), Mapping):
            given[name] = {**default, **value}
    try:
        checked = _model(component)(**given) if fields else None
    except ValidationError as error:
        for item in error.errors():
            missing = item["type"] == "missing"
            said = "is required" if missing else with_input(item["msg"].removeprefix("Value error, "), item["input"])
            problems.append(f"{'.'.join([where, *_place(item['loc'])])}: {said}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return {name: getattr(checked, name) if name in given else _default(field) for name, field in fields.items()}


@cache  # making it takes longer than all else
def _model(component: Any) -> type[BaseModel]:
    """A model with the component's options, to check and convert those that are given."""
    hints = _hints(component)
    options: dict[str, Any] = {
        f.name: (_lenient(hints[f.name]), ... if _default(f) is MISSING else None)
        for f in dataclasses.fields(component)
        if f.init
    }
    return create_model(
        "Options", __config__=ConfigDict(arbitrary_types_allowed=True, protected_namespaces=()), **options
    )


def values_of(instance: Any, without: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """The options of an instance in the form that recipes write. `None` is left out, as TOML has none."""
    if not dataclasses.is_dataclass(instance) or isinstance(instance, type):
        return {}
    fixed = {name for name, _ in without}
    values = {f.name: plain(getattr(instance, f.name)) for f in dataclasses.fields(instance) if f.init}
    return {name: value for name, value in values.items() if value is not None and name not in fixed}


def plain(value: Any) -> Any:
    """`value` as TOML can hold it: schedules by their text, multiples of 1/255 as fractions."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        shown = fraction(value)
        return shown if "/" in shown and parse_number(shown) == value else value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value)


def _hints(component: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(component)
    except NameError as error:  # imported for the type checker alone
        raise RkdError(
            f"the options of {component.__module__}.{component.__qualname__} cannot be read: {error}; its module must "
            "import at run time what their annotations name"
        ) from None


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


_Number = Annotated[float, BeforeValidator(parse_number)]
_AnySchedule = Annotated[Any, BeforeValidator(lambda value: value if callable(value) else parse_schedule(value))]


def _lenient(hint: Any) -> Any:
    """The annotation with floats that read `8/255` and schedules that read their text forms."""
    if hint is float:
        return _Number
    arguments = get_args(hint)
    if not arguments or get_origin(hint) is typing.Literal:
        return hint
    if _is_schedule(arguments):
        rest = [a for a in arguments if a is not float and not _is_function(a)]
        return typing.Union[tuple([_lenient(a) for a in rest] + [_AnySchedule])]  # noqa: UP007 - built at run time
    inner = tuple(_lenient(argument) if argument is not Ellipsis else argument for argument in arguments)
    if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
        return typing.Union[inner]  # noqa: UP007 - built at run time
    return typing.cast(Any, get_origin(hint))[inner]


def _is_function(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable


def _is_schedule(arguments: tuple[Any, ...]) -> bool:
    return float in arguments and any(_is_function(a) for a in arguments)


def _place(location: tuple[int | str, ...]) -> list[str]:
    # pydantic adds the branch of a union ("function-before[...]", "int") to the place: users know no branches.
    names = [str(part) for part in location]
    return [name for name in names if not any(c in name for c in "[(") and name not in {"float", "int", "str", "none"}]


def _show_type(hint: Any) -> str:
    if _is_schedule(get_args(hint)):
        rest = [a for a in get_args(hint) if a is not float and not _is_function(a) and a is not type(None)]
        shown = " | ".join(["number or schedule", *(_show_type(a) for a in rest)])
        return shown + (" | none" if type(None) in get_args(hint) else "")
    if get_origin(hint) is typing.Literal:
        return " | ".join(str(value) for value in get_args(hint))
    if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
        return " | ".join(_show_type(a) for a in get_args(hint))
    if hint is type(None):
        return "none"
    if hint in (float, int, bool, str):
        return {float: "number", int: "integer", bool: "true or false", str: "text"}[hint]
    if _is_function(hint):
        return "schedule"
    if get_origin(hint) in (dict, collections.abc.Mapping):
        return f"table of {_show_type(get_args(hint)[1])}"
    if get_origin(hint) in (list, tuple, collections.abc.Sequence):
        return f"list of {_show_type(get_args(hint)[0])}"
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
