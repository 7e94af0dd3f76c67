"""Nets by name and weights: seeds, and what a weights file's net was fed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, Refused
from rkd.data.dataset import fetch
from rkd.nets.net import Net
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog
from rkd.registry.config import StudentConfig
from rkd.testing import untouched
from rkd.workflow.nets import build_net, from_sources, new_student, settle
from rkd.workflow.resolve import resolve


def test_weights_follow_from_the_seed_alone(catalog: Catalog) -> None:
    data = resolve({}, catalog).data
    with untouched():
        nets = [build_net("small-cnn", {}, data, catalog, seed) for seed in (1, 1, 2)]
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert isinstance(nets[0], Net)
    assert nets[0].mean.flatten().tolist() == pytest.approx(list(data.mean))


def trained(normalised: bool | str, catalog: Catalog) -> tuple[Net, Any]:
    """An MLP that has learned digits a little, fed with normalised images or with plain ones, which differ much."""
    data = replace(resolve({}, catalog).data, mean=(0.7,), std=(0.1,))
    net = build_net("mlp", {}, data, catalog)
    if not normalised:
        net = Net(net.arch)
    if normalised == "half":
        net = Net(net.arch, [0.5], [0.5])
    batch = fetch(data.train, torch.arange(600))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return net.eval(), data


def reference(name: str = "mlp@w.pt") -> TeacherReference:
    return TeacherReference(name, "clean", "mlp", "w.pt")


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [True, False])
def test_the_better_normalisation_is_found(normalised: bool, catalog: Catalog) -> None:
    net, data = trained(normalised, catalog)
    loaded = Net(net.arch, data.mean, data.std)
    settled = settle(loaded, reference(), "auto", data, "--normalize")
    choice, other = ("data", "none") if normalised else ("none", "data")
    expected = list(data.mean) if normalised else [0.0]
    assert loaded.mean.flatten().tolist() == pytest.approx(expected)
    assert f"normalize={choice}" in settled.notes[0]
    known = loaded.settled
    assert known is not None and (known.choice, known.known, known.images) == (choice, "compared", 512)
    assert known.shares is not None and known.shares[choice] > known.shares[other] + 0.05


@pytest.mark.slow
def test_what_cannot_be_told_is_refused(catalog: Catalog) -> None:
    """A published MNIST net that wants [0, 1]: three of 512 images decided for the data's normalisation, under which
    an attack of the same radius is three times as strong."""
    net, data = trained(False, catalog)
    loaded = Net(net.arch, [0.0], [0.9])  # so near that a few images decide
    near = replace(data, mean=(0.0,), std=(0.9,))
    with pytest.raises(
        Refused, match=r"cannot be told: of 512 .* are right .*type --normalize=none, or --normalize=data"
    ):
        settle(loaded, reference(), "auto", near, "--normalize")
    loaded = Net(net.arch, [0.0], [0.9])
    settled = settle(loaded, reference(), "auto", near, "--normalize", must=False)
    assert "no clear difference" in settled.notes[0]
    assert loaded.settled is not None and loaded.settled.known == "open"


@pytest.mark.slow
def test_a_net_for_images_from_minus_one_to_one(catalog: Catalog) -> None:
    """Neither of the two that are compared is right, however clearly one is the better."""
    net, data = trained("half", catalog)
    with pytest.raises(Refused, match=r"clearly more are right with mean and std 0\.5: type --normalize=half"):
        settle(Net(net.arch), reference(), "auto", replace(data, mean=(0.2,), std=(3.0,)), "--normalize")


@pytest.mark.slow
def test_a_normalisation_that_was_asked_for(catalog: Catalog) -> None:
    net, data = trained(True, catalog)
    for choice, expected in (("data", data.mean[0]), ("none", 0.0), ("half", 0.5), ("0.1/0.3", 0.1)):
        loaded = Net(net.arch, data.mean, data.std)
        assert settle(loaded, reference(), choice, data, "--normalize").notes == []  # it is as was asked
        assert float(loaded.mean) == pytest.approx(expected)
        assert loaded.settled is not None and loaded.settled.known == "told"
    with pytest.raises(ConfigError, match=r"--normalize: imagenet is for 3 channels, and the images have 1"):
        settle(net, reference(), "imagenet", data, "--normalize")


@pytest.mark.slow
def test_a_file_that_says_its_normalisation(catalog: Catalog, tmp_path: Path) -> None:
    net, data = trained(True, catalog)
    inside = {"normalizer.new_mean": torch.tensor([0.3]), "normalizer.new_std": torch.tensor([0.4])}
    torch.save({"model": {**{f"model.{k}": v for k, v in net.arch.state_dict().items()}, **inside}}, tmp_path / "w.pt")
    asked = TeacherReference("mlp@w", "clean", "mlp", str(tmp_path / "w.pt"))
    loaded = from_sources(asked, data, catalog)
    assert isinstance(loaded, Net) and float(loaded.mean) == pytest.approx(0.3)
    assert "as its file says, 0.3/0.4" in settle(loaded, asked, "auto", data, "--normalize").notes[0]
    assert "though its file says" in settle(loaded, asked, "none", data, "--normalize").notes[0]
    assert float(loaded.mean) == 0


@pytest.mark.slow
def test_outputs_in_another_order(catalog: Catalog, tmp_path: Path) -> None:
    net, data = trained(True, catalog)
    torch.save(net.arch.state_dict(), tmp_path / "w.pt")
    order = (3, 1, 0, 2, 4, 5, 6, 9, 8, 7)
    asked = TeacherReference("mlp@w", "clean", "mlp", str(tmp_path / "w.pt"), classes=order)
    loaded = from_sources(asked, data, catalog)
    x = fetch(data.test, torch.arange(3)).x
    assert loaded is not None
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), net(x)[:, list(order)])


def student(table: dict[str, Any], catalog: Catalog) -> tuple[Net, StudentConfig, list[str]]:
    config, said = StudentConfig(**table), []
    data = replace(resolve({}, catalog).data, mean=(0.7,), std=(0.1,))
    return new_student(config, data, catalog, 0, said.append), config, said


@pytest.mark.slow
def test_a_student_that_starts_from_weights(catalog: Catalog, tmp_path: Path) -> None:
    net, _ = trained(False, catalog)
    torch.save({"ema": net.arch.state_dict()}, tmp_path / "w.pt")
    started, config, said = student({"model": "mlp", "weights": str(tmp_path / "w.pt")}, catalog)
    assert all(torch.equal(a, b) for a, b in zip(started.arch.parameters(), net.arch.parameters(), strict=True))
    assert config.normalize == "none" and float(started.mean) == 0, "found out, and kept for when the run is repeated"
    assert "starts from" in said[0] and "normalize=none" in said[1]
    again, config, _ = student({"model": "mlp", "weights": str(tmp_path / "w.pt"), "normalize": "data"}, catalog)
    assert config.normalize == "data" and float(again.mean) == pytest.approx(0.7)


def test_weights_for_other_classes_leave_the_last_layer_untrained(catalog: Catalog, tmp_path: Path) -> None:
    arch = catalog.create("model", "mlp")((1, 8, 8), 25)
    torch.save(arch.state_dict(), tmp_path / "w.pt")
    started, _, said = student({"model": "mlp", "weights": str(tmp_path / "w.pt"), "normalize": "half"}, catalog)
    with pytest.raises(Refused, match="its answers, for other classes, cannot tell"):
        student({"model": "mlp", "weights": str(tmp_path / "w.pt")}, catalog)
    first, last = next(started.arch.parameters()), list(started.arch.parameters())[-1]
    assert torch.equal(first, next(arch.parameters())) and len(last) == 10
    assert "untrained stays" in said[1] and float(started.std) == 0.5


def test_a_student_from_one_of_several_nets_in_a_file(catalog: Catalog, tmp_path: Path) -> None:
    ours, theirs = (catalog.create("model", "mlp")((1, 8, 8), 10).state_dict() for _ in range(2))
    content = {f"{name}.{key}": value for name, of in (("a", ours), ("b", theirs)) for key, value in of.items()}
    torch.save(content, tmp_path / "w.pt")
    table = {"model": "mlp", "weights": str(tmp_path / "w.pt"), "normalize": "half"}
    started, _, _ = student({**table, "strip": "b."}, catalog)
    assert torch.equal(next(started.arch.parameters()), next(iter(theirs.values())))


def test_a_net_of_another_library_that_does_not_fit_into_memory(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rkd.nets.fitting.free_memory", lambda: 16 << 20)
    with pytest.raises(Refused, match="torchvision:resnet18 is too large"):
        build_net("torchvision:resnet18", {}, resolve({}, catalog).data, catalog)
