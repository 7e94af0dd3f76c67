"""Teachers from the catalogue, the hub and addresses: fetched from a loopback server, built, and held to what is
published of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import ConfigError, Refused, RkdError, UnknownName, WeightsError
from rkd.nets.net import Net
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog, load_catalog
from rkd.storage.serialize import save_weights
from rkd.testing import tiny_dataset
from rkd.workflow.choosing.zoo import CHECKED, fetch, listed
from rkd.workflow.evaluate import EvalRequest, evaluate_request
from rkd.workflow.folders import components_of
from rkd.workflow.nets import build_net, from_sources, new_student
from rkd.workflow.plan import Silent
from rkd.workflow.preparing.teachers import load_teachers
from rkd.workflow.resolve import resolve

from ...loopback import Loopback, loopback, status, whole

CATALOGUE = """
[good]
summary = "A net for the tests."
data = "digits"
architecture = "a small CNN"
model = "small-cnn"
options = {{ width = 4 }}
normalize = "none"
url = "{url}/w.safetensors"
sha256 = "{sha256}"
clean = {clean}

[bad]
summary = "A net that is not what it should be."
data = "digits"
architecture = "a small CNN"
model = "small-cnn"
options = {{ width = 4 }}
normalize = "none"
url = "{url}/w.safetensors"
clean = {far}

[elsewhere]
summary = "A net for other data."
data = "cifar10"
architecture = "a small CNN"
model = "small-cnn"
options = {{ width = 4 }}
url = "{url}/w.safetensors"
clean = 0.5

[nobody-counted]
summary = "A net of which no accuracy is known."
data = "digits"
architecture = "a small CNN"
model = "small-cnn"
options = {{ width = 4 }}
normalize = "none"
url = "{url}/w.safetensors"

[by-hand]
summary = "A net that people alone can get."
data = "digits"
architecture = "a small CNN"
model = "small-cnn"
page = "https://authors/page"

[strange]
summary = "A net that rkd cannot build."
data = "digits"
architecture = "Strange-7"
url = "{url}/strange.pt"
"""
PLUGIN = """
from pathlib import Path
from rkd.plugin import hookimpl, read_zoo

@hookimpl
def rkd_zoo():
    return read_zoo(Path(__file__).with_name("zoo.toml"))
