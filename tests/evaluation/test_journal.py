"""A killed evaluation goes on where it was, and ends as if it had not been killed."""

from __future__ import annotations

import copy
import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rkd.core.attack import PlainProbe
from rkd.core.errors import RkdError
from rkd.core.step import AttackPlan
from rkd.core.traits import AttackTraits
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.evaluate import _fingerprint, evaluate
from rkd.evaluation.journal import MONTH, Journal, fingerprint
from rkd.evaluation.result import Evaluation
from rkd.evaluation.samples import EvalSettings
from rkd.nets.net import PLAIN, Accelerator, Net, Outputs
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.testing import TinyNet, tiny_batch, tiny_net

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)


class Killed(BaseException):
    pass


class Counting(Pgd):
    """PGD that is killed at its `last`-th batch."""

    calls = 0
    last = 10**9

    def __call__(self, x, target):
        type(self).calls += 1
        if type(self).calls > type(self).last:
            raise Killed
        return super().__call__(x, target)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Counting.calls, Counting.last = 0, 10**9


def run(net, split, journal: Journal | None, **settings) -> Evaluation:
    plans = {
        "a": AttackPlan(Counting(steps=3, start="uniform"), ce),
        "b": AttackPlan(Counting(steps=5, start="uniform"), ce),
    }
    return evaluate(net, split, plans, EvalSettings(threat=THREAT, batch_size=8, journal=journal, **settings))


def setting():
    net = tiny_net()
    x = tiny_batch(40, seed=4).x
    with torch.no_grad():
        return net, ArraySplit(x, net.eval()(x).argmax(1))


def numbers(result: Evaluation) -> dict:
    return {k: v for k, v in result.summary().items() if k not in ("seconds", "searches")}


@pytest.mark.slow
@pytest.mark.parametrize("last", [0, 3, 7])
def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, last: int) -> None:
    net, split = setting()
    whole = run(net, split, None, rounded=True, examples=4)
    calls = Counting.calls
    assert calls == 10
    Counting.calls, Counting.last = 0, last
    with pytest.raises(Killed):
        run(net, split, Journal(tmp_path), rounded=True, examples=4)
    Counting.calls, Counting.last = 0, 10**9
    again = run(net, split, Journal(tmp_path), rounded=True, examples=4)
    assert Counting.calls == calls - last, "what the journal holds is not done again"
    assert numbers(again) == numbers(whole)
    for name, outcome in whole.outcomes.items():
        assert torch.equal(outcome.right, again.outcomes[name].right)
        assert (outcome.forwards, outcome.backwards) == (again.outcomes[name].forwards, again.outcomes[name].backwards)
    assert torch.equal(whole.gallery.adversarial, again.gallery.adversarial)


@pytest.mark.slow
def test_another_evaluation_takes_nothing_from_it(tmp_path: Path) -> None:
    net, split = setting()
    run(net, split, Journal(tmp_path))
    for change in ({"seed": 1}, {"examples": 3}, {"rounded": True}, {"limit": 20}):
        Counting.calls = 0
        run(net, split, Journal(tmp_path), **change)
        assert Counting.calls > 0, change
    with torch.no_grad():
        net.arch.head.bias[0] += 0.01
    Counting.calls = 0
    run(net, split, Journal(tmp_path))
    assert Counting.calls > 0, "other weights"


def test_a_broken_file_is_done_again(tmp_path: Path) -> None:
    net, split = setting()
    whole = run(net, split, Journal(tmp_path))
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(b"torn")
    files[-1].write_bytes(files[-1].read_bytes()[:-5])
    Counting.calls = 0
    again = run(net, split, Journal(tmp_path))
    assert numbers(again) == numbers(whole)


