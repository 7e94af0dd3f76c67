"""A faster copy is the same function, and a search on it counts nothing that the net itself does not confirm."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from rkd.core.step import AttackPlan
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.engine import choose as module
from rkd.engine.backends import Choice, Precision, made
from rkd.engine.choose import FEWEST, PIECES, Engine, candidates, choose
from rkd.engine.measure import gradient
from rkd.evaluation.evaluate import evaluate
from rkd.nets.cpu_bfloat16 import packs
from rkd.nets.net import Net
from rkd.plugins.attacks.apgd import ApgdCe
from rkd.plugins.attacks.fab import FabT
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.square import Square
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import Catalog
from rkd.testing import tiny_batch, tiny_net, untouched

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)
X = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net_of(catalog: Catalog, name: str = "resnet8") -> Net:
    net = Net(catalog.create("model", name, {})((3, 16, 16), 10), [0.5] * 3, [0.25] * 3)
    net.train()
    net(X)
    return net.eval()


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "wrn10-1"])
def test_every_candidate_is_the_same_function(catalog: Catalog, name: str) -> None:
    net = net_of(catalog, name)
    expected = net(X).detach()
    with untouched(net):
        found = [one for precision in get_args(Precision) for one in candidates(net, X, precision)]
    # Three in float32, and three in each reduced precision or, on a processor that cannot, two. With its ends in
    # float32 the fused one alone, if the net is one that can be read as a tape.
    inside = 1 if any(one.tape for one in found) else 3
    assert len(found) == (6 + inside if packs() else 7)
    for label, twin, exact in ((c.name, c.net, c.exact) for c in found):
        apart = float((twin(X).detach() - expected).abs().max() / expected.abs().max())
        assert apart < (1e-5 if exact else 0.05), label
        assert twin(X).dtype == torch.float32
        assert ("bfloat16" in label) is not exact


def test_the_choice_is_the_fastest_and_leaves_the_net_as_it_was(catalog: Catalog, monkeypatch) -> None:
    net = net_of(catalog)
    times: dict[int, float] = {}

    def race(tries, budget):
        if len(tries) == 2:  # the net against its best copy
            return [1.0, min(times.values(), default=1.0)]
        return [times.get(place, 1.0) for place in range(len(tries))]

    monkeypatch.setattr(module, "race", race)
    for place in range(1, 4):
        times.clear()
        times[place] = 0.5
        told: list[str] = []
        with untouched(net):
            chosen = choose(net, X, tell=told.append)
        assert chosen.speedup == 2 and chosen.net is not net
        assert len(told) == 5, told  # the net and its copies, and the best against the net
    times.clear()
    assert choose(net, X).net is net, "nothing is faster: the net as it is"
    times[1] = 0.99
    assert choose(net, X).net is net, "as good as nothing"


def test_a_copy_that_is_another_function_is_refused(monkeypatch) -> None:
    net = tiny_net()
    x = tiny_batch().x
    wrong = nn.Sequential(net, nn.Softmax(1))
    broken = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    found = [Choice("wrong", wrong), Choice("broken", broken)]
    monkeypatch.setattr(module, "candidates", lambda net, x, precision, view: found)
    told: list[str] = []
    assert choose(net, x, tell=told.append).net is net
    assert "off" in told[0] and told[1].startswith("broken:")


def test_the_engine_serves_searches_that_confirm(catalog: Catalog, monkeypatch) -> None:
    net = net_of(catalog)
    fast = Choice("fast", nn.Identity(), speedup=2.0, exact=False)
    calls = []
    monkeypatch.setattr(module, "choose", lambda *a, **k: calls.append(a) or fast)
    engine = Engine()
    assert engine.choice(net, ApgdCe(), X, batches=10).net is fast.net
    assert engine.choice(net, Square(), X, batches=10).net is fast.net
    assert len(calls) == 1, "measured once"
    assert engine.choice(net, Pgd(steps=1000), X, batches=10) is None, "PGD confirms nothing"
    assert engine.choice(net, ApgdCe(mode="frozen"), X, batches=10) is None, "another function in that mode"
    assert Engine().choice(net, ApgdCe(steps=5), X, batches=1) is None, "over before measuring has paid"


def test_reduced_precision_has_to_be_asked_for(catalog: Catalog, monkeypatch) -> None:
    net = net_of(catalog)
    asked = []
    monkeypatch.setattr(
        module, "choose", lambda net, x, **k: asked.append(k.get("precision", "float32")) or Choice("plain", net)
    )
    monkeypatch.setattr(module, "followed", lambda *a: None)  # which would hang on measured times
    assert Engine().choice(net, ApgdCe(), X, batches=10) is None
    Engine(bfloat16=True).choice(net, ApgdCe(), X, batches=10)
    assert asked == ["float32", "float32", "bfloat16 inside"]


@pytest.mark.skipif(not packs(), reason="a processor for which oneDNN packs no bfloat16")
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2"])
def test_with_both_ends_in_float32_nothing_small_is_lost(catalog: Catalog, name: str) -> None:
    net = net_of(catalog, name)
    inside = made("folded, bfloat16 inside, fused", net, X).net
    whole = made("folded, bfloat16, fused", net, X).net
    assert len(inside(X).unique()) > len(whole(X).unique()), "logits are not rounded to eight bits"
    near = X + 2**-13  # a change below bfloat16's digits
    assert torch.equal(whole(near), whole(X)) or (inside(near) - inside(X)).abs().max() > 0
    expected, found = gradient(net, X)[1], gradient(inside, X)[1]
    assert found.dtype == torch.float32
    similar = torch.nn.functional.cosine_similarity(expected.flatten(1), found.flatten(1))
    assert similar.median() > 0.95


class Heard(nn.Module):
    """A copy that counts how often it is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.count = net, 0

    def forward(self, x):
        self.count += len(x)
        return self.net(x)


