"""Weights from other people's files: data, never code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rkd.core.errors import WeightsError
from rkd.nets.fitting import load_into
from rkd.nets.weights import read_weights, strip_prefixes
from rkd.storage.serialize import save_weights
from rkd.testing import TinyNet

SUFFIXES = ["pt", "pth", "th", "t7", "tar", "ckpt", "bin"]


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return TinyNet().state_dict()


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_suffix(suffix: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / f"w.{suffix}")
    assert same(read_weights(tmp_path / f"w.{suffix}"), state())


def test_safetensors(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {f"module.{k}": v for k, v in state().items()})
    assert same(read_weights(tmp_path / "w.safetensors"), state())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s},
        lambda s: {"net": s, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s, "acc": 0.5},
        lambda s: {"model_state_dict": s},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {f"module.model.{k}": v for k, v in s.items()},
    ],
)
def test_wrappers_and_prefixes(wrap, tmp_path: Path) -> None:
    torch.save(wrap(state()), tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), state())


def test_prefixes_go_only_if_every_key_has_them() -> None:
    """Not by substring, as RobustBench does, and not from some."""
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert strip_prefixes(mixed) == mixed
    assert list(strip_prefixes({"module.a.module.b": torch.ones(1)})) == ["a.module.b"]
    assert list(strip_prefixes({"modules.a": torch.ones(1)})) == ["modules.a"]
    assert strip_prefixes({}) == {}


class Wrapped(nn.Module):
    """An architecture whose own names begin with what others put before them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()


@pytest.mark.parametrize("before", ["", "module.", "net.", "module.net.", "model.net.", "_orig_mod."])
def test_nets_whose_own_names_look_like_prefixes(before: str, tmp_path: Path) -> None:
    torch.save({before + name: value for name, value in state(1).items()}, tmp_path / "w.pt")
    net = Wrapped()
    load_into(net, read_weights(tmp_path / "w.pt"), "w.pt")
    assert same(net.net.state_dict(), state(1))


def test_own_names_as_they_are(tmp_path: Path) -> None:
    other = Wrapped()
    save_weights(tmp_path / "w.safetensors", other.state_dict())
    for stated in (other.state_dict(), read_weights(tmp_path / "w.safetensors")):
        net = Wrapped()
        load_into(net, stated, "w")
        assert same(net.state_dict(), other.state_dict())


def message(change, net: nn.Module | None = None) -> str:
    found = dict(state())
    change(found)
    with pytest.raises(WeightsError) as error:
        load_into(net or TinyNet(), found, "file.pt")
    return str(error.value)


def test_keys_that_do_not_fit() -> None:
    said = message(lambda s: (s.pop("head.weight"), s.update({"fc.weight": torch.ones(2)})))
    assert "file.pt does not fit" in said
    assert "1 that the net needs are missing: head.weight" in said
    assert "1 that the net does not have: fc.weight" in said
    said = message(lambda s: s.update({"head.weight": torch.ones(7, 24), "head.bias": torch.ones(7)}))
    assert "head.weight is (7, 24) in the file and (4, 24) in the net" in said
    assert "number of classes" in said
    said = message(lambda s: s.clear() or s.update({f"x{n}": torch.ones(1) for n in range(9)}))
    assert "(9 in all)" in said


def test_nothing_is_loaded_from_what_does_not_fit() -> None:
    net = TinyNet()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = state(3)
    del found["head.bias"]
    with pytest.raises(WeightsError):
        load_into(net, found, "file.pt")
    assert same(net.state_dict(), before)


def test_counters_of_old_checkpoints_may_be_missing() -> None:
    found = state(3)
    del found["norm.num_batches_tracked"]
    net = TinyNet()
    load_into(net, found, "file.pt")
    assert torch.equal(net.norm.weight, found["norm.weight"])


def test_keys_that_a_net_ignores() -> None:
    """The official TRADES checkpoints hold a block that is never used."""
    net = TinyNet()
    found = {**state(1), "sub_block1.conv.weight": torch.ones(3)}
    with pytest.raises(WeightsError, match="sub_block1"):
        load_into(net, found, "file.pt")
    net.ignored_keys = ("sub_block1.",)
    load_into(net, found, "file.pt")
    assert same(net.state_dict(), state(1))


def test_wide_resnets_ignore_it(catalog) -> None:
    net = catalog.create("model", "wrn10-1")((3, 8, 8), 4)
    found = {**net.state_dict(), "sub_block1.layer.0.conv1.weight": torch.ones(3)}
    load_into(net, found, "file.pt")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"epoch": 3}, "holds no state_dict but a dict with the keys epoch"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        ({}, "holds no state_dict"),
        ({"state_dict": {"a": 1}}, "the keys a"),
        ({0: torch.ones(2)}, "the keys 0"),
        ({"state_dict": {"state_dict": {"state_dict": {"state_dict": {}}}}}, "holds no state_dict"),
    ],
)
def test_files_that_hold_something_else(content, word: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as error:
        read_weights(tmp_path / "w.pt")
    assert word in str(error.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(how: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / "w.pth"
    content = {"state_dict": state(), "extra": Malicious(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(WeightsError, match=r"w\.pth"):
        read_weights(path)
    assert not trap.exists()


def test_a_whole_pickled_net_says_what_to_do(tmp_path: Path) -> None:
    torch.save(TinyNet(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"state_dict\(\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Not found", b"PK\x03\x04rubbish", b"\x80\x02}"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_that_are_broken(content: bytes, suffix: str, tmp_path: Path) -> None:
    """A download that became a page of HTML is the commonest of all."""
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\."):
        read_weights(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_weights(tmp_path)
    (tmp_path / "w.h5").touch()
    with pytest.raises(WeightsError, match=r"read from .*\.safetensors"):
        read_weights(tmp_path / "w.h5")


def test_a_whole_net_says_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*only if you trust it .*state_dict"):
        read_weights(tmp_path / "whole.pt")


def test_arrays_of_numpy_are_named(tmp_path: Path) -> None:
    torch.save({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "arrays.pt")
    with pytest.raises(WeightsError, match=r"objects of NumPy \(torch\.from_numpy"):
        read_weights(tmp_path / "arrays.pt")