def test_close_takes_it_away_and_leaves_others(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    first.open("one")
    second.open("two")
    first.write("x", 0, {"right": torch.ones(2)})
    second.write("x", 0, {"right": torch.ones(2)})
    first.close()
    assert second.read("x", 0) is not None
    second.close()
    assert not (tmp_path / "j").exists()


def test_one_journal_for_several_evaluations(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    for name, value in (("one", 1.0), ("two", 2.0)):
        journal.open(name)
        journal.write("x", 0, {"right": torch.tensor([value])})
    journal.open("one")
    assert journal.read("x", 0)["right"].item() == 1
    other.open("three")
    journal.close()
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["three"], "both of its own are gone"


def test_old_ones_are_forgotten_when_one_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "j"
    names = {what: fingerprint(what) for what in ("old", "young", "resumed", "mine")}
    for name in list(names.values())[:3]:
        journal = Journal(root)
        journal.open(name)
        journal.write("x", 0, {"right": torch.ones(2)})
    (root / "notes").mkdir()
    (root / "0123456789abcdef0123456789abcdef.lock").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    link = root / fingerprint("link")
    link.symlink_to(outside)
    long_ago = time.time() - 2 * MONTH
    for path in [*root.iterdir(), outside]:
        if path.name != names["young"]:
            os.utime(path, (long_ago, long_ago))
    Journal(root).open(names["resumed"])  # without `kept` nothing goes, and it is new again
    assert (root / names["old"]).is_dir()
    mine = Journal(root, kept=MONTH)
    mine.open(names["mine"])
    left = {
        names["young"],
        names["resumed"],
        names["mine"],
        "notes",
        "0123456789abcdef0123456789abcdef.lock",
        link.name,
    }
    assert {path.name for path in root.iterdir()} == left and outside.is_dir()
    resumed = Journal(root, kept=MONTH)
    resumed.open(names["resumed"])
    assert resumed.read("x", 0) is not None


def test_a_pruned_evaluation_goes_on(tmp_path: Path) -> None:
    """Another process may take the folder away in the very moment that it is opened."""
    journal = Journal(tmp_path / "j")
    journal.open("one")
    journal.path.rmdir()
    assert journal.read("x", 0) is None
    journal.write("x", 0, {"right": torch.ones(2)})
    assert journal.read("x", 0) is not None


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.open("one")
    journal.write("../../out", 0, {"right": torch.ones(2)})
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "j" / "one"}


def test_no_place_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RkdError, match="cannot make the folder"):
        Journal(tmp_path / "file").open("one")


def test_fingerprint() -> None:
    one = torch.ones(3)
    assert fingerprint("a", one) == fingerprint("a", one.clone())
    others = [fingerprint("a", torch.ones(2)), fingerprint("a", one.double()), fingerprint("b", one), fingerprint("a")]
    assert fingerprint("a", one) not in others and len(set(others)) == 4


class Copies:
    """An accelerator that runs copies of the net, and calls them so."""

    def __init__(self, name: str, called: str) -> None:
        self.name, self.called = name, called

    @contextmanager
    def probe(self, net, view, plain):
        yield PlainProbe(copy.deepcopy(net))

    def choices(self) -> list[str]:
        return [self.called]


def with_engine(net, split, journal: Journal, accelerator: Accelerator) -> str:
    attack = Counting(steps=3, start="uniform")
    attack.traits = AttackTraits(confirms=True)  # it takes a faster copy of the net
    plans = {"a": AttackPlan(attack, ce)}
    result = evaluate(
        net, split, plans, EvalSettings(threat=THREAT, batch_size=8, journal=journal, accelerator=accelerator)
    )
    return result.summary()["searches"]["a"]["engine"]


@pytest.mark.slow
def test_the_engine_is_remembered(tmp_path: Path) -> None:
    net, split = setting()
    assert with_engine(net, split, Journal(tmp_path), Copies("auto", "copied")) == "copied"
    calls = Counting.calls
    assert with_engine(net, split, Journal(tmp_path), Copies("auto", "copied")) == "copied"
    assert Counting.calls == calls > 0, "all of it from the journal"
    assert with_engine(net, split, Journal(tmp_path), PLAIN) == "plain", "another setting is another evaluation"
    assert with_engine(net, split, Journal(tmp_path), Copies("bfloat16", "other")) == "other"
    one = next(path for path in sorted(tmp_path.rglob("*.safetensors")) if b"copied" in path.read_bytes())
    one.unlink()
    found = with_engine(net, split, Journal(tmp_path), Copies("auto", "otherwise"))
    assert set(found.split("; ")) == {"copied", "otherwise"}, "both ways that it ran"


def test_an_evaluation_with_another_normalisation_or_order_of_classes_is_another() -> None:
    def name(net: torch.nn.Module) -> str:
        batch = tiny_batch(count=4)
        split = ArraySplit(batch.x, batch.y)
        return _fingerprint(net, split, torch.arange(4), {}, EvalSettings(ThreatModel("Linf", 0.1, 0.02), classes=4))

    arch = TinyNet()
    nets = [Net(arch), Net(arch, (0.5,)), Net(arch, (0.0,), (0.5,))]
    nets += [Net(torch.nn.Sequential(arch, Outputs(order))) for order in ([0, 1, 2, 3], [1, 0, 2, 3])]
    assert len({name(net) for net in nets}) == 5 and name(Net(arch)) == name(nets[0])
