"""`rkd list-plugins`, with healthy, broken and disabled plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.registry.catalog import load_catalog


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with one healthy plugin and two broken ones, as pip would have installed it."""
    site = tmp_path / "site"
    info = site / "rkd_strange-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rkd-strange\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[rkd]\ngood = strange_good\nbad = strange_bad\nmisspelt = strange_misspelt\n"
    )
    (site / "strange_good.py").write_text(
        "from rkd import hookimpl, ops\n"
        "print('a plugin that talks')\n"
        "class Hello:\n    'Says hello.'\n    roles = ()\n    defaults = {}\n    weights = {}\n"
        "    def __call__(self, step):\n        return {'ce': ops.cross_entropy(step.student('clean'), step.y)}\n"
        "@hookimpl\ndef rkd_losses():\n    return {'hello': Hello}\n"
    )
    (site / "strange_bad.py").write_text("import does_not_exist\n")
    (site / "strange_misspelt.py").write_text(
        "from rkd import hookimpl\n@hookimpl\ndef rkd_lossses():\n    return {}\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.mark.slow
def test_one_line_a_component(rkd, monkeypatch: pytest.MonkeyPatch) -> None:
    said = rkd("list-plugins")
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    methods = lines[lines.index("loss") + 1 : lines.index("scheduler") - 1]
    assert any(line.split()[0] == "rslad" and "RSLAD (Zi et al., 2021)" in line for line in methods)
    assert any("wrnDEPTH-WIDTH " in line for line in lines)
    assert "\x1b" not in said.stdout
    assert all(line == line.rstrip() for line in lines)
    catalog = load_catalog()
    kinds = [kind for kind, names in catalog.entries.items() if names]
    assert len(lines) <= sum(map(len, catalog.entries.values())) + 3 * len(kinds), "one line each, and a heading"
    for width in (60, 80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = rkd("list-plugins").stdout.splitlines()
        assert len(narrow) == len(lines) and max(map(len, narrow)) <= width
        assert [line.split()[:1] for line in narrow] == [line.split()[:1] for line in lines]


def test_one_kind(rkd) -> None:
    kind, *lines = rkd("list-plugins", "--kind", "scheduler").stdout.splitlines()
    assert kind == "scheduler" and "anl" in [line.split()[0] for line in lines]
    assert all(line.startswith("  ") for line in lines)


@pytest.mark.slow
def test_strangers_come_first(rkd, strangers: Path) -> None:
    lines = rkd("list-plugins").stdout.splitlines()
    assert lines[:3] == ["loss from rkd-strange 1.2", "  hello  Says hello.", ""] and lines[3] == "model"
    said = rkd("list-plugins", "--from", "rkd-strange")
    assert said.stdout.splitlines()[:2] == lines[:2] and "rslad" not in said.stdout and "does_not_exist" in said.stdout
    assert [item["name"] for item in rkd("list-plugins", "--from", "rkd-strange", "--json").json["plugins"]] == [
        "hello"
    ]
    said = rkd("list-plugins", "--from", "rkd-strang")
    assert said.exit_code == 2 and "Did you mean rkd-strange?" in said.stderr


def test_json(rkd) -> None:
    said = rkd("list-plugins", "--json")
    found = said.json
    assert found["broken"] == []
    (one,) = [item for item in found["plugins"] if (item["kind"], item["name"]) == ("loss", "mtard-anl")]
    assert one == {
        "kind": "loss",
        "name": "mtard-anl",
        "summary": one["summary"],
        "distribution": "rkd-toolkit",
        "version": one["version"],
        "plugin": "methods.mtard",
    }
    assert one["summary"].startswith("MTARD")


def test_broken_plugins_are_shown_and_stop_nothing(rkd, strangers: Path) -> None:
    found = rkd("list-plugins", "--json").json
    assert "hello" in [item["name"] for item in found["plugins"]]
    assert "rslad" in [item["name"] for item in found["plugins"]]
    broken = {item["name"]: item for item in found["broken"]}
    assert set(broken) == {"bad", "misspelt"}
    assert broken["bad"]["distribution"] == "rkd-strange"
    assert broken["bad"]["version"] == "1.2"
    assert "does_not_exist" in broken["bad"]["error"]
    assert f"({strangers / 'strange_bad.py'}, line 1)" in broken["bad"]["error"]
    assert "rkd_lossses" in broken["misspelt"]["error"]
    said = rkd("list-plugins")
    assert said.exit_code == 0
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("bad ")]
    assert "rkd-strange 1.2" in line and "ModuleNotFoundError" in line


def test_a_broken_plugin_is_named_when_a_name_is_missing(rkd, strangers: Path) -> None:
    said = rkd("run", "--loss", "made-by-bad")
    assert said.exit_code == 2
    assert "bad of rkd-strange 1.2" in said.stderr


def test_disabled_plugins(rkd, strangers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RKD_DISABLE_PLUGINS", "rkd-strange,methods.mtard")
    found = rkd("list-plugins", "--json").json
    assert {item["name"] for item in found["disabled"]} == {"good", "bad", "misspelt", "methods.mtard"}
    assert found["broken"] == []
    assert "mtard" not in [item["name"] for item in found["plugins"]]
    assert "methods.mtard  rkd-toolkit" in rkd("list-plugins").stdout


def test_a_broken_local_file_is_shown(rkd, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("1 / 0\n")
    found = rkd("list-plugins", "--plugin", plugin, "--json").json
    assert [item["name"] for item in found["broken"]] == ["broken"]


def test_a_distribution_without_metadata(rkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "rkd_half-1.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[rkd]\ngone = rkd_half_is_gone\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (broken,) = rkd("list-plugins", "--json").json["broken"]
    assert (broken["name"], broken["distribution"], broken["version"]) == ("gone", "unknown", "?")