"""


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def table(reference: str, **more: Any) -> dict[str, Any]:
    return {
        "loss": {"name": "kd"}, "student": {"model": "small-cnn", "width": 4}, "epochs": 1, "evaluate": {"attacks": []},
        "teachers": [{"reference": reference, **more}],
    }  # fmt: skip


def load(reference: str, catalog: Catalog, **more: Any) -> tuple[Net, list[str]]:
    listener = Listener()
    (found,) = load_teachers(resolve(table(reference, **more), catalog), catalog, listener)
    assert not found.missing
    return found.teacher.net, listener.said


@pytest.fixture(scope="module")
def net(catalog: Catalog) -> tuple[Net, float]:
    """A small net that gets some of the digits right, and how many of the test images that are looked at."""
    from rkd.nets.first_look import answers, first_images

    data = resolve(table("small-cnn"), catalog).data
    torch.manual_seed(0)
    net = build_net("small-cnn", {"width": 4}, data, catalog)
    net = Net(net.arch, (0.0,), (1.0,))
    images = first_images(data.train, "cpu", 200)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(net.train()(images.x), images.y)
        weights = list(net.parameters())
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 0.5 * slope
    share = answers(net.eval(), first_images(data.test, "cpu", CHECKED)).share
    assert share > 0.6
    return net, share


@pytest.fixture
def zoo(net: tuple[Net, float], cache: Path, tmp_path: Path) -> Any:
    """A catalogue of a stranger's plugin, its server, and rkd's catalog with both."""
    save_weights(tmp_path / "w.safetensors", net[0].arch.state_dict())
    content = (tmp_path / "w.safetensors").read_bytes()
    with loopback(**{"w.safetensors": whole(content), "strange.pt": whole(b"\0")}) as server:
        sha256 = hashlib.sha256(content).hexdigest()
        text = CATALOGUE.format(url=server.url, sha256=sha256, clean=round(net[1], 4), far=round(net[1] - 0.4, 4))
        (tmp_path / "zoo.toml").write_text(text)
        (tmp_path / "mine.py").write_text(PLUGIN)
        yield server, load_catalog([tmp_path / "mine.py"])


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        return torch.equal(one.eval()(x), other.eval()(x))


def test_by_its_name(net: tuple[Net, float], zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    found, said = load("zoo:good", catalog)
    assert same(found, net[0])
    assert any("normalize=none" in text or "downloading w.safetensors from 127.0.0.1" in text for text in said)
    assert said[-1].startswith(f"zoo:good: {net[1]:.1%} of 359 test images right, {net[1]:.2%} as published (within ")
    server.shutdown()
    again, said = load("zoo:good", catalog)
    assert same(again, net[0]) and len(server.asked) == 1, "offline afterwards"
    assert said[-1].endswith("as published (within 8.6%)") or "as published" in said[-1]


def test_its_accuracy_is_measured_once(zoo: tuple[Loopback, Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    from rkd.workflow.choosing import zoo as module

    load("zoo:good", zoo[1])
    monkeypatch.setattr(module, "_measured", None)
    load("zoo:good", zoo[1])
    with pytest.raises(TypeError):
        load("zoo:good", zoo[1], normalize="half")


def test_another_net_than_it_should_be(zoo: tuple[Loopback, Catalog]) -> None:
    with pytest.raises(
        WeightsError, match=r"zoo:bad: .* as published \(within .*: it is not the net that it should be"
    ):
        load("zoo:bad", zoo[1])


def test_what_cannot_be_compared_is_told(zoo: tuple[Loopback, Catalog]) -> None:
    _, said = load("zoo:elsewhere", zoo[1], normalize="none")
    assert any(
        "its published 50.00% are for cifar10 and all its classes, and are not compared" in text for text in said
    )
    assert any("from now on it must have the SHA-256" in text for text in said)
    _, said = load("zoo:nobody-counted", zoo[1])
    assert any("clean accuracy is not known here" in text for text in said)


def test_what_cannot_be_had(zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    with pytest.raises(
        ConfigError, match=r"Get the file from https://authors/page and type --teacher robust=small-cnn@"
    ):
        resolve(table("zoo:by-hand"), catalog)
    with pytest.raises(ConfigError, match="zoo:strange is a Strange-7, for which rkd has no model"):
        resolve(table("zoo:strange"), catalog)
    with pytest.raises(ConfigError, match=r"no teacher 'god' in the catalogue\. Did you mean good"):
        resolve(table("zoo:god"), catalog)
    assert server.asked == [], "known before anything is fetched"


def test_what_is_given_by_hand_goes_before_the_catalogue(zoo: tuple[Loopback, Catalog]) -> None:
    with pytest.raises(WeightsError, match="does not fit this architecture"):
        load("zoo:good", zoo[1], options={"width": 8})


def test_listed_and_fetched(zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    mine = [row for row in listed(catalog, "digits")]
    assert [(row["name"], row["ready"]) for row in mine] == [
        ("bad", True), ("good", True), ("nobody-counted", True), ("by-hand", False), ("strange", False)
    ]  # fmt: skip
    found = fetch("good", catalog, Silent())
    assert found["evaluate"].endswith("--model small-cnn --dataset digits --normalize none")
    assert [row["name"] for row in listed(catalog) if row["cached"]] == ["good"]
    assert Path(fetch("zoo:strange", catalog, Silent())["file"]).read_bytes() == b"\0", "a person may have a use for it"
    assert fetch(f"{server.url}/w.safetensors#k", catalog, Silent())["file"].endswith("w.safetensors#k")
    with pytest.raises(RkdError, match="Get the file from"):
        fetch("by-hand", catalog, Silent())


def test_a_model_with_an_address(net: tuple[Net, float], zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    reference = f"small-cnn@{server.url}/w.safetensors"
    found, _ = load(reference, catalog, options={"width": 4}, normalize="none")
    assert same(found, net[0])
    with pytest.raises(RkdError, match="no hash: 64 hexadecimal digits"):
        resolve(table(f"{reference}#sha256=1"), catalog)
    with pytest.raises(RkdError, match=r"its SHA-256 is .* is expected"):
        load(f"{reference}#sha256={'0' * 64}", catalog, options={"width": 4})
    for wrong, words in (
        (f"{server.url}/w.safetensors", "is an address; weights need their architecture"),
        ("good", "is a teacher of the catalogue: type --teacher clean=zoo:good"),
        (f"small-cnn@{server.url}/download", "ends with 'download'; weights are read from"),
    ):
        with pytest.raises(ConfigError, match=words):
            resolve(table(wrong), catalog)
    with pytest.raises(ConfigError, match="a file needs its architecture, as in MODEL@hf:OWNER/NAME/FILE"):
        load("hf:owner/name/w.pt", catalog)


def test_a_student_starts_from_an_address(net: tuple[Net, float], zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    weights = {"weights": f"{server.url}/w.safetensors", "normalize": "none"}
    plan = resolve({"loss": {"name": "ce"}, "student": {"model": "small-cnn", "width": 4, **weights}}, catalog)
    said: list[str] = []
    student = new_student(plan.config.student, plan.data, catalog, 0, said.append)
    assert same(student, net[0]) and any("downloading w.safetensors" in text for text in said)


def test_images_made_on_one(net: tuple[Net, float], zoo: tuple[Loopback, Catalog]) -> None:
    """`zoo:NAME` where an attack names a net."""
    attack = {"attack": {"name": "transfer", "source": "zoo:good"}, "loss": {"name": "pgd-at"}}
    plan = resolve({**attack, "student": {"model": "small-cnn", "width": 4}, "evaluate": {"attacks": []}}, zoo[1])
    assert any("downloading w.safetensors" in note for note in plan.notes)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_what_was_downloaded_runs_no_code(
    zoo: tuple[Loopback, Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, catalog = zoo
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    server.behaviours["/evil.pt"] = whole((tmp_path / "evil.pt").read_bytes())
    with pytest.raises(WeightsError, match="cannot be read safely"):
        load(f"small-cnn@{server.url}/evil.pt", catalog)
    assert not Path("touched").exists()


def test_cited_by_the_kind(zoo: tuple[Loopback, Catalog], tmp_path: Path) -> None:
    from rkd.storage.runfolder import RunFolder

    (tmp_path / "config.toml").write_text('loss = { name = "kd" }\n[[teachers]]\nreference = "zoo:good"\n')
    assert ("zoo", "good") in components_of(RunFolder(tmp_path))


def hub_net() -> Any:
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


@pytest.mark.slow
def test_from_the_hub(cache: Path, tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as timm writes one, at a server of one's own."""
    net = hub_net()
    save_weights(tmp_path / "w", net.state_dict())
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"mean": [0.1], "std": [0.5]}}
    place = "owner/net/resolve/v1"
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": (tmp_path / "w").read_bytes()}
    with loopback(**{f"{place}/{name}": whole(content) for name, content in files.items()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found, said = load("hf:owner/net@v1", catalog)
        x = torch.rand(2, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(found.eval()(x), net.eval()((x - 0.1) / 0.5), atol=1e-5)
        assert sum("from now on it must have the SHA-256" in text for text in said) == 2
        assert any("normalised as its config.json says" in text for text in said)
        load("hf:owner/net@v1", catalog)
        assert len(server.asked) == 2, "each file once"
        with pytest.raises(RkdError, match="404 Not Found"):
            load("hf:owner/other", catalog)
        bare = {"architecture": "test_resnet"}
        server.behaviours["/owner/bare/resolve/main/config.json"] = whole(json.dumps(bare).encode())
        with pytest.raises(
            WeightsError, match=r"hf:owner/bare is no repository that timm reads.*MODEL@hf:owner/bare/FILE"
        ):
            load("hf:owner/bare", catalog)
        server.behaviours["/owner/file/resolve/main/w.safetensors"] = whole(files["model.safetensors"])
        found, _ = load("timm:test_resnet@hf:owner/file/w.safetensors", catalog, normalize="none")
        server.behaviours["/owner/gone/resolve/main/w.safetensors"] = status(403)
        with pytest.raises(RkdError, match="accept its terms there, and set HF_TOKEN"):
            load("timm:test_resnet@hf:owner/gone/w.safetensors", catalog)


@pytest.mark.slow
def test_timm_with_its_own_weights(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag says which; without one the architecture is to be trained."""
    import timm

    asked = []
    make = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained))
        return make(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    data = tiny_dataset(shape=(3, 32, 32))

    def net(text: str, role: str = "clean") -> Any:
        return from_sources(TeacherReference(text, role, text), data, catalog)

    found = net("timm:test_resnet.r160_in1k")
    assert ("test_resnet.r160_in1k", True) in asked
    config = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert found.mean.flatten().tolist() == pytest.approx(config.mean)
    assert "timm's weights, for 1000 classes" in found.notes[0] and len(found.notes) == 1
    assert found.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 1000), "check_fits says what to do"
    with pytest.raises(UnknownName, match=r"timm has no weights 'test_resnet\.nope'"):
        net("timm:test_resnet.nope")
    assert net("timm:test_resnet") is None
    with pytest.raises(Refused, match=r"timm's weights are for images of 3 channels, and those of 'digits' have 1"):
        load("timm:test_resnet.r160_in1k", catalog)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    monkeypatch.setattr(catalog.find("model", "timm:x").factory, "_check", lambda self, timm: None)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: make("test_resnet", num_classes=1000))
    assert "makes no net robust to AutoAttack" in net("timm:efficientnet_b0.ap_in1k", "robust").notes[1]


def test_evaluated(net: tuple[Net, float], zoo: tuple[Loopback, Catalog]) -> None:
    server, catalog = zoo
    listener = Listener()
    found = evaluate_request(EvalRequest("zoo:good", attacks=[], checks="off"), catalog, listener)
    assert (found["model"], found["data"]) == ("small-cnn", "digits")
    assert found["clean"] == pytest.approx(net[1])
    assert f"zoo:good, as published: {100 * round(net[1], 4):.4g} % clean, unknown under AutoAttack" in listener.said
    address = EvalRequest(
        f"{server.url}/w.safetensors", "small-cnn", "digits", attacks=[], checks="off", normalize="none",
        settings={"model": {"width": 4}},
    )  # fmt: skip
    assert evaluate_request(address, catalog, listener)["clean"] == found["clean"]
