"""What a stranger's file may not do. One test for each hole that was found, besides the fuzzing in test_fuzz.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rkd.cli import cli
from rkd.cli.terminal import Terminal
from rkd.core.errors import ConfigError, DataError, RkdError, WeightsError
from rkd.evaluation.corruptions import open_corrupted
from rkd.nets.fitting import built_for, load_into
from rkd.nets.weights import read_weights
from rkd.plugins.datasets import imagefolder, npz
from rkd.plugins.datasets._cifar import ArrayUnpickler
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.recipes import assignments
from rkd.testing import TinyNet
from rkd.workflow.nets import load_run
from rkd.workflow.resolve import resolve

from .storage.test_card import card, run_of

# Recipes and settings


def test_a_value_smuggles_nothing_in() -> None:
    assert assignments(["loss.T=1\nname = 2"]) == {"loss": {"T": "1\nname = 2"}}
    assert assignments([f"a={'[' * 5000}"])["a"].startswith("[[[")
    with pytest.raises(ConfigError, match="tables deep"):
        assignments(["a" + ".a" * 5000 + "=1"])


@pytest.mark.parametrize(
    "table",
    [
        {"loss": {"name": 3}},
        {"loss": 3, "attack": "pgd"},
        {"schedulers": [{"a": 1}]},
        {"student": {"conversions": "aux-bn"}},
        {"teachers": [1]},
        {"attack": {"name": ["pgd"]}},
        {"evaluate": {"attacks": ["fgsm"], "options": {"fgsm": {"objective": 3}}}},
        {"data": {"name": "npz:~nobody-of-that-name/x.npz"}},
        {"data": {"name": "mnist", "dir": "~nobody-of-that-name"}},
        {"student": {"model": "x" * 100_000}},
        {"plugin": ["evil.py"]},
        {"plugins": ["evil.py"]},
    ],
)
def test_a_recipe_of_another_form_is_one_error(table: dict[str, Any], catalog: Catalog) -> None:
    with pytest.raises(RkdError) as caught:
        resolve(table, catalog)
    assert 0 < len(str(caught.value)) < 10_000


def test_a_recipe_loads_no_plugin_file(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    for key in ("plugin", "plugins"):
        (tmp_path / "mine.toml").write_text(f"{key} = [{json.dumps(str(evil))}]\n")
        said = CliRunner().invoke(cli, ["run", str(tmp_path / "mine.toml"), "--dry-run"])
        assert said.exit_code == 2 and "there is no such setting" in said.output
    assert not (tmp_path / "pwned").exists()


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    state = TinyNet().state_dict()
    state["head.bias"] = torch.full_like(state["head.bias"], value)
    with pytest.raises(WeightsError, match=r"not numbers.*head\.bias"):
        load_into(TinyNet(), state, "w.pt")


def test_code_in_weights_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    for name, legacy in (("new.pt", False), ("old.pt", True)):
        torch.save({"w": Evil()}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"w": Evil()}))
    for name in ("new.pt", "old.pt", "bare.pth"):
        with pytest.raises(WeightsError):
            read_weights(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_no_net_is_built_that_its_weights_cannot_be_for(catalog: Catalog) -> None:
    state = {"w": torch.ones(100)}
    for name, options in (("wrn1996-1", {}), ("small-cnn", {"width": 20_000})):
        with pytest.raises(WeightsError, match=r"far more|into memory"), built_for(state, "w.safetensors"):
            catalog.create("model", name, options)((1, 8, 8), 10)
    catalog.create("model", "small-cnn", {"width": 8})((1, 8, 8), 10)  # outside nothing is counted any more


# Run folders


# Data


def test_a_pickle_is_arrays_alone() -> None:
    entry = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "names": [b"a"]}
    for protocol in range(5):
        found = ArrayUnpickler(io.BytesIO(pickle.dumps(entry, protocol=protocol)), encoding="latin1").load()
        assert np.array_equal(found["data"], entry["data"]) and found["labels"] == [1, 2]
    for evil in (os.system, eval, print, subprocess.run, pickle.loads, np.load, np.lib.format.open_memmap):
        with pytest.raises(pickle.UnpicklingError, match="code and no data"):
            ArrayUnpickler(io.BytesIO(pickle.dumps({"data": evil}))).load()


def images(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


def encoded(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("L", size, 7).save(out, kind)
    return out.getvalue()


def test_no_ghostscript_behind_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    good = {f"{name}/{number}.png": encoded("PNG") for name in "ab" for number in range(3)}
    imagefolder.ImageFolder(path=str(images(tmp_path / "good", good)))()
    bad = good | {"a/0.png": encoded("EPS")}
    with pytest.raises(DataError, match="cannot be read"):
        imagefolder.ImageFolder(path=str(images(tmp_path / "bad", bad)))()


@pytest.mark.parametrize("size", [(60_000, 60_000), (9_000, 9_000)])
def test_an_image_that_says_it_is_huge(size: tuple[int, int], tmp_path: Path) -> None:
    content = encoded("PNG")
    bomb = content[:16] + struct.pack(">II", *size) + content[24:]
    root = images(tmp_path / "i", {"a/0.png": bomb, "a/1.png": bomb, "b/0.png": bomb, "b/1.png": bomb})
    with warnings.catch_warnings(), pytest.raises(DataError):
        warnings.simplefilter("ignore")  # PIL's own, below its limit
        imagefolder.ImageFolder(path=str(root), size=8)()


def test_an_image_that_grows_when_it_is_resized(tmp_path: Path) -> None:
    thin = {f"{name}/{number}.png": encoded("PNG", (1, 60_000)) for name in "ab" for number in range(2)}
    with pytest.raises(DataError, match="too narrow"):
        imagefolder.ImageFolder(path=str(images(tmp_path / "i", thin)), size=224)()


def test_an_archive_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "ANY_SIZE", 1 << 16)
    y = np.arange(200) % 2
    zeros = np.zeros((200, 32, 32), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", x_train=zeros, y_train=y, x_test=zeros, y_test=y)
    with pytest.raises(DataError, match="unpack"):
        npz.Npz(path=str(tmp_path / "bomb.npz"))()
    noise = np.random.default_rng(0).integers(0, 255, zeros.shape).astype(np.uint8)
    np.savez_compressed(tmp_path / "fine.npz", x_train=noise, y_train=y, x_test=noise, y_test=y)
    npz.Npz(path=str(tmp_path / "fine.npz"))()


# Names, plugins and the terminal


def test_no_control_characters_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp.exe[bold]"
    terminal = Terminal(verbosity=1)
    for say in (terminal.result, terminal.message, terminal.detail, terminal.warning, terminal.error):
        say(name)
    terminal.error("x", problems=[name], notes=[name])
    terminal.table([name], [[name]], title=name)
    terminal.json({name: name})
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not [c for c in text if not c.isprintable() and c != "\n"]
        assert "[bold]" in text
    terminal.json({name: [name]})
    assert json.loads(capsys.readouterr().out) == {name: [name]}, "escaped, and still the same"


@pytest.mark.parametrize("name", ["", " a", "a\x1b[31m", "a\nb", "a\0b", "\u202ea", "x" * 81])
def test_names_that_no_plugin_may_give(name: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "from rkd.core.hooks import hookimpl\n@hookimpl\ndef rkd_losses():\n    return {" + repr(name) + ": object}\n"
    )
    found = load_catalog([file])
    assert [plugin.name for plugin in found.plugins.broken] == ["odd"] and name not in found.entries["loss"]


def test_a_family_without_a_pattern_takes_nothing_away(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "from rkd.core.hooks import hookimpl\nfrom rkd.plugin import Family\n"
        "@hookimpl\ndef rkd_models():\n    return {'odd:NAME': Family('(', object, ())}\n"
    )
    found = load_catalog([file])
    assert [plugin.name for plugin in found.plugins.broken] == ["odd"]
    assert found.find("model", "wrn10-2")


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "raise KeyError('x')", "print('spam')", "return 3", "1 / 0"])
def test_a_plugin_that_fails_where_it_adds_commands(body: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(f"from rkd.core.hooks import hookimpl\n@hookimpl\ndef rkd_commands(cli):\n    {body}\n")
    said = CliRunner().invoke(cli, ["--plugin", str(file), "no-such-command"])
    assert said.exit_code == 2
    assert "there is no command 'no-such-command'" in said.output


def test_one_file_twice_and_two_owners_of_one_name(tmp_path: Path) -> None:
    text = (
        "from rkd.core.hooks import hookimpl\n"
        "@hookimpl\ndef rkd_losses():\n    return {'twice': lambda step: {}, 'rslad': lambda step: {}}\n"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(text)
    found = load_catalog([tmp_path / "one.py", tmp_path / "one.py", tmp_path / "two.py"])
    assert sorted(p.name for p in found.plugins.plugins.values() if p.distribution == "file") == ["one", "two"]
    with pytest.raises(RkdError, match=r"two plugins provide the loss 'twice'"):
        found.find("loss", "twice")
    assert found.find("loss", "rkd-toolkit/rslad") and found.find("loss", "trades")


@pytest.mark.parametrize("name", ["wrn" + "9" * 400 + "-1", "wrn600004-1", "resnet600002-A", "wrn10-" + "9" * 30])
def test_nets_without_end_are_refused_before_they_are_built(name: str, catalog: Catalog) -> None:
    with pytest.raises(RkdError) as caught:
        catalog.create("model", name)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("kind", "name", "options", "limit"),
    [
        ("attack", "pgd", {"steps": 1_000_000}, "steps must be from 1 to 10,000"),
        ("attack", "cw-l2", {"steps": 1_000_000}, "steps must be from 1 to 10,000"),
        ("attack", "square", {"queries": 10**9}, "queries must be from 1 to 100,000"),
        ("attack", "pgd", {"restarts": 10**9}, "restarts must be from 1 to 100,000"),
        ("dataset", "npz:d.npz", {"num_classes": 10**9}, "from 1 to 100,000"),
        ("dataset", "imagefolder:d", {"size": 10**6}, "from 1 to 4096"),
        ("model", "small-cnn", {"width": 10**6}, "1 to 65536"),
        ("model", "small-cnn", {"blocks": 10**7}, "1 to 1000"),
        ("model", "mlp", {"layers": 10**7, "hidden": 10**9}, "0 to 1000"),
        ("model", "resnet18", {"width": 10**6}, "1 to 4096"),
        ("model", "resnet20", {"width": 10**6}, "2 to 4096"),
        ("augment", "crop", {"padding": 10**9}, "from 0 to 1024"),
        ("augment", "mixup", {"classes": 10**9}, "from 1 to 100,000"),
        ("augment", "cropshift", {"high": 10**9}, "high <= 1024"),
    ],
)
def test_every_count_of_a_component_has_a_limit(
    kind: str, name: str, options: dict[str, Any], limit: str, catalog: Catalog
) -> None:
    with pytest.raises(RkdError, match=limit):
        catalog.create(kind, name, options)


def test_a_fifo_among_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match="FIFO"):
        imagefolder.ImageFolder(path=str(tmp_path))()


def test_a_fifo_in_the_place_of_weights_and_corruptions(tmp_path: Path, catalog: Catalog) -> None:
    folder = run_of(tmp_path / "run", card(), catalog)
    folder.weights.unlink()
    for name in (folder.weights, tmp_path / "fog.npy", tmp_path / "labels.npy"):
        os.mkfifo(name)
    with pytest.raises(WeightsError, match="a FIFO, no file"):
        load_run(folder.path, catalog)
    with pytest.raises(DataError, match=r"(fog|labels)\.npy"):
        open_corrupted(tmp_path, ["fog"])
