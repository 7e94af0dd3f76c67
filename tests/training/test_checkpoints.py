"""State in files: what comes back is what went in, or a clear word; and a run's folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rkd.core.errors import RkdError, WeightsError
from rkd.storage.files import write_atomic
from rkd.storage.runfolder import RunFolder, safe_name
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


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(RkdError, match="No space left"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(RkdError, match="cannot write"):
        write_atomic(tmp_path / "nowhere" / "file", b"")


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


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "mine")
    assert folder.checkpoints.is_dir()
    with pytest.raises(RkdError, match=r"exists already.*--resume"):
        RunFolder.create(folder.path)
    with pytest.raises(RkdError, match="is not a run"):
        RunFolder.open(folder.path)
    folder.write_config("seed = 0\n")
    assert RunFolder.open(folder.path).config.read_text() == "seed = 0\n"
    (tmp_path / "file").touch()
    with pytest.raises(RkdError, match="--out"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_folder_has_its_configuration_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is made, there is no folder: half of one could be neither continued nor begun again."""
    seen = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(((self / "config.toml").read_text(), target.exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    folder = RunFolder.create(tmp_path / "runs" / "mine", "seed = 1\n")
    assert seen == [("seed = 1\n", False)]
    assert os.listdir(tmp_path / "runs") == ["mine"]
    assert RunFolder.open(folder.path).config.read_text() == "seed = 1\n"
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(RkdError, match="exists already"):
        RunFolder.create(tmp_path / "runs" / "empty", "")
    assert sorted(os.listdir(tmp_path / "runs")) == ["empty", "mine"]


def steps(folder: RunFolder) -> list[int]:
    return [load_state(path)["step"] for path in folder.saved()]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert (folder.load(), folder.place()) == ((None, []), None)
    for step in range(5):
        folder.save({"step": step}, keep=3)
    assert steps(folder) == [4, 3, 2]
    folder.save({"step": 5, "epoch": 1, "done": 2, "batches": 9}, keep=2)
    assert steps(folder) == [5, 4]
    assert folder.place() == (1, 2, 9)
    folder.save({"step": 6}, keep=1)
    assert steps(folder) == [6]
    assert sorted(os.listdir(folder.checkpoints)) == ["last.safetensors"]
    folder.save({"step": 7})
    folder.prune()
    assert steps(folder) == [7]


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:-3] + bytes([c[-3] ^ 1]) + c[-2:]])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in range(3):
        folder.save({"step": step, "a": torch.ones(5)})
    folder.last.write_bytes(damage(folder.last.read_bytes()))
    state, words = folder.load()
    assert state is not None and state["step"] == 1
    assert len(words) == 1 and "last.safetensors is not a readable checkpoint" in words[0]
    folder.save({"step": 2, "a": torch.ones(5)})
    assert steps(folder) == [2, 1], "the good one has not made room for the damaged one"
    for path in folder.saved():
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"last\.safetensors.*previous-1\.safetensors.*rm "):
        folder.load()


def test_a_crash_at_any_point_of_a_save_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that touches the disk fails in turn, as if the machine stopped there."""
    names = ("fsync", "replace", "rename", "unlink")

    def attempt(fail_at: int) -> tuple[RunFolder, int]:
        folder = RunFolder.create(tmp_path / str(fail_at))
        for step in range(3):
            folder.save({"step": step})
        calls = 0

        class Power(BaseException):
            pass

        with monkeypatch.context() as patch:
            for name in names:
                real = getattr(os, name)

                def call(*arguments, real=real, **settings):
                    nonlocal calls
                    calls += 1
                    if calls > fail_at:
                        raise Power
                    return real(*arguments, **settings)

                patch.setattr(os, name, call)
            with contextlib.suppress(Power):
                folder.save({"step": 3})
        return folder, calls

    _, total = attempt(10**6)
    assert total >= 5
    for fail_at in range(total):
        folder, _ = attempt(fail_at)
        state, _ = folder.load()
        assert state is not None and state["step"] in (2, 3), fail_at
        folder.tidy()
        folder.save({"step": 4})
        assert steps(folder)[0] == 4


def test_metrics_survive_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for epoch in range(3):
        folder.log({"epoch": epoch, "loss": 0.5})
    with open(folder.metrics, "a") as file:
        file.write('{"epoch": 3, "lo')
    assert [line["epoch"] for line in folder.history()] == [0, 1, 2]
    folder.trim(2)
    assert [line["epoch"] for line in folder.history()] == [0, 1]
    folder.log({"epoch": 2})
    assert [json.loads(line)["epoch"] for line in folder.metrics.read_text().splitlines()] == [0, 1, 2]


def test_json_files(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RkdError, match="did not finish"):
        folder.read_json(folder.evaluation)
    folder.write_json(folder.evaluation, {"a": 1})
    assert folder.read_json(folder.evaluation) == {"a": 1}
    folder.evaluation.write_text("{")
    with pytest.raises(RkdError, match="cannot read"):
        folder.read_json(folder.evaluation)


@pytest.mark.parametrize("name", ["mine", "a.b", "2026-01-01_x+y=3"])
def test_names_of_runs(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a b", "a\n", "-x", "a\\b", "é"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RkdError, match="cannot be a run's name"):
        safe_name(name)
