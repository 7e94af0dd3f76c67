"""Loading plugins one by one: a broken one is reported and stops nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rkd.core.errors import RkdError, UnknownName
from rkd.core.hooks import hookimpl
from rkd.registry import plugins as manager
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.plugins import Plugin, load_plugins, raised_at


class Fine:
    """A component that does nothing."""


def module(name: str = "fine", **hooks: Callable[..., Any]) -> ModuleType:
    made = ModuleType(name)
    for hook, function in hooks.items():
        function.__name__ = hook
        setattr(made, hook, hookimpl(function))
    return made


def entry(name: str, load: Callable[[], Any], distribution: str = "stranger", version: str = "1.2") -> SimpleNamespace:
    return SimpleNamespace(
        name=name, value=f"{distribution}.{name}", load=load, dist=SimpleNamespace(name=distribution, version=version)
    )


def good(name: str = "fine", **components: Any) -> SimpleNamespace:
    return entry(name, lambda: module(name, rkd_losses=lambda: components or {"fine": Fine}))


def distributions_of(entries: tuple[SimpleNamespace, ...]) -> list[SimpleNamespace]:
    found = []
    for name in dict.fromkeys(one.dist.name for one in entries):
        mine = [one for one in entries if one.dist.name == name]
        points = SimpleNamespace(select=lambda group, mine=mine: mine if group == "rkd" else [])
        found.append(SimpleNamespace(**vars(mine[0].dist), entry_points=points))
    return found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    def install(*entries: SimpleNamespace) -> None:
        monkeypatch.setattr(manager, "distributions", lambda: distributions_of(entries))

    return install


def fails(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


BROKEN = {
    "import": (fails(ImportError("No module named 'missing'")), "ImportError: No module named 'missing'"),
    "syntax": (fails(SyntaxError("invalid syntax")), "SyntaxError"),
    "attribute": (fails(AttributeError("module has no attribute 'x'")), "AttributeError"),
    "exit": (fails(SystemExit(3)), "SystemExit: 3"),
    "generator": (fails(GeneratorExit()), "GeneratorExit"),
    "base": (fails(BaseException("no reason")), "BaseException: no reason"),
    "key": (fails(KeyError("x")), "KeyError"),
    "misspelt": (lambda: module(rkd_lossess=lambda: {}), "rkd_lossess"),
    "argument": (lambda: module(rkd_losses=lambda catalog: {}), "catalog"),
    "list": (lambda: module(rkd_losses=lambda: ["fine"]), "must return {name: component}, got list"),
    "nothing": (lambda: module(rkd_losses=lambda: None), "must return {name: component}, got NoneType"),
    "number": (lambda: module(rkd_losses=lambda: {"fine": 3}), "must name a class, a function or a Family"),
    "unnamed": (lambda: module(rkd_losses=lambda: {3: Fine}), "must name a class"),
    "hook": (lambda: module(rkd_losses=fails(ZeroDivisionError("division by zero"))), "division by zero"),
    "hook name": (lambda: module(rkd_attack=lambda: {}), "there is no hook 'rkd_attack'. Did you mean rkd_attacks"),
    "hook base": (lambda: module(rkd_losses=fails(GeneratorExit())), "GeneratorExit"),
    "hook exit": (lambda: module(rkd_losses=fails(SystemExit(2))), "SystemExit"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_reported_and_stops_nothing(what: str, installed) -> None:
    load, word = BROKEN[what]
    installed(good("before"), entry("bad", load), good("later", other=Fine))
    catalog = Catalog(load_plugins())
    assert catalog.names("loss") == ["fine", "other"]
    (broken,) = catalog.plugins.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", "stranger", "1.2")
    assert word in broken.error
    assert "\n" not in broken.error
    assert any(word in broken.details for word in ("Traceback", "Error", "Exit", "BaseException"))


def test_half_a_plugin_is_none(installed) -> None:
    """What a plugin provided before one of its hooks broke is taken out again."""
    both = module(rkd_attacks=lambda: {"half": Fine}, rkd_losses=lambda: 3)
    installed(entry("bad", lambda: both), good())
    catalog = Catalog(load_plugins())
    assert catalog.names("attack") == []
    assert catalog.names("loss") == ["fine"]
    assert [plugin.name for plugin in catalog.plugins.broken] == ["bad"]


def test_a_broken_plugin_is_named_where_something_is_missing(installed) -> None:
    installed(entry("bad", fails(ImportError("no"))), good())
    with pytest.raises(UnknownName, match=r"could not be loaded: bad of stranger 1\.2"):
        Catalog(load_plugins()).find("loss", "from-bad")


def test_a_keyboard_interrupt_is_no_broken_plugin(installed) -> None:
    installed(entry("slow", fails(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_what_a_plugin_prints_goes_to_stderr(installed, capsys: pytest.CaptureFixture) -> None:
    """stdout belongs to the one JSON object of --json."""

    def load() -> ModuleType:
        print("loading!")
        return module(rkd_losses=lambda: print("asked!") or {"fine": Fine})

    installed(entry("loud", load))
    assert Catalog(load_plugins()).names("loss") == ["fine"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "loading!" in err
    assert "asked!" in err


@pytest.mark.parametrize("pattern", ["noisy", "noi*", "stranger", "*", " other , noisy"])
def test_plugins_are_left_out_on_request(pattern: str, installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(entry("noisy", fails(AssertionError("it was loaded all the same"))))
    monkeypatch.setenv("RKD_DISABLE_PLUGINS", pattern)
    plugins = load_plugins()
    assert plugins.broken == []
    assert [plugin.disabled for plugin in plugins.plugins.values()] == [True]


def test_built_in_plugins_come_by_the_same_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RKD_DISABLE_PLUGINS", "methods.rslad,attacks.*")
    catalog = load_catalog()
    assert "rslad" not in catalog.names("loss")
    assert catalog.names("attack") == []
    assert "ard" in catalog.names("loss")


def test_without_any_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RKD_DISABLE_PLUGINS", "*")
    catalog = load_catalog()
    assert list(catalog.all()) == []
    with pytest.raises(UnknownName, match="no loss 'rslad'"):
        catalog.find("loss", "rslad")


def test_entry_points_of_a_distribution_without_metadata(installed) -> None:
    point = good()
    point.dist.name = point.dist.version = None
    installed(point)
    assert Catalog(load_plugins()).find("loss", "unknown/fine").plugin.version == "?"


def test_distributions_that_cannot_be_read_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry_points.txt in Latin-1 stopped every command, and so did missing metadata."""
    for name, entry_points, metadata in (
        (
            "latin",
            "[rkd]\nm\xe9thode = nowhere\n".encode("latin-1"),
            b"Metadata-Version: 2.1\nName: latin\nVersion: 1\n",
        ),
        ("bare", b"[rkd]\nbare = nowhere_at_all\n", None),
        ("odd", b"[rkd\n= =\n", b"\xff\xfe"),
    ):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_bytes(entry_points)
        if metadata is not None:
            (folder / "METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    plugins = load_plugins()
    assert "ard" in Catalog(plugins).names("loss")
    (latin,) = (plugin for plugin in plugins.broken if plugin.distribution == "latin")
    assert latin.name == "entry_points.txt" and "UnicodeDecodeError" in latin.error
    assert any("nowhere_at_all" in plugin.error for plugin in plugins.broken)


def test_a_plugin_that_never_ends_is_named(installed, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    told = threading.Event()

    def tell(plugin: Plugin) -> None:
        say(plugin)
        told.set()

    say = manager._tell_of
    monkeypatch.setattr(manager, "_tell_of", tell)
    monkeypatch.setattr(manager, "PATIENCE", 0.0)
    installed(entry("slow", lambda: told.wait(60) and module(rkd_losses=lambda: {"fine": Fine})))
    assert Catalog(load_plugins()).names("loss") == ["fine"]
    said = capsys.readouterr().err
    assert "still waiting for the plugin stranger/slow" in said and "RKD_DISABLE_PLUGINS=slow" in said


# Local files

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from rkd import hookimpl

@dataclass
class Mine:
    \"\"\"Mine alone.\"\"\"
    T: float = 2.0

@hookimpl
def rkd_losses():
    return {"mine": Mine}
"""


def test_a_local_file(tmp_path: Path, installed) -> None:
    installed()
    path = tmp_path / "my_plugin.py"
    path.write_text(FILE)
    catalog = load_catalog([path])
    entry = catalog.find("loss", "mine")
    assert catalog.find("loss", "file/mine") == entry
    assert (entry.plugin.name, entry.plugin.distribution, entry.plugin.version) == ("my_plugin", "file", str(path))
    assert catalog.create("loss", "mine", {"T": "1/2"}).T == 0.5
    assert entry.summary == "Mine alone."


@pytest.mark.parametrize(
    ("text", "word"),
    [("import missing_xyz", "missing_xyz"), ("def broken(:", "SyntaxError"), ("1/0", "ZeroDivisionError")],
)
def test_a_local_file_that_is_broken(text: str, word: str, tmp_path: Path, installed) -> None:
    installed(good())
    path = tmp_path / "bad.py"
    path.write_text(text)
    catalog = load_catalog([path])
    assert word in catalog.plugins.broken[0].error
    assert catalog.plugins.broken[0].error.endswith(f"({path}, line 1)")
    assert catalog.names("loss") == ["fine"]


def test_a_local_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RkdError, match="there is no plugin file"):
        load_plugins([tmp_path / "nowhere.py"])
    with pytest.raises(RkdError, match="there is no plugin file"):
        load_plugins([tmp_path])


def test_two_local_files_of_one_name(tmp_path: Path, installed) -> None:
    """Both are there: each has a place of its own."""
    installed()
    for folder, name in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plugin.py").write_text(FILE.replace("mine", name))
    catalog = load_catalog([tmp_path / "a" / "plugin.py", tmp_path / "b" / "plugin.py"])
    assert catalog.plugins.broken == []
    assert catalog.names("loss") == ["one", "two"]
    again = load_catalog([tmp_path / "a" / "plugin.py", tmp_path / "a" / "plugin.py"])
    assert again.names("loss") == ["one"]
    assert again.plugins.broken == []


def test_where_a_plugin_failed(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("import json\n\ndef read(text):\n    return json.loads(text)\n")
    code: dict = {}
    exec(compile(plugin.read_text(), str(plugin), "exec"), code)
    with pytest.raises(ValueError) as error:
        code["read"]("{")
    assert raised_at(error.value) == f"{plugin}, line 4", "not where the library raised it"
    assert raised_at(ValueError()) == ""
