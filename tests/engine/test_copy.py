"""A student's faster copy is its net at every search: the same logits, gradients and images, and never behind."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rkd.core.step import AttackPlan, Step
from rkd.core.types import Batch, ThreatModel
from rkd.engine import accelerator as module
from rkd.engine import choose as choosing
from rkd.engine.accelerator import Searches
from rkd.engine.backends import Choice, made
from rkd.engine.copy import Twin
from rkd.nets.batchnorm import Router, add_auxiliary
from rkd.nets.net import Net, NetStudent, NetTeacher
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import Catalog
from rkd.testing import untouched

X = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 10
LINF = ThreatModel("Linf", 8 / 255, 2 / 255)


def student_of(catalog: Catalog, name: str = "resnet8") -> NetStudent:
    net = Net(catalog.create("model", name, {})((3, 16, 16), 10), [0.5] * 3, [0.25] * 3)
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


def known(student: NetStudent, searches: Searches) -> Choice:
    return searches.choice(student.net, None, student.net, X)


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


def close(student: NetStudent, searches: Searches, view: str = "adv") -> None:
    """The engine's logits and images are the plain net's. Of nets that have hardly been trained many a gradient is next
    to nothing, and its sign rounding: a trained one is looked at more strictly below."""
    student.searches = None
    expected = attacked(student, view)
    student.searches = searches
    with untouched(student.net):
        found = attacked(student, view)
    assert float((found == expected).float().mean()) > 0.95
    logits = student.net.eval()(X).detach()
    with student.attacked(view, "eval") as probe:
        other = probe(X).detach()
    if not student.routed:
        assert float((other - logits).abs().max() / logits.abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["folded", "channels-last", "fused"])
@pytest.mark.parametrize("name", ["resnet8", "small-cnn", "mobilenetv2", "wrn10-1", "preact-resnet18"])
def test_images_are_the_plain_nets_while_weights_move(catalog: Catalog, name: str, kind: str) -> None:
    student = student_of(catalog, name)
    searches = Searches(kind)
    close(student, searches)
    choice = known(student, searches)
    assert "folded" in choice.name
    train(student.net, 2)
    close(student, searches)
    student.net.load_state_dict(student_of(catalog, name).net.state_dict())
    close(student, searches)
    assert known(student, searches) is choice, "brought up to date, not made again"


def test_weights_that_are_replaced_are_seen(catalog: Catalog) -> None:
    student, searches = student_of(catalog), Searches("folded")
    close(student, searches)
    for parameter in student.net.parameters():
        parameter.data = parameter.data * 1.1
    first = next(m for m in student.net.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach() * 0.5)
    close(student, searches)


def test_a_net_that_changes_its_modules_is_copied_again(catalog: Catalog) -> None:
    student, searches = student_of(catalog), Searches("folded")
    close(student, searches)
    before = known(student, searches)
    student.net.arch.linear = nn.Linear(64, 10)
    close(student, searches)
    assert known(student, searches) is not before
    before = known(student, searches)
    handle = student.net.arch.conv1.register_forward_hook(lambda module, x, output: output * 1.1)
    close(student, searches)
    handle.remove()
    close(student, searches)
    assert known(student, searches) is before, "while there is a hook the net runs as it is"


def test_routed_norms_have_a_copy_for_each_view(catalog: Catalog) -> None:
    student = routed(catalog)
    searches = Searches("folded")
    close(student, searches)
    close(student, searches, view="weak")
    images = []
    for view in ("adv", "weak"):
        images.append(attacked(student, view))
    assert not torch.equal(*images), "each view its own norms"
    with student.attacked("adv", "eval") as probe:
        plain = student._forward([("adv", len(X))], X)
        torch.testing.assert_close(probe(X), plain, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_faster_routed_norms_stay_routed(catalog: Catalog, monkeypatch) -> None:
    """Pieces may pay where copies do not; but the net as a view sees it cannot be wrapped."""
    student = routed(catalog)

    def race(tries: Any, budget: float) -> list[float]:
        """Copies are slower, and fewer images faster."""
        return [len(x) * (2 if isinstance(net, nn.Module) and net is not student.net else 1) for net, x in tries]

    monkeypatch.setattr(choosing, "race", race)
    with student.attacked("adv", "eval") as plain:
        found = choosing.choose(student.net, X, view="adv", probe=plain)
        assert found.net is student.net, "plain: the probe is asked"
    assert choosing.choose(student.net, X).net.piece == 16, "without routing it would have paid"


def test_pieces_are_whole_searches(catalog: Catalog, monkeypatch) -> None:
    """Asked a few images at a time, as an engine may choose."""
    student = student_of(catalog)
    kept: dict[str, Any] = {}
    searches = Searches(
        "auto", queries=10**6, recall=lambda key: {"way": "folded", "piece": 5, "speedup": 2.0}, keep=kept.__setitem__
    )
    close(student, searches)
    assert str(known(student, searches)) == "folded, 5 at a time" and not kept
    expected = attacked(student, steps=10)
    sizes: list[int] = []
    chosen = known(student, searches)
    chosen.net.net.register_forward_pre_hook(lambda module, x: sizes.append(len(x[0])))
    assert torch.equal(attacked(student, steps=10), expected)
    assert sizes[0] == 24 and set(sizes[1:]) == {4, 5} and len(sizes) == 1 + 9 * 5, "the first question in one go"
    student.searches = Searches("auto", queries=10**6, recall=searches.recall)
    assert torch.equal(attacked(student, steps=10), expected), "a process's first search is as any other"
    few = Searches("auto", queries=10**6, recall=searches.recall)
    few.choice(student.net, None, student.net, X[:3])
    student.searches = few
    assert torch.equal(attacked(student, steps=10), expected), "also after a search on fewer images"


def test_what_was_measured_is_kept(catalog: Catalog, monkeypatch) -> None:
    student = student_of(catalog)
    calls = []

    def measured(net, x, **options):
        calls.append(options)
        return made("folded", net, x)

    monkeypatch.setattr(module, "choose", measured)
    kept: dict[str, Any] = {}
    short = Searches("auto", queries=400, recall=kept.get, keep=kept.__setitem__)
    close(student, short)
    assert not calls and short.choices() == ["plain"], "a short run's numbers do not hang on measured times"
    monkeypatch.setattr(module, "SHORT", 0)
    searches = Searches("auto", queries=10**6, recall=kept.get, keep=kept.__setitem__)
    close(student, searches)
    close(student, searches)
    assert len(calls) == 1 and len(kept) == 2, "what a short run did is no choice for a long one"
    again = Searches("auto", queries=10**6, recall=kept.get, keep=kept.__setitem__)
    close(student, again)
    assert len(calls) == 1, "recalled, not measured"
    assert again.choices() == ["folded"]


def test_the_net_itself_where_a_copy_would_not_do(catalog: Catalog, monkeypatch) -> None:
    student = student_of(catalog)
    told: list[str] = []
    plain = lambda x: student.net(x)  # noqa: E731
    assert Searches("plain").probe(student.net, None, plain) is plain
    assert Searches("auto", queries=10).probe(student.net, None, plain) is plain, "over before measuring has paid"
    assert copy.deepcopy(Searches("folded")).kind == "plain"

    class Uncopied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = student.net

        def __deepcopy__(self, memo):
            raise TypeError("not this one")

        def forward(self, x):
            return self.net(x)

    other = NetStudent(Uncopied(), None)
    other.searches = Searches("folded", tell=told.append)
    assert attacked(other).shape == X.shape
    assert told and "not this one" in told[0]

    def wrong(way, net, x, view=None):
        return Choice("folded", nn.Sequential(copy.deepcopy(student.net), nn.Softmax(1)), way="folded")

    monkeypatch.setattr(module, "made", wrong)
    told.clear()
    student.searches = Searches("folded", tell=told.append)
    found = attacked(student)
    student.searches = None
    assert torch.equal(found, attacked(student)) and "off" in told[0]


def test_train_mode_searches_use_the_net(catalog: Catalog) -> None:
    student = student_of(catalog)
    student.searches = Searches("folded")
    with student.attacked("adv", "frozen") as probe:
        probe(X)
    assert student.searches.choices() == []


def test_a_refreshed_copy_allocates_no_new_weights(catalog: Catalog) -> None:
    net = student_of(catalog).net
    twin = Twin(net, X[:2])
    before = [p.data_ptr() for p in twin.net.parameters()]
    train(net, 1)
    twin.refresh()
    assert [p.data_ptr() for p in twin.net.parameters()] == before
    assert not any(p.requires_grad for p in twin.net.parameters())


def test_long_runs_compile(catalog: Catalog, monkeypatch) -> None:
    """With a compiler of one's own: torch's takes long, and may be missing."""
    student = student_of(catalog)
    compiled: list[Any] = []

    def compiler(net, dynamic):
        def fast(x):
            compiled.append(tuple(x.shape))
            return net(x)

        return fast

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(module, "SHORT", 0)
    monkeypatch.setattr(module, "forward_effort", lambda net, x: 1.0)
    monkeypatch.setattr(module, "choose", lambda net, x, **k: replace(made("folded", net, x), seconds=0.1))
    monkeypatch.setattr(choosing, "race", lambda tries, budget: [1.0, 0.5])
    kept: dict[str, Any] = {}
    short = Searches("auto", queries=300)
    monkeypatch.setattr(module, "LONG", 300 * 24 * 0.1 + 1)
    close(student, short)
    assert short.choices() == ["folded"] and not compiled
    long = Searches("auto", queries=400, keep=kept.__setitem__)
    close(student, long)
    assert long.choices() == ["folded, compiled, 2.0 times as fast"] and set(compiled) == {(24, 3, 16, 16)}
    assert next(iter(kept.values()))["compiled"] == 24
    compiled.clear()
    again = Searches("auto", queries=400, recall=kept.get)
    train(student.net, 1)
    close(student, again)
    assert again.choices() == ["folded, compiled"] and compiled

    def missing(net, dynamic):
        def fast(x):
            raise RuntimeError("no compiler here\nand more")

        return fast

    monkeypatch.setattr(torch, "compile", missing)
    told: list[str] = []
    without = Searches("auto", queries=400, tell=told.append)
    close(student, without)
    assert without.choices() == ["folded"] and "compiled: no compiler here" in told


def test_a_teacher_in_a_long_run_is_fused_and_nothing_is_measured(catalog: Catalog, monkeypatch) -> None:
    def never(*anything: Any, **more: Any) -> Any:
        raise AssertionError("a gradient was timed")

    monkeypatch.setattr(module, "choose", never)
    teacher = NetTeacher(student_of(catalog).net, "robust")
    expected = teacher.logits(X).detach()
    kept: dict[str, Any] = {}
    teacher.searches = Searches("auto", queries=1000, forwards=True, recall=kept.get, keep=kept.__setitem__)
    assert torch.equal(teacher.logits(X), expected) and teacher.searches.choices() == ["plain"], "a short run"
    monkeypatch.setattr(module, "SHORT", 0)
    for _ in range(2):  # the second recalls
        again = NetTeacher(teacher.net, "robust")
        again.searches = Searches("auto", queries=10**6, forwards=True, recall=kept.get, keep=kept.__setitem__)
        x = X.clone().requires_grad_()
        found = again.logits(x)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
        assert torch.autograd.grad(found.sum(), x)[0].any(), "differentiable by the images"
        assert again.searches.choices() == ["folded, fused"]
    assert len(kept) == 2 and not teacher.net.training
    plain = NetTeacher(teacher.net, "robust")
    plain.searches = Searches("plain")
    assert torch.equal(plain.logits(X), expected)
