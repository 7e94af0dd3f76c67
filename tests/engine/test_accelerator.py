"""Attacks run on a copy that is the net: the same logits, images and verdicts, whatever moves the weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rkd.core.attack import Patches, PlainProbe
from rkd.core.interfaces import Probe
from rkd.core.step import AttackPlan, Step
from rkd.core.types import Batch, ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.engine import backends
from rkd.engine.accelerator import Engine, EngineProbe
from rkd.engine.backends import FastCopy, FastNet
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.samples import EvalSettings
from rkd.nets.batchnorm import Router, add_auxiliary
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.net import Accelerator, Net, NetTeacher
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.apgd import ApgdCe
from rkd.plugins.attacks.fab import FabT
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.square import Square
from rkd.plugins.objectives.ce import ce
from rkd.plugins.objectives.kl import KlTeacher
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_batch, tiny_net, untouched

X = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 10
LINF = ThreatModel("Linf", 8 / 255, 2 / 255)
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def student_of(catalog: Catalog, name: str = "resnet8") -> NetStudent:
    options = {"width": 16} if name == "preact-resnet18" else {"width": 0.25} if name == "mobilenetv2" else {}
    net = Net(catalog.create("model", name, options)((3, 16, 16), 10), [0.5] * 3, [0.25] * 3)
    train(net)
    return NetStudent(net)


def routed(catalog: Catalog) -> NetStudent:
    """A student whose norms for the view `adv` are others than its own."""
    net, router = student_of(catalog).net, Router()
    add_auxiliary(net, ["adv"], router)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".aux." in name:
                parameter.add_(0.3)
    return NetStudent(net, router, routed=["adv"])


def known(student: NetStudent, engine: Engine) -> FastNet:
    student.net.eval()
    return engine.copy_for(student.net, None, student.net, X)


def train(net: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()


def attacked(student: NetStudent, view: str = "adv", steps: int = 10) -> torch.Tensor:
    batch = Batch(X, Y, torch.arange(len(X)))
    plan = AttackPlan(Pgd(steps=steps), ce)
    return Step(batch, student, attacks={view: plan}, threat=LINF).image(view)


def close(student: NetStudent, engine: Engine, view: str = "adv") -> None:
    """The engine's logits and images are the plain net's. Of nets that have hardly been trained many a gradient is next
    to nothing, and its sign rounding: a trained one is looked at more strictly in tests/test_engine.py."""
    student.accelerator = Engine("plain")
    expected = attacked(student, view)
    student.accelerator = engine
    with untouched(student.net):
        found = attacked(student, view)
    assert float((found == expected).float().mean()) > 0.95
    logits = student.net.eval()(X).detach()
    with student.attacked(view, "eval") as probe:
        other = probe(X).detach()
    if not student.routed:
        assert float((other - logits).abs().max() / logits.abs().max()) < 1e-4


def test_they_are_what_they_say() -> None:
    assert isinstance(Engine(), Accelerator)
    net = tiny_net()
    with Engine().probe(net, None, net) as probe:
        assert isinstance(probe, Probe) and isinstance(probe, EngineProbe)
    with pytest.raises(ValueError, match="engine is one of auto, plain"):
        Engine("fast")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "folded", "channels-last", "fused"])
@pytest.mark.parametrize("name", ["resnet8", "small-cnn", "mobilenetv2", "wrn10-1", "preact-resnet18"])
def test_images_are_the_plain_nets_while_weights_move(catalog: Catalog, name: str, kind: str) -> None:
    student = student_of(catalog, name)
    engine = Engine(kind)
    close(student, engine)
    fast = known(student, engine)
    assert "folded" in fast.name
    train(student.net, 2)
    close(student, engine)
    student.net.load_state_dict(student_of(catalog, name).net.state_dict())
    close(student, engine)
    assert known(student, engine) is fast, "brought up to date, not made again"


@pytest.mark.slow
def test_weights_that_are_replaced_are_seen(catalog: Catalog) -> None:
    student, engine = student_of(catalog), Engine("folded")
    close(student, engine)
    for parameter in student.net.parameters():
        parameter.data = parameter.data * 1.1
    first = next(m for m in student.net.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach() * 0.5)
    close(student, engine)


@pytest.mark.slow
def test_a_net_that_changes_its_modules_is_copied_again(catalog: Catalog) -> None:
    student, engine = student_of(catalog), Engine("folded")
    close(student, engine)
    before = known(student, engine)
    student.net.arch.linear = nn.Linear(64, 10)
    close(student, engine)
    after = known(student, engine)
    assert after is not before
    handle = student.net.arch.conv1.register_forward_hook(lambda module, x, output: output * 1.1)
    close(student, engine)
    assert known(student, engine).name == "plain", "while there is a hook the net runs as it is"
    handle.remove()
    close(student, engine)
    assert known(student, engine) is after


@pytest.mark.slow
def test_routed_norms_have_a_copy_for_each_view(catalog: Catalog) -> None:
    student = routed(catalog)
    engine = Engine()
    close(student, engine)
    close(student, engine, view="weak")
    assert not torch.equal(attacked(student, "adv"), attacked(student, "weak")), "each view its own norms"
    with student.attacked("adv", "eval") as probe:
        plain = student._forward([("adv", len(X))], X)
        torch.testing.assert_close(probe(X), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_query_goes_through_in_micro_batches(catalog: Catalog, monkeypatch) -> None:
    """And back: gradients of each part where they belong."""
    student = student_of(catalog)
    expected = attacked(student)
    monkeypatch.setattr(backends, "MICRO_BATCH", 5)
    student.accelerator = Engine("folded")
    copied = known(student, student.accelerator)
    assert isinstance(copied, FastCopy)
    sizes: list[int] = []
    copied.run.net.register_forward_pre_hook(lambda module, x: sizes.append(len(x[0])))
    assert float((attacked(student) == expected).float().mean()) > 0.95
    assert set(sizes) == {4, 5} and len(sizes) == 10 * 5


@pytest.mark.slow
def test_the_same_bits_whenever_it_is_made(catalog: Catalog) -> None:
    """After few images, after many, for the first time or again: what was asked before has no say."""
    student = student_of(catalog)
    student.net.eval()
    found = []
    for first in (X, X[:3], None):
        student.accelerator = Engine()
        if first is not None:
            student.accelerator.copy_for(student.net, None, student.net, first)
        found.append(attacked(student))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_no_clock_is_asked(catalog: Catalog, monkeypatch) -> None:
    def never() -> float:
        raise AssertionError("a clock")

    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(f"time.{name}", never)
    student = student_of(catalog)
    student.accelerator = Engine()
    attacked(student)
    assert student.accelerator.choices() != ["plain"]


@pytest.mark.slow
def test_the_net_itself_where_a_copy_would_not_do(catalog: Catalog, monkeypatch) -> None:
    student = student_of(catalog)
    told: list[str] = []
    with Engine("plain").probe(student.net, None, student.net) as probe:
        assert type(probe) is PlainProbe
    assert copy.deepcopy(Engine("folded")).name == "plain"

    class Uncopied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = student.net

        def __deepcopy__(self, memo):
            raise TypeError("not this one")

        def forward(self, x):
            return self.net(x)

    other = NetStudent(Uncopied(), None)
    other.accelerator = Engine("folded", told.append)
    assert attacked(other).shape == X.shape
    assert told and "not this one" in told[0] and other.accelerator.choices() == ["plain"]

    class Wrong(FastCopy):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            right = self.logits
            self.logits = lambda x: right(x).softmax(1)

    monkeypatch.setattr(backends, "FastCopy", Wrong)
    told.clear()
    student.accelerator = Engine("folded", told.append)
    found = attacked(student)
    student.accelerator = Engine("plain")
    assert torch.equal(found, attacked(student)) and "off" in told[0]


def test_searches_in_other_modes_use_the_net(catalog: Catalog) -> None:
    student = student_of(catalog)
    student.accelerator = Engine("folded")
    with student.attacked("adv", "frozen") as probe:
        probe(X)
    assert student.accelerator.choices() == []


def test_a_net_without_gradient_is_left_alone() -> None:
    """As evaluations wrap a quantised one: its copy would have a gradient."""

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    net, engine = Blind().eval(), Engine()
    with engine.probe(net, None, net) as probe:
        assert not probe(tiny_batch().x.requires_grad_()).requires_grad
    assert engine.choices() == ["plain"]


@pytest.mark.slow
def test_compiled_is_torchs_compiler(catalog: Catalog, monkeypatch) -> None:
    """With a compiler of one's own: torch's takes long, and may be missing."""
    student = student_of(catalog)
    compiled: list[tuple[int, ...]] = []

    def compiler(net: nn.Module, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def fast(x: Tensor) -> Tensor:
            compiled.append(tuple(x.shape))
            return net(x)

        return fast

    monkeypatch.setattr(torch, "compile", compiler)
    engine = Engine("compiled")
    close(student, engine)
    assert engine.choices() == ["folded, channels last, compiled"] and (24, 3, 16, 16) in compiled

    def missing(net: nn.Module, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def fast(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler here\nand more")

        return fast

    monkeypatch.setattr(torch, "compile", missing)
    told: list[str] = []
    without = Engine("compiled", told.append)
    close(student, without)
    assert without.choices() == ["plain"] and told == ["engine: the net runs as it is: no compiler here"]


@onednn
def test_a_teacher_has_one_attack_without_end(catalog: Catalog) -> None:
    teacher = NetTeacher(student_of(catalog).net, "robust")
    expected = teacher.logits(X).detach()
    again = NetTeacher(teacher.net, "robust")
    again.accelerator = Engine()
    x = X.clone().requires_grad_()
    found = again.logits(x)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(found.sum(), x)[0].any(), "differentiable by the images"
    assert again.accelerator.choices() == ["folded, fused"] and not teacher.net.training
    plain = NetTeacher(teacher.net, "robust")
    plain.accelerator = Engine("plain")
    assert torch.equal(plain.logits(X), expected)


# In an evaluation


class Heard(FastNet):
    """A copy that counts the images that it is asked about."""

    def __init__(self, name: str, net: nn.Module, tape: object = None) -> None:
        super().__init__(net, self._ask, torch.Size())
        self.name, self.tape, self.count = name, tape, 0

    def _ask(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return self.net(x)


SEARCHES = {"apgd-ce": ({"low"}, ApgdCe(steps=5)), "square": ({"low"}, Square(queries=20)),
            "fab-t": ({"low", "fine"}, FabT(steps=5, targets=2))}  # fmt: skip


@pytest.mark.parametrize("name", ["auto", "bfloat16"])
@pytest.mark.parametrize("attack", SEARCHES)
def test_reduced_precision_has_to_be_asked_for(attack: str, name: str, monkeypatch) -> None:
    """And serves what attacks can do with; all queries are counted."""
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        split = ArraySplit(x, net.eval()(x).argmax(1))
    copies = {False: Heard("fine", net), True: Heard("low", net, tape=object())}
    for one in copies.values():
        one.shape = x.shape[1:]

    def copy_for(self: Engine, net: nn.Module, view: str | None, plain: nn.Module, x: Tensor, low: bool = False):
        self._told.add(copies[low].name)
        return copies[low]

    monkeypatch.setattr(Engine, "copy_for", copy_for)
    needs, search = SEARCHES[attack]
    plans = {"it": AttackPlan(search, ce)}
    found = evaluate(net, split, plans, EvalSettings(threat=LINF, accelerator=Engine(name))).outcomes["it"]
    assert (copies[True].count > 0) is (name == "bfloat16")
    assert (copies[False].count > 0) is (name == "auto" or "fine" in needs)
    assert ("low" in found.about["engine"]) is (name == "bfloat16")
    plain = evaluate(net, split, plans, EvalSettings(threat=LINF)).outcomes["it"]
    assert (found.forwards, found.backwards) == (plain.forwards, plain.backwards)


@pytest.mark.parametrize("attack", [ApgdCe(steps=5), Square(queries=20)])
def test_nothing_is_counted_that_the_net_itself_does_not_confirm(attack, monkeypatch) -> None:
    """A copy that takes every image for fooled."""
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        split = ArraySplit(x, net.eval()(x).argmax(1))
    plans = {"it": AttackPlan(attack, ce)}
    plain = evaluate(net, split, plans, EvalSettings(threat=LINF))
    liar = Heard("liar", net)
    liar.shape, liar.logits = x.shape[1:], lambda x: -net(x)

    def copy_for(self: Engine, *arguments: object, **more: object) -> FastNet:
        self._told.add("liar")
        return liar

    monkeypatch.setattr(Engine, "copy_for", copy_for)
    lied_to = evaluate(net, split, plans, EvalSettings(threat=ThreatModel("Linf", 1e-4, 1e-4), accelerator=Engine()))
    assert lied_to.accuracy("it") == 1, "at so small a radius nothing falls"
    assert lied_to.outcomes["it"].about["engine"] == "liar"
    assert plain.accuracy("it") < 1
    assert plain.outcomes["it"].about["engine"] == "plain"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "bfloat16", "folded", "channels-last", "fused"])
def test_the_verdict_is_the_plain_nets(catalog: Catalog, kind: str) -> None:
    net = student_of(catalog).net.eval()
    with torch.no_grad():
        split = ArraySplit(X, net(X).argmax(1))
    plans = {"apgd": AttackPlan(ApgdCe(steps=10), ce), "pgd": AttackPlan(Pgd(steps=10), ce)}
    threat = ThreatModel("Linf", 1 / 255, 1 / 255)
    plain = evaluate(net, split, plans, EvalSettings(threat=threat))
    assert 0 < plain.accuracy("apgd") < 1
    with untouched(net):
        found = evaluate(net, split, plans, EvalSettings(threat=threat, accelerator=Engine(kind)))
    low = kind == "bfloat16" and packs()
    assert (found.attacks["apgd"] ^ plain.attacks["apgd"]).sum() <= (1 if low else 0)
    assert found.outcomes["pgd"].about["engine"] == "plain", "PGD confirms nothing"
    assert "folded" in found.outcomes["apgd"].about["engine"]


@pytest.mark.slow
@onednn
def test_square_asks_about_patches(catalog: Catalog, monkeypatch) -> None:
    """And counts as many queries as on whole images."""
    asked: list[type[Patches]] = []
    patches = EngineProbe.patches

    def watched(self: EngineProbe, x: Tensor) -> Patches:
        found = patches(self, x)
        asked.append(type(found))
        return found

    monkeypatch.setattr(EngineProbe, "patches", watched)
    net = student_of(catalog, "small-cnn").net.eval()
    with torch.no_grad():
        split = ArraySplit(X, net(X).argmax(1))
    plans = {"square": AttackPlan(Square(queries=150), ce)}
    threat = ThreatModel("Linf", 4 / 255, 1 / 255)
    plain = evaluate(net, split, plans, EvalSettings(threat=threat))
    found = evaluate(net, split, plans, EvalSettings(threat=threat, accelerator=Engine()))
    assert asked and Patches not in asked
    assert 0 < plain.accuracy("square") < 1
    assert torch.equal(found.attacks["square"], plain.attacks["square"])
    assert found.outcomes["square"].forwards == plain.outcomes["square"].forwards


# How far a query is from the attack


class Frames(TorchDispatchMode):
    """The frames of rkd between a file and the first layer of a query, from the inside out; not of the query for which
    the copy is made."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file, self.names = file, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in CONVOLUTIONS and not self.names:
            frame, names = sys._getframe(1), list[str]()
            while frame is not None and not frame.f_code.co_filename.endswith(self.file):
                if "/rkd/" in frame.f_code.co_filename:
                    names.append(f"{frame.f_code.co_filename.split('/rkd/')[-1]}:{frame.f_code.co_name}")
                frame = frame.f_back
            if frame is not None and not any(name.endswith(":copy_for") for name in names):
                self.names = names
        return func(*args, **(kwargs or {}))


