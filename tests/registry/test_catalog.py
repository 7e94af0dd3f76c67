"""Names to components: clashes, families, and words for names that do not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from rkd.core.errors import ConfigError, RkdError, UnknownName
from rkd.core.hooks import hookimpl
from rkd.registry.catalog import Catalog
from rkd.registry.hooks import KINDS, Family
from rkd.registry.plugins import Plugin, Plugins


@dataclass
class Sized:
    """A net of some size."""

    depth: int = 10
    width: int = 1


def some(step, probe, x):
    """A function."""


def catalog(**plugins: Mapping[str, Mapping[str, Any]]) -> Catalog:
    """`{distribution: {kind: {name: component}}}`."""
    loaded = Plugins()
    for distribution, provided in plugins.items():
        module = ModuleType(distribution)
        for kind, components in provided.items():
            function = lambda components=components: components  # noqa: E731 - named below
            function.__name__ = KINDS[kind]
            setattr(module, KINDS[kind], hookimpl(function))
        loaded.add(Plugin("plugin", distribution, "1", "module"), lambda module=module: module)
    return Catalog(loaded)


def test_names_and_entries() -> None:
    c = catalog(a={"model": {"x": Sized}, "objective": {"ce": some}})
    assert c.names("model") == ["x"]
    assert [(e.kind, e.name) for e in c.all()] == [("model", "x"), ("objective", "ce")]
    assert c.find("model", "x").summary == "A net of some size."
    assert c.create("model", "x", {"depth": 3}) == Sized(3, 1)
    assert c.create("objective", "ce") is some


def test_a_function_has_no_options() -> None:
    with pytest.raises(ConfigError, match=r"objective\.T: ce has no options"):
        catalog(a={"objective": {"ce": some}}).create("objective", "ce", {"T": 3})


def test_one_name_of_two_plugins() -> None:
    other = type("Other", (), {})
    c = catalog(a={"model": {"x": Sized}}, b={"model": {"x": other}})
    with pytest.raises(RkdError, match="two plugins provide the model 'x'; type a/x or b/x"):
        c.find("model", "x")
    assert c.find("model", "a/x").component is Sized
    assert c.find("model", "b/x").component is other
    assert c.names("model") == ["x"]
    with pytest.raises(UnknownName, match="no model 'c/x'"):
        c.find("model", "c/x")


@pytest.mark.parametrize(
    ("name", "near"), [("rslda", "rslad"), ("mtard_anl", "mtard-anl"), ("pgdat", "pgd-at"), ("zzzz", None)]
)
def test_near_names(name: str, near: str | None, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UnknownName) as error:
        request.getfixturevalue("catalog").find("loss", name)
    assert f"there is no loss {name!r}" in str(error.value)
    assert "Known: " in str(error.value)
    if near:
        assert f"Did you mean {near}" in str(error.value)


def test_near_names_of_families(request: pytest.FixtureRequest) -> None:
    with pytest.raises(UnknownName, match=r"Did you mean .*wrn34"):
        request.getfixturevalue("catalog").find("model", "wrn-34")


FAMILY = Family(r"net(?P<depth>\d+)(?:-(?P<width>\d+))?", Sized, ("net20", "net20-4"))


def test_families() -> None:
    c = catalog(a={"model": {"netDEPTH-WIDTH": FAMILY}})
    assert c.create("model", "net20") == Sized(20, 1)
    assert c.create("model", "net20-4") == Sized(20, 4)
    assert c.create("model", "net20", {"width": 7}) == Sized(20, 7)
    assert c.find("model", "net20-4").fixed == (("depth", "20"), ("width", "4"))
    assert c.find("model", "a/net20").name == "net20"
    with pytest.raises(ConfigError, match=r"m\.depth: the name 'net20' fixes it already"):
        c.create("model", "net20", {"depth": 3}, "m")
    for name in ("net", "net20-", "xnet20", "net20\n", "netDEPTH"):
        with pytest.raises(UnknownName):
            c.find("model", name)


def test_a_name_goes_before_a_family() -> None:
    exact = type("Exact", (), {})
    c = catalog(a={"model": {"net20": exact, "netDEPTH-WIDTH": FAMILY}})
    assert c.find("model", "net20").component is exact
    assert c.find("model", "net21").component is Sized


def test_a_distribution_picks_its_own_family() -> None:
    """Also where another one provides the exact name."""
    exact = type("Exact", (), {})
    c = catalog(a={"model": {"net20": exact}}, b={"model": {"netDEPTH": FAMILY}})
    assert c.find("model", "net20").component is exact
    assert c.find("model", "b/net20").component is Sized


def test_two_families_that_fit() -> None:
    other = Family(r"net(?P<depth>\d+)", Sized, ("net8",))
    with pytest.raises(RkdError, match="type a/net20 or b/net20"):
        catalog(a={"model": {"netDEPTH": FAMILY}}, b={"model": {"netN": other}}).find("model", "net20")


def test_paths_are_no_distributions(request: pytest.FixtureRequest) -> None:
    c = request.getfixturevalue("catalog")
    assert c.find("dataset", "imagefolder:/some/path").fixed
    assert c.find("dataset", "imagefolder:some/path").fixed
    assert c.find("model", "timm:resnet18").fixed == (("name", "resnet18"),)


def test_a_summary_is_never_a_signature() -> None:
    @dataclass
    class Silent:
        T: float = 1.0

    assert catalog(a={"loss": {"x": Silent}}).find("loss", "x").summary == ""


@pytest.mark.parametrize("name", ["", "/", "a/", "/x", "..", "x y", "é" * 300])
def test_odd_names(name: str) -> None:
    with pytest.raises(RkdError):
        catalog(a={"model": {"x": Sized}}).find("model", name)
