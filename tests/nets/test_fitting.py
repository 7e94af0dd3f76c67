"""Which of a file's tensors are a net's weights: checkpoints as public scripts write them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rkd.core.errors import Refused, WeightsError
from rkd.nets.fitting import load_file_into, load_into, net_from_file, room_for, take_normalization
from rkd.nets.net import Net
from rkd.nets.weights import open_weights
from rkd.testing import TinyNet

NORM = torch.tensor([0.5]).view(1, 1, 1)
State = dict[str, torch.Tensor]


def state(seed: int = 0, classes: int = 4) -> State:
    torch.manual_seed(seed)
    return TinyNet(classes=classes).state_dict()


def under(prefix: str, of: State) -> State:
    return {prefix + name: value for name, value in of.items()}


def loaded(content: Any, folder: Path, key: str = "", strip: str = "") -> tuple[nn.Module, Any, list[str]]:
    torch.save(content, folder / "w.pt")
    net = TinyNet()
    return net, *load_file_into(net, open_weights(f"{folder / 'w.pt'}{key}", strip), "w.pt")


def same(net: nn.Module, of: State) -> bool:
    return all(torch.equal(value, of[name].to(value.dtype)) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "layout",
    [
        lambda s: {"state_dict": under("module.", s), "best_acc": np.float64(55.3), "worst": np.float32(1)},
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, path=Path("x"))},
        lambda s: {"state_dict_ema": under("module.", s), "epoch": 3},
        lambda s: {"model_ema": s},
        lambda s: {"ema": {"model": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda s: {"n_averaged": torch.tensor(3), **under("module.", s)},
        lambda s: {"rmodel": s},
        lambda s: {"state_dict": {**under("model.", s), "criterion.weight": torch.ones(4)}},
        lambda s: {**s, "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)},
        lambda s: {**s, "norm.aux_bn.0.weight": torch.ones(6), "aux1.fc.weight": torch.ones(2)},
        lambda s: {"state_dict": {**under("student.", s), "teacher.stem.weight": torch.ones(4)}},
        lambda s: {"a": {"b": {"net": under("_orig_mod.module.backbone.", s)}}},
        lambda s: {"net": s, "ema": s},
    ],
)
def test_layouts(layout: Callable[[State], Any], tmp_path: Path) -> None:
    net, normalization, _ = loaded(layout(state(3)), tmp_path)
    assert same(net, state(3)) and normalization is None


@pytest.mark.parametrize("twice", [True, False])
def test_madrys_robustness(twice: bool, tmp_path: Path) -> None:
    content = {
        **under("module.model.", state(3)),
        "module.normalizer.new_mean": NORM,
        "module.normalizer.new_std": NORM,
    }
    if twice:
        content |= under("module.attacker.model.", state(3))
        content |= {"module.attacker.normalize.new_mean": NORM, "module.attacker.normalize.new_std": NORM}
    net, normalization, _ = loaded({"model": content, "epoch": 1}, tmp_path)
    assert same(net, state(3)) and normalization == ([0.5], [0.5])


def test_raw_weights_beside_averaged_ones(tmp_path: Path) -> None:
    content = {"state_dict": state(1), "state_dict_ema": under("module.", state(2))}
    with pytest.raises(WeightsError, match=r"several sets of weights, state_dict, state_dict_ema: .*#state_dict_ema"):
        loaded(content, tmp_path)
    assert same(loaded(content, tmp_path, "#state_dict")[0], state(1))
    assert same(loaded(content, tmp_path, "#state_dict_ema")[0], state(2))
    with pytest.raises(WeightsError, match=r"nothing under 'swa'; it holds state_dict, state_dict_ema"):
        loaded(content, tmp_path, "#swa")
    with pytest.raises(WeightsError, match="empty part"):
        open_weights(f"{tmp_path / 'w.pt'}#")


def test_two_nets_in_one_state_dict(tmp_path: Path) -> None:
    content = {"state_dict": {**under("student.", state(1)), **under("teacher.net.", state(2))}}
    with pytest.raises(WeightsError, match=r"several sets of weights"):
        loaded(content, tmp_path)
    for key, seed in (("#student", 1), ("#state_dict.student", 1), ("#teacher.net", 2), ("#teacher", 2)):
        assert same(loaded(content, tmp_path, key)[0], state(seed))


def test_a_prefix_that_ends_without_a_dot(tmp_path: Path) -> None:
    content = {**under("ema_", state(1)), **under("raw_", state(2))}
    assert same(loaded(content, tmp_path, strip="raw_")[0], state(2))
    with pytest.raises(WeightsError, match="begins with 'swa_'"):
        loaded(content, tmp_path, strip="swa_")


def test_a_part_that_may_matter_is_not_left_out_silently(tmp_path: Path) -> None:
    content = {"state_dict": {**under("model.", state(1)), "purifier.conv.weight": torch.ones(2)}}
    with pytest.raises(
        WeightsError, match=r"more than this architecture: purifier\.conv\.weight.*w\.pt#state_dict\.model"
    ):
        loaded(content, tmp_path)
    assert same(loaded(content, tmp_path, "#state_dict.model")[0], state(1))


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    *_, notes = loaded({**state(1), "total_ops": torch.zeros(1)}, tmp_path)
    assert notes == ["w.pt: left out, as no part of the net: total_ops"]


def test_half_precision(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in state(1).items()}
    assert same(loaded(half, tmp_path)[0], half)


def test_a_normalisation_of_images_up_to_255(tmp_path: Path) -> None:
    content = {**under("model.", state(1)), "mean": torch.tensor([123.7]), "std": torch.tensor([58.4])}
    with pytest.raises(WeightsError, match=r"not for images in \[0, 1\]"):
        loaded(content, tmp_path)


def test_a_normalisation_is_split_off() -> None:
    """What a source of teachers of a third party calls; `load_into` takes the rest."""
    numbers = {"0.mean": NORM.expand(3, 1, 1), "0.std": (NORM / 2).expand(3, 1, 1)}
    rest, found = take_normalization(numbers | under("1.", state()), TinyNet())
    assert found == ([0.5] * 3, [0.25] * 3)
    net = TinyNet()
    load_into(net, rest, "a file")
    assert same(net, state())
    untouched, nothing = take_normalization(state(), TinyNet())
    assert nothing is None and untouched.keys() == state().keys()


def test_one_logit_for_two_classes(tmp_path: Path) -> None:
    torch.save(state(1, classes=1), tmp_path / "w.pt")
    net = net_from_file(str(tmp_path / "w.pt"), "tiny", lambda classes: Net(TinyNet(classes=classes)), 2).eval()
    x = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        logits, one = net(x), net.arch[0](x)
    assert torch.allclose(logits.softmax(1)[:, 1], one.sigmoid().flatten())
    assert "one logit" in net.notes[0]


def test_some_of_a_nets_classes(tmp_path: Path) -> None:
    torch.save(state(1, classes=7), tmp_path / "w.pt")

    def build(classes: int) -> Net:
        return Net(TinyNet(classes=classes))

    with pytest.raises(WeightsError, match=r"number of classes.*classes = \[\.\.\.\]"):
        net_from_file(str(tmp_path / "w.pt"), "tiny", build, 4)
    assert net_from_file(str(tmp_path / "w.pt"), "tiny", build, 4, some_of=True)(torch.rand(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n<!DOCTYPE html><html>Virus scan warning", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ],
)
def test_what_is_no_file_of_weights(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        open_weights(tmp_path / "w.pt")


def test_torchscript_says_how_to_get_at_the_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(TinyNet()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"TorchScript.*state_dict\(\)"):
        open_weights(tmp_path / "w.pt")


def test_objects_beside_the_weights_stay_data(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return np.dtype, (Trap(tmp_path / "pwned"),)

    class Trap:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __reduce__(self) -> Any:
            return exec, (f"open({str(self.path)!r}, 'w')",)

    torch.save({"state_dict": state(), "best": Evil()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="exec"):
        open_weights(tmp_path / "w.pt")
    assert not (tmp_path / "pwned").exists()


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    content = {name: (100 * value).to(torch.int8) for name, value in state().items()}
    with pytest.raises(WeightsError, match="quantised"):
        loaded(content, tmp_path)


def test_deeply_nested_weights(tmp_path: Path) -> None:
    content: Any = state()
    for name in "abcdefg":
        content = {name: content}
    assert same(loaded(content, tmp_path)[0], state())


def test_a_net_that_does_not_fit_into_memory_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rkd.nets.fitting.free_memory", lambda: 1 << 20)
    with room_for("small"):
        nn.Linear(10, 10)
    with pytest.raises(Refused, match="large is too large"), room_for("large"):
        nn.Linear(1000, 1000)
    with pytest.raises(Refused, match="buffers"), room_for("buffers"):
        nn.Module().register_buffer("table", torch.empty(1000, 1000))
    nn.Linear(1000, 1000)