SEARCHES = {"apgd-ce": ({"gradient"}, ApgdCe(steps=5)), "square": ({"forward"}, Square(queries=20)),
            "fab-t": ({"gradient", "forward"}, FabT(steps=5, targets=2))}  # fmt: skip


@pytest.mark.parametrize("can", ["gradient", "forward"])
@pytest.mark.parametrize("attack", SEARCHES)
def test_only_searches_that_can_run_in_reduced_precision(attack: str, can: str, monkeypatch) -> None:
    """Each with its own parts, and counts the questions there too."""
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        split = ArraySplit(x, net.eval()(x).argmax(1))
    fine, rough = Heard(net), Heard(net)
    chosen = Choice("fine", fine, speedup=2.0, rough={can: Choice("rough", rough, speedup=3.0, exact=False)})
    monkeypatch.setattr(module, "WORTH", 0)
    monkeypatch.setattr(module, "choose", lambda net, x, **k: chosen)
    monkeypatch.setattr(module, "followed", lambda *a: None)
    needs, search = SEARCHES[attack]
    plans = {"it": AttackPlan(search, ce)}
    found = evaluate(net, split, plans, threat=THREAT, engine=Engine()).outcomes["it"]
    assert (rough.count > 0) is (can in needs)
    assert (fine.count > 0) is (needs != {can}), "fab-t looks in float32 where it is near"
    assert found.about["engine"] == f"fine, 2.0 times as fast; {can}: rough, 3.0 times as fast"
    plain = evaluate(net, split, plans, threat=THREAT).outcomes["it"]
    assert found.forwards == plain.forwards and found.backwards == plain.backwards


@pytest.mark.parametrize(
    ("gradient", "window", "parts"),
    [(1.0, 1.0, []), (0.5, 1.0, ["gradient"]), (1.0, 0.5, ["forward"]), (0.5, 0.5, ["gradient", "forward"])],
)
def test_reduced_precision_serves_where_it_is_faster(
    gradient: float, window: float, parts: list[str], monkeypatch
) -> None:
    net = tiny_net().eval()
    seconds = {"float32": 1.0, "bfloat16 inside": gradient}

    def chosen(net, x, *, precision="float32", shrinking, tell):
        assert shrinking, "samples leave"
        return Choice(precision, nn.Identity(), seconds=seconds[precision])

    monkeypatch.setattr(module, "choose", chosen)
    monkeypatch.setattr(module, "followed", lambda *a: None)
    monkeypatch.setattr(module, "asking", lambda choices, x: [1.0, window])
    found = Engine(bfloat16=True).choice(net, ApgdCe(), tiny_batch(4).x, batches=10)
    assert list(found.rough) == parts
    assert all(way.name == "bfloat16 inside" for way in found.rough.values())


