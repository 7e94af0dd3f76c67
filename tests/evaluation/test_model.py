"""Nets that rule classes out by logits of -inf, whose gradients lead nowhere, or that lose a batch of one image."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import rkd
from rkd.core.errors import RkdError
from rkd.core.step import AttackPlan
from rkd.core.traits import traits_of
from rkd.core.types import ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.corruptions import corrupted_accuracy
from rkd.evaluation.evaluate import evaluate, rehearse
from rkd.evaluation.model import BELOW, prepare_model
from rkd.evaluation.samples import EvalSettings
from rkd.evaluation.selfcheck import quick_checks
from rkd.evaluation.transfer import transfer_matrix
from rkd.plugins.attacks.apgd import ApgdDlr
from rkd.plugins.attacks.transfer import Transfer
from rkd.plugins.objectives.ce import ce
from rkd.registry.catalog import Catalog, load_catalog
from rkd.testing import tiny_batch, tiny_net, untouched

THREAT = ThreatModel("Linf", 8 / 255, 2 / 255)
CLASSES = 6
ATTACKS = {
    "square": {"queries": 60}, "cw-l2": {"steps": 30, "searches": 2}, "autoattack": {"steps": 10, "queries": 30},
    "autoattack+": {"steps": 10, "queries": 30, "restarts": 2},
    "autoattack-reference": {"queries": 30}, "transfer": None, "cw": {"steps": 5}, "cw-30": {}, "jsma": {},
    "pgd-joint": None, "sigma-zero": None, "ddn": {"steps": 30}, "fmn": {"steps": 30},
}  # fmt: skip
"""Options that make them quick; `transfer` has a test of its own, and `pgd-joint` asks a teacher,
`sigma-zero` knows no ball of Linf."""
NAMES = sorted(name for name in load_catalog().names("attack") if ATTACKS.get(name, {}) is not None)


class Masked(nn.Module):
    """A net that never says one of the classes `out`."""

    def __init__(self, out: tuple[int, ...] = (1, 4), value: float = -torch.inf) -> None:
        super().__init__()
        self.net = tiny_net(classes=CLASSES, seed=3).eval()
        self.out, self.value = list(out), value

    def forward(self, x):
        logits = self.net(x).clone()
        logits[:, self.out] = self.value
        return logits


class Without(Masked):
    """The same net, which does not have these classes at all."""

    def forward(self, x):
        kept = [k for k in range(CLASSES) if k not in self.out]
        return self.net(x)[:, kept]


def images(count: int = 12) -> torch.Tensor:
    return tiny_batch(count, seed=4).x


def split(net: nn.Module) -> ArraySplit:
    with torch.no_grad():
        return ArraySplit(images(), net(images()).argmax(1))


def plan(name: str, catalog: Catalog) -> AttackPlan:
    search = catalog.create("attack", name, ATTACKS.get(name) or {})
    return AttackPlan(search, catalog.create("objective", traits_of(search).objective))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_attack_does_what_it_does_without_these_classes(name: str, norm: str, catalog: Catalog) -> None:
    threat = THREAT if norm == "Linf" else ThreatModel("L2", 0.3, 0.1)
    net, other = Masked().eval(), Without().eval()
    with untouched(net):
        found = evaluate(net, split(net), {"it": plan(name, catalog)}, EvalSettings(threat=threat))
    wanted = evaluate(other, split(other), {"it": plan(name, catalog)}, EvalSettings(threat=threat))
    assert found.accuracy() == 1
    assert not torch.isin(found.outcomes["it"].prediction, torch.tensor(net.out)).any()
    assert "not-numbers" not in {doubt.check for doubt in found.warnings}
    # The reference's random numbers are those of a batch, and its targets one after the other: not the same search.
    assert (found.attacks["it"] != wanted.attacks["it"]).sum() <= (2 if name == "autoattack-reference" else 0)
    assert torch.allclose(found.outcomes["clean"].margin, wanted.outcomes["clean"].margin)
    json.dumps(found.summary(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("out", [(0, 1, 2), (0, 1, 2, 3)], ids=["three left", "two left"])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "deepfool"])
def test_few_classes_left(name: str, out: tuple[int, ...], catalog: Catalog) -> None:
    """Then the ratio of logits has a huge number below the line."""
    net, other = Masked(out).eval(), Without(out).eval()
    found = evaluate(net, split(net), {"it": plan(name, catalog)}, EvalSettings(threat=THREAT))
    wanted = evaluate(other, split(other), {"it": plan(name, catalog)}, EvalSettings(threat=THREAT))
    assert (found.attacks["it"] != wanted.attacks["it"]).sum() <= 1


@pytest.mark.slow
def test_a_low_number_is_as_good() -> None:
    """Probabilities, confidence and calibration are those of a net with -1e4 there."""
    net, low = Masked().eval(), Masked(value=-1e4).eval()
    pair = (images(), split(low).labels)
    found, wanted = (rkd.evaluate(each, pair, ["pgd-sat"], eps=8 / 255, checks="full") for each in (net, low))
    assert torch.equal(found.outcomes["clean"].confidence, wanted.outcomes["clean"].confidence)
    assert found.summary()["calibration"] == wanted.summary()["calibration"]
    assert [doubt.check for doubt in found.warnings] == [doubt.check for doubt in wanted.warnings]


@pytest.mark.slow
def test_other_evaluations(catalog: Catalog) -> None:
    net = Masked().eval()
    data = split(net)
    rehearse(net, data, {"apgd-t": plan("apgd-t", catalog)}, EvalSettings(threat=THREAT))
    matrix = transfer_matrix(
        {"a": net, "b": Masked((5,)).eval()}, data, plan("apgd-dlr", catalog), EvalSettings(threat=THREAT)
    )
    assert matrix["clean"]["a"] == 1 and matrix["accuracy"]["a"]["a"] < 1
    noise = {"gaussian-noise": catalog.create("corruption", "gaussian-noise")}
    assert 0 < corrupted_accuracy(net, data, noise)["mean"] <= 1
    assert not {doubt.check for doubt in quick_checks(net, data, EvalSettings(threat=THREAT))} & {
        "nan-gradient",
        "stochastic",
    }


@pytest.mark.slow
def test_a_source_of_transferred_images() -> None:
    """Its -inf must not look like a success, or nothing would be searched for."""

    def made_on(source: nn.Module) -> torch.Tensor:
        attack = Transfer("another net")
        attack._net, attack._search = source, ApgdDlr(steps=10)
        return evaluate(net, split(net), {"it": AttackPlan(attack, ce)}, EvalSettings(threat=THREAT)).attacks["it"]

    net = Masked(()).eval()
    assert torch.equal(made_on(Masked().eval()), made_on(Masked(value=-1e4).eval()))


def test_what_is_replaced() -> None:
    net = Masked((1, 4)).eval()
    logits, raw = prepare_model(net, images())(images()), net(images())
    lowest = raw[:, [0, 2, 3, 5]].amin(1)
    assert torch.equal(logits[:, [0, 2, 3, 5]], raw[:, [0, 2, 3, 5]])
    assert torch.equal(logits[:, 1], lowest - BELOW) and torch.equal(logits[:, 4], lowest - BELOW)
    sound = Masked(()).eval()
    assert prepare_model(sound, images()) is sound


class Odd(Masked):
    """Puts another number than -inf into row 3 of a class, or in a class that is not ruled out."""

    def __init__(self, column: int, value: float, rows: slice = slice(3, 4)) -> None:
        super().__init__((1, 4))
        self.column, self.odd, self.rows = column, value, rows

    def forward(self, x):
        logits = super().forward(x)
        logits[self.rows, self.column] = self.odd
        return logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [1, 2])
def test_other_numbers_that_are_none_are_refused_as_ever(column: int, value: float) -> None:
    net = Odd(column, value).eval()
    with pytest.raises(RkdError, match="NaN or infinity"):
        evaluate(net, ArraySplit(images(), torch.zeros(12, dtype=torch.int64)), settings=EvalSettings(threat=THREAT))


def test_a_class_ruled_out_for_some_images_is_refused_with_a_way_out() -> None:
    net = Odd(2, -torch.inf, slice(9, 11)).eval()
    with pytest.raises(RkdError, match=r"-inf for 2 of 12 clean images \(class 2\): .*low finite logit"):
        evaluate(net, ArraySplit(images(), torch.zeros(12, dtype=torch.int64)), settings=EvalSettings(threat=THREAT))


def test_a_net_that_says_nothing_at_all_is_refused() -> None:
    net = Masked(tuple(range(CLASSES))).eval()
    with pytest.raises(RkdError, match="-inf for 12 of 12 clean images"):
        evaluate(net, ArraySplit(images(), torch.zeros(12, dtype=torch.int64)), settings=EvalSettings(threat=THREAT))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_infinities_under_attack_still_count_as_wrong(value: float, catalog: Catalog) -> None:
    """Of a class that is not ruled out, and of all classes at once."""

    class Breaks(Masked):
        def __init__(self, columns: slice) -> None:
            super().__init__((1, 4))
            self.columns = columns

        def forward(self, x):
            logits = super().forward(x)
            moved = ~torch.isclose(x.flatten(1).unsqueeze(1), images().flatten(1)).all(2).any(1)
            logits[moved, self.columns] = value
            return logits

    for columns in (slice(2, 3), slice(0, CLASSES)):
        net = Breaks(columns).eval()
        found = evaluate(net, split(Masked().eval()), {"fgsm": plan("fgsm", catalog)}, EvalSettings(threat=THREAT))
        assert (found.accuracy(), found.accuracy("fgsm")) == (1, 0)
        assert "not-numbers" in {doubt.check for doubt in found.warnings}


class Nowhere(torch.autograd.Function):
    """As quantised layers: what comes out looks as if it had a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(classes=CLASSES, seed=3).eval()

    def forward(self, x):
        return Nowhere.apply(self.net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_runs_on_a_net_whose_gradients_lead_nowhere(name: str, catalog: Catalog) -> None:
    net = Quantised().eval()
    with untouched(net):
        found = evaluate(net, split(net), {"it": plan(name, catalog)}, EvalSettings(threat=THREAT))
        doubts = quick_checks(net, split(net), EvalSettings(threat=THREAT))
    assert found.accuracy() == 1
    assert "zero-gradient" in {doubt.check for doubt in doubts}


def test_a_net_that_takes_no_gradients_at_all_is_refused_by_whoever_needs_them(catalog: Catalog) -> None:
    with torch.inference_mode():
        net = tiny_net(classes=CLASSES, seed=3).eval()
    assert evaluate(net, split(net), {}, EvalSettings(threat=THREAT)).accuracy() == 1
    with pytest.raises(RkdError, match="inference_mode"):
        evaluate(net, split(net), {"fgsm": plan("fgsm", catalog)}, EvalSettings(threat=THREAT))


class InNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(classes=CLASSES, seed=3).eval()

    def forward(self, x):
        return torch.from_numpy(self.net(x).numpy())


class Reentrant(InNumpy):
    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize(("kind", "said"), [(InNumpy, r"numpy\(\)"), (Reentrant, "use_reentrant=False")])
def test_a_net_that_gives_no_gradient_is_attacked_without_or_not_at_all(kind: type, said: str, engine: str) -> None:
    net = kind().eval()
    x, y = images(), net.net(images()).argmax(1)
    with pytest.raises(RkdError, match=f"no gradient by its images: .*{said}.* square, noise, transfer"):
        rkd.evaluate(net, (x, y), ["fgsm"], eps=0.1, engine=engine)
    for checks in ("quick", "full"):
        found = rkd.evaluate(net, (x, y), ["square"], eps=0.1, engine=engine, checks=checks, classes=CLASSES)
        assert found.accuracy("square") < found.accuracy() == 1
        assert "no-gradient" in {doubt.check for doubt in found.warnings}
    assert net.net(x).requires_grad, "nothing is left frozen"


def test_a_net_that_loses_a_batch_of_one_image_is_refused() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net(classes=CLASSES, seed=3)

        def forward(self, x):
            return self.net(x).squeeze()

    with pytest.raises(RkdError, match=r"returned \(6,\) for 1 image, but \(8, 6\) for 8: a squeeze\(\)"):
        prepare_model(Squeezed().eval(), images())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_runs_where_new_tensors_are_of_another_type(name: str, norm: str, catalog: Catalog) -> None:
    threat = THREAT if norm == "Linf" else ThreatModel("L2", 0.3, 0.1)
    net = Masked(()).eval()
    pair = split(net)
    torch.set_default_dtype(torch.float64)
    try:
        found = evaluate(net, pair, {"it": plan(name, catalog)}, EvalSettings(threat=threat))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.accuracy() == 1


def test_a_net_that_returns_more_than_its_logits() -> None:
    """As Hugging Face's do: the numbers are those of the logits."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_net()

        def forward(self, x: torch.Tensor) -> dict:
            return {"logits": self.inner(x), "hidden_states": (x,)}

    batch = tiny_batch(12)
    net = Named().eval()
    named = rkd.evaluate(net, (batch.x, batch.y), ["fgsm"], threat=THREAT, checks="off")
    plain = rkd.evaluate(net.inner, (batch.x, batch.y), ["fgsm"], threat=THREAT, checks="off")
    assert named.summary()["attacks"] == plain.summary()["attacks"]
