"""The transfer matrix against the evaluation, a plain loop and nets for which the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rkd.core.errors import DataError, Refused, RkdError
from rkd.core.random import key
from rkd.core.step import AttackPlan, Step
from rkd.core.types import Batch, ThreatModel
from rkd.data.dataset import ArraySplit
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.samples import EvalSettings, choose_samples
from rkd.evaluation.transfer import identity, transfer_matrix
from rkd.nets.net import Net
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.fgsm import Fgsm
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.objectives.ce import ce
from rkd.testing import LinearNet, tiny_batch, tiny_net, untouched

THREAT = ThreatModel("Linf", 16 / 255, 4 / 255)
PLAN = AttackPlan(Pgd(steps=4, start="uniform"), ce)
COUNT = 40


def nets() -> dict[str, Net]:
    return {"a": tiny_net(seed=0).eval(), "b": tiny_net(seed=1).eval(), "c": tiny_net(LinearNet, seed=2).eval()}


def split() -> ArraySplit:
    """Images whose labels are one net's answers and another's by turns: each is right on some and wrong on some."""
    x = tiny_batch(COUNT, seed=4).x
    with torch.no_grad():
        first, second = (net(x).argmax(1) for net in list(nets().values())[:2])
    return ArraySplit(x, torch.where(torch.arange(COUNT) % 2 == 0, first, second))


def test_the_diagonal_is_the_evaluation() -> None:
    data = split()
    found = transfer_matrix(nets(), data, PLAN, EvalSettings(threat=THREAT, seed=3, batch_size=16), name="pgd-sat")
    assert found["samples"] == COUNT
    assert found["attack"] == "pgd-sat"
    for name, net in nets().items():
        alone = evaluate(net, data, {"pgd-sat": PLAN}, EvalSettings(threat=THREAT, seed=3, batch_size=7))
        assert found["clean"][name] == alone.accuracy()
        assert found["accuracy"][name][name] == alone.accuracy("pgd-sat")
    assert any(found["accuracy"][name][name] < found["clean"][name] for name in nets()), "else it shows nothing"


def test_every_cell_is_that_of_a_plain_loop() -> None:
    data, known = split(), nets()
    found = transfer_matrix(known, data, PLAN, EvalSettings(threat=THREAT, seed=3, limit=25), name="x")
    chosen = choose_samples(COUNT, 25).tolist()
    expected: dict[str, dict[str, float]] = {a: dict.fromkeys(known, 0.0) for a in known}
    for place in chosen:
        index = torch.tensor([place])
        x, y = data.images(index), data.labels[index]
        for a, source in known.items():
            step = Step(Batch(x, y, index), NetStudent(source), attacks={"adv": PLAN}, threat=THREAT,
                        noise_key=key(3, "x"))  # fmt: skip
            x_adv = step.image("adv")
            for b, net in known.items():
                with torch.no_grad():
                    expected[a][b] += bool(net(x).argmax(1) == y) and bool(net(x_adv).argmax(1) == y)
    assert found["accuracy"] == {a: {b: right / 25 for b, right in row.items()} for a, row in expected.items()}
    assert found["accuracy"]["a"] != found["accuracy"]["b"]
    assert found["samples"] == 25


def seeing(channel: int) -> Net:
    """A linear net of two classes that looks at one channel alone."""
    net = tiny_net(LinearNet, classes=2, seed=channel)
    with torch.no_grad():
        net.arch.weight.view(2, 3, 8, 8)[:, [c for c in range(3) if c != channel]] = 0
    return net


def test_nets_that_look_at_different_things_do_not_share_their_weakness() -> None:
    """One falls to its own images wherever eps times its weights exceeds its margin, the other notices nothing."""
    one, two, twin = seeing(0), seeing(1), seeing(0)
    x = 0.3 + 0.4 * tiny_batch(COUNT, seed=4).x
    with torch.no_grad():
        logits = one(x)
        margins = (logits[:, 0] - logits[:, 1]).abs()
        slope = float((one.arch.weight[1] - one.arch.weight[0]).abs().sum() / 0.25)
        eps = float(margins.sort().values[COUNT // 4 : COUNT // 4 + 2].mean()) / slope
        data = ArraySplit(x, logits.argmax(1))
        clean_two = float((two(x).argmax(1) == data.labels).double().mean())
    stands = 1 - (COUNT // 4 + 1) / COUNT
    settings = EvalSettings(threat=ThreatModel("Linf", eps, eps / 4))
    found = transfer_matrix({"one": one, "two": two, "twin": twin}, data, AttackPlan(Fgsm(), ce), settings)["accuracy"]
    assert eps < 0.3, "the images have room on all sides"
    assert found["one"] == {"one": pytest.approx(stands), "two": pytest.approx(clean_two), "twin": found["one"]["one"]}
    assert found["two"]["one"] == 1.0
    assert found["twin"] == found["one"]


def test_batches_and_repeats_change_nothing() -> None:
    data = split()
    first, again = (
        transfer_matrix(nets(), data, PLAN, EvalSettings(threat=THREAT, batch_size=size)) for size in (3, 64)
    )
    assert first == again


def test_the_nets_are_left_as_they_were() -> None:
    known = {"a": tiny_net().train(), "b": tiny_net(seed=1).eval()}
    told: list[tuple[str, int, int]] = []
    with untouched(*known.values()):
        plan = AttackPlan(Pgd(steps=2, mode="train"), ce)
        transfer_matrix(known, split(), plan, EvalSettings(threat=THREAT, progress=lambda *news: told.append(news)))
    assert [news[0] for news in told] == ["a", "a", "b", "b"]
    assert told[-1][1:] == (COUNT, COUNT)


def test_nobody_is_attacked_where_all_are_wrong() -> None:
    data = split()
    with torch.no_grad():
        answers = torch.stack([net(data.images(torch.arange(COUNT))).argmax(1) for net in nets().values()])
    labels = torch.tensor([min(set(range(4)) - set(column)) for column in answers.T.tolist()])
    found = transfer_matrix(
        nets(), ArraySplit(data.images(torch.arange(COUNT)), labels), PLAN, EvalSettings(threat=THREAT)
    )
    assert found["accuracy"] == {a: dict.fromkeys(nets(), 0.0) for a in nets()}


@pytest.mark.parametrize(
    ("others", "error", "problem"),
    [
        ({"bad": tiny_net(classes=5)}, Refused, "the net 'bad' returned (40, 5) for 40 images; expected (40, 4)"),
        ({"bad": tiny_net(shape=(1, 8, 8))}, Refused, "the net 'bad' cannot take images (3, 8, 8)"),
    ],
)
def test_nets_that_do_not_fit(others: dict[str, nn.Module], error: type[RkdError], problem: str) -> None:
    with pytest.raises(error) as raised:
        transfer_matrix({**nets(), **others}, split(), PLAN, EvalSettings(threat=THREAT))
    assert problem in str(raised.value)


def test_nothing_to_do() -> None:
    with pytest.raises(RkdError, match="no net"):
        transfer_matrix({}, split(), PLAN, EvalSettings(threat=THREAT))
    with pytest.raises(DataError, match="a label is 7, but the net 'a' knows 4 classes"):
        data = ArraySplit(tiny_batch(2).x, torch.tensor([0, 7]))
        transfer_matrix(nets(), data, PLAN, EvalSettings(threat=THREAT))


def test_identity() -> None:
    assert identity(tiny_net(seed=1)) == identity(tiny_net(seed=1)) != identity(tiny_net(seed=2))
    assert identity(Net(tiny_net().arch)) != identity(tiny_net()), "another normalisation is another net"