def test_pieces_of_batches_that_shrink_have_to_be_clearly_faster(catalog: Catalog, monkeypatch) -> None:
    """They will be split into smaller ones than were measured."""
    net, x = net_of(catalog), X.repeat(3, 1, 1, 1)
    assert len(x) > PIECES[1]

    def race(tries, budget):
        return [{PIECES[1]: 0.97}.get(len(some), 1.0) * (2.0 if one is net else 1.0) for one, some in tries]

    monkeypatch.setattr(module, "race", race)
    assert choose(net, x).net.piece == PIECES[1]
    assert not hasattr(choose(net, x, shrinking=True).net, "piece")


@pytest.mark.parametrize(("slow", "few"), [(0.0, FEWEST), (1e9, PIECES[0])])
def test_copies_of_a_slow_net_are_compared_on_few_images(slow: float, few: int, catalog: Catalog, monkeypatch) -> None:
    counts: list[set[int]] = []

    def race(tries, budget):
        counts.append({len(some) for _, some in tries})
        return [1.0] * len(tries)

    monkeypatch.setattr(module, "SLOW", slow)
    monkeypatch.setattr(module, "race", race)
    choose(net_of(catalog), X.repeat(3, 1, 1, 1))
    assert counts[0] == {few} and max(counts[1]) == 48, "the best of them on all"


class Liar(nn.Module):
    """A copy that takes every image for fooled."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return -self.net(x)


@pytest.mark.parametrize("attack", [ApgdCe(steps=5), Square(queries=20)])
def test_nothing_is_counted_that_the_net_itself_does_not_confirm(attack, monkeypatch) -> None:
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        split = ArraySplit(x, net.eval()(x).argmax(1))
    plans = {"it": AttackPlan(attack, ce)}
    monkeypatch.setattr(module, "WORTH", 0)
    monkeypatch.setattr(module, "choose", lambda net, x, **k: Choice("liar", Liar(net), speedup=2.0, exact=False))
    lied_to = evaluate(net, split, plans, threat=ThreatModel("Linf", 1e-4, 1e-4), engine=Engine())
    assert lied_to.accuracy("it") == 1, "at so small a radius nothing falls"
    assert lied_to.outcomes["it"].about["engine"] == "liar, 2.0 times as fast"
    plain = evaluate(net, split, plans, threat=THREAT)
    assert plain.accuracy("it") < 1
    assert plain.outcomes["it"].about["engine"] == "plain"


def test_the_verdict_is_the_plain_nets(catalog: Catalog, monkeypatch) -> None:
    """Each copy in turn, also those in bfloat16."""
    net = net_of(catalog)
    with torch.no_grad():
        split = ArraySplit(X, net(X).argmax(1))
    plans = {"apgd": AttackPlan(ApgdCe(steps=10), ce)}
    monkeypatch.setattr(module, "WORTH", 0)
    plain = evaluate(net, split, plans, threat=ThreatModel("Linf", 1 / 255, 1 / 255))
    assert 0 < plain.accuracy("apgd") < 1
    for choice in [one for precision in get_args(Precision) for one in candidates(net, X, precision)]:
        label, exact = choice.name, choice.exact
        monkeypatch.setattr(module, "choose", lambda net, x, choice=choice, **k: choice)
        with untouched(net):
            found = evaluate(net, split, plans, threat=ThreatModel("Linf", 1 / 255, 1 / 255), engine=Engine())
        assert (found.attacks["apgd"] ^ plain.attacks["apgd"]).sum() <= (0 if exact else 1), label


def test_of_a_net_in_bfloat16_only_copies_in_bfloat16(catalog: Catalog) -> None:
    net = net_of(catalog)
    net.autocast = torch.bfloat16
    found = candidates(net, X, "bfloat16")
    assert len(found) == (3 if packs() else 2) and not any(choice.exact for choice in found)
    assert not candidates(net, X, "float32")
