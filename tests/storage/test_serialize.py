"""State in files: what comes back is what went in, or a clear word; and a run's folder."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from rkd.core.errors import WeightsError
from rkd.nets.weights import read_weights
from rkd.storage.serialize import finite, load_state, load_weights, peek, save_state, save_weights, to_cpu
from rkd.testing import tiny_batch, tiny_net

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text(max_size=8)
)
KEYS = st.one_of(st.text(max_size=6), st.integers(-5, 5))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=6), TREES, max_size=4))
def test_plain_values_come_back(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, state)
    assert load_state(path) == state


def test_tensors_come_back(tmp_path: Path) -> None:
    big = torch.arange(24.0).reshape(4, 6)
    state = {
        "kinds": [torch.tensor(v, dtype=d) for v, d in ((1.5, torch.float64), (3, torch.int64), (True, torch.bool))],
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "view": big.t()[1:3],
        "leaf": torch.ones(2, requires_grad=True),
        "shared": [big, big],
        "nested": {0: {"momentum_buffer": torch.randn(2)}, 1: None},
        "special": [math.inf, -math.inf],
    }
    path = tmp_path / "state.safetensors"
    save_state(path, state)
    loaded = load_state(path)
    assert str(loaded) == str({k: v.detach() if k == "leaf" else v for k, v in state.items()})
    assert list(loaded["nested"]) == [0, 1]
    assert not loaded["leaf"].requires_grad


def test_keys_that_look_alike_do_not_meet(tmp_path: Path) -> None:
    state = {
        "a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "n": {1: torch.tensor(3), "1": torch.tensor(4)},
        "$tensor": {"$dict": torch.tensor(5)}, "": [torch.tensor(6)], "/0": torch.tensor(7),
    }  # fmt: skip
    save_state(tmp_path / "state.safetensors", state)
    assert str(load_state(tmp_path / "state.safetensors")) == str(state)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_goes_on(kind, tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = tiny_net()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return net, kind(net.parameters(), lr=0.01, **options)

    def go(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(tiny_batch().x).square().mean().backward()
        optimizer.step()

    net, optimizer = make()
    go(net, optimizer)
    save_state(tmp_path / "s.safetensors", {"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    go(net, optimizer)
    twin, other = make()
    state = load_state(tmp_path / "s.safetensors")
    twin.load_state_dict(state["net"])
    other.load_state_dict(state["optimizer"])
    go(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def test_what_a_state_may_not_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"not \w*Path \(/a/0\)"):
        save_state(tmp_path / "s.safetensors", {"a": [tmp_path]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [load_state, load_weights])
def test_files_that_are_broken(load, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(WeightsError, match="there is no"):
        load(path)
    for content in (b"", b"rubbish", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable"):
            load(path)
    save_state(path, {"a": torch.randn(100)})
    whole = path.read_bytes()
    for cut in (4, 50, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match="not a readable"):
            load(path)
    with pytest.raises(WeightsError):
        load(tmp_path)


@pytest.mark.parametrize(("save", "load"), [(save_state, load_state), (save_weights, load_weights)])
def test_every_flipped_bit_is_found(save, load, tmp_path: Path) -> None:
    """Or it is one that says nothing, such as a blank that pads the header."""
    path = tmp_path / "s.safetensors"
    state = {"a": torch.arange(3.0), "n": torch.tensor([True, False])}
    if save is save_state:
        state |= {"epoch": 7, "text": "words"}
    save(path, state)
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert str(load(path)) == str(state)
        except WeightsError:
            found += 1
    assert found > 0.9 * len(whole)


def test_a_look_at_a_state(tmp_path: Path) -> None:
    save_state(tmp_path / "s.safetensors", {"epoch": 3, "net": {"a": torch.ones(2)}, "name": "x"})
    assert peek(tmp_path / "s.safetensors") == {"epoch": 3, "name": "x"}
    (tmp_path / "s.safetensors").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        peek(tmp_path / "s.safetensors")


def test_plain_weights_are_no_checkpoint(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)})
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_state(tmp_path / "w.safetensors")


def test_a_checkpoint_that_was_tampered_with(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "s.safetensors"
    for tree in ('{"$tensor": "gone"}', '{"$dict": 5}', '{"other": 1}', "not json"):
        save_file({"a": torch.ones(1)}, path, metadata={"rkd_state": tree})
        with pytest.raises(WeightsError, match="not a readable checkpoint"):
            load_state(path)


def test_weights_come_back(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight  # tied weights share memory
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    loaded = load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in net.state_dict().items())
    assert set(loaded) == set(net.state_dict())


def test_a_copy_on_the_cpu_is_a_copy() -> None:
    net = tiny_net()
    kept = to_cpu(net.state_dict())
    before = {name: value.clone() for name, value in kept.items()}
    with torch.no_grad():
        net.arch.head.bias.add_(1)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_finite() -> None:
    assert finite({"a": torch.ones(2), "n": torch.tensor(3)})
    assert not finite({"a": torch.ones(2), "b": torch.tensor([1.0, math.inf])})


# A run's folder


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4_000_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 100_000
    with pytest.raises(WeightsError, match="compressed"):
        read_weights(tmp_path / "b.pt")
    assert read_weights(tmp_path / "w.pt")["w"].numel() == 4_000_000


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, device="meta"), torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.cfloat),
        torch.zeros(1).expand(1000, 1000), torch.ones(3).to(torch.float8_e4m3fn),
    ],
)  # fmt: skip
def test_tensors_that_are_not_plain(value: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"w": value}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"no dense tensor|larger than the file"):
        read_weights(tmp_path / "w.pt")


def test_safetensors_headers_that_lie(tmp_path: Path) -> None:
    content = save({"w": torch.ones(4)})
    size = struct.unpack("<Q", content[:8])[0]
    for shape in ([2**62], [10**30], [-4], [5]):
        header = json.loads(content[8 : 8 + size])
        header["w"]["shape"] = shape
        text = json.dumps(header).encode()
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        with pytest.raises(WeightsError):
            read_weights(tmp_path / "w.safetensors")