CONVOLUTIONS = {
    torch.ops.aten.convolution.default, torch.ops.mkldnn._convolution_pointwise.default,
    torch.ops.mkldnn._convolution_pointwise.binary,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "plain"])
def test_a_query_passes_few_frames_in_a_training(catalog: Catalog, kind: str) -> None:
    student, teacher = student_of(catalog, "resnet20"), NetTeacher(student_of(catalog).net, "robust")
    student.accelerator = Engine(kind)
    batch = Batch(X, Y, torch.arange(len(X)))
    plans = {"adv": AttackPlan(Pgd(steps=2), KlTeacher("robust"))}
    step = Step(batch, student, {"robust": teacher}, plans, threat=LINF, on_query=lambda *query: None)
    step.teacher("robust")
    with Frames("attacks/pgd.py") as frames:
        step.image("adv")
    assert 1 <= len(frames.names) <= 10, frames.names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "plain"])
def test_a_query_passes_few_frames_in_an_evaluation(catalog: Catalog, kind: str) -> None:
    net = student_of(catalog, "resnet20").net.eval()
    split = ArraySplit(X, net(X).argmax(1))
    with Frames("attacks/apgd.py") as frames:
        settings = EvalSettings(LINF, accelerator=Engine(kind))
        evaluate(net, split, {"it": AttackPlan(ApgdCe(steps=2), ce)}, settings)
    assert 1 <= len(frames.names) <= 10, frames.names
