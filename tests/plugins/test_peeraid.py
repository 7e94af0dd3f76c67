"""PeerAiD against plain float64 loops: what each of the two nets learns, and what is held fixed."""

from __future__ import annotations

import math

import pytest
import torch

from rkd.core.interfaces import Objective
from rkd.core.trainer import train_step
from rkd.plugins.methods.peeraid import PeerAid
from rkd.plugins.objectives.kl import KlTeacher
from rkd.registry.catalog import Catalog
from rkd.testing import OneStep, tiny_batch, tiny_run
from rkd.testing.tiny import CLASSES
from rkd.workflow.resolve import resolve

from .by_hand import Setting, difference, kl, onehot, softmax


def by_first(p: list[float], q: list[float], factor: float) -> list[float]:
    """The gradient of factor KL(p ‖ q) by the logits of p = softmax(z / T), at T = 1."""
    whole = kl(p, q)
    return [factor * a * (math.log(a / b) - whole) for a, b in zip(p, q, strict=True)]


def added(*rows: list[float]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "loss",
    [
        PeerAid(),
        PeerAid(gamma2=1.0, reduction="mean"),
        PeerAid(0.035, 35.0, 20.0, 1.0, 100.0, 1.0, 2.0),
        PeerAid(0, 0, 0, 0, 1, T_peer=3.0),
    ],
)
def test_both_nets_losses_and_gradients(loss: PeerAid) -> None:
    s = Setting(loss, objective=KlTeacher(role="peer"))
    share = 1 / CLASSES if loss.reduction == "mean" else 1.0
    T, U = loss.T, loss.T_peer
    values, adv, clean, peer = [], [], [], []
    for z_adv, z, w, y in zip(s.student("adv"), s.student(), s.companion("peer", "adv"), s.y, strict=True):
        q, q_peer = softmax(z_adv), softmax(w)
        a, b, p = softmax(z_adv, T), softmax(z, T), softmax(w, T)
        s_soft, p_soft = softmax(z_adv, U), softmax(w, U)
        values.append(
            -loss.lambda1 * math.log(q[y])
            + share * T**2 * (loss.lambda2 * kl(p, a) + loss.lambda3 * kl(b, a))
            - loss.gamma1 * math.log(q_peer[y])
            + share * U**2 * loss.gamma2 * kl(s_soft, p_soft)
        )
        adv.append(
            added(
                difference(q, onehot(y), loss.lambda1),
                difference(a, p, share * T * loss.lambda2),
                difference(a, b, share * T * loss.lambda3),
                by_first(s_soft, p_soft, share * U * loss.gamma2),  # the peer's term moves the student, too
            )
        )
        clean.append(by_first(b, a, share * T * loss.lambda3))
        peer.append(
            added(
                difference(q_peer, onehot(y), loss.gamma1),
                difference(p_soft, s_soft, share * U * loss.gamma2),
            )
        )
    s.expect(values, {"adv": adv, "clean": clean})
    s.expect_gradients(s.run.companions["peer"].net, {"adv": peer})


def test_the_codes_second_forward_of_attacked_images_adds_up_to_the_same_gradient() -> None:
    """There S(x') of the peer's term comes from a forward of its own."""
    s = Setting(PeerAid(), objective=KlTeacher(role="peer"))
    twice = s.run.step(s.batch)
    twice._images["adv"] = s.images["adv"]
    first, second = twice.fresh(), twice.fresh()
    own, peers = s.run.loss(first), s.run.loss(second)
    total = sum(s.run.loss.weights[n] * (peers if n.startswith("peer") else own)[n].mean() for n in own)
    weight = s.run.student.net.arch.weight
    torch.testing.assert_close(torch.autograd.grad(total, weight)[0], weight.grad)


def test_the_search_leaves_the_peers_clean_answer(catalog: Catalog) -> None:
    plan = resolve({"loss": {"name": "peeraid"}}, catalog)
    objective: Objective = plan.attacks["adv"].objective
    assert objective == KlTeacher(role="peer")
    run = tiny_run(plan.loss, attack=OneStep(), objective=objective)
    before = {name: value.clone() for name, value in run.companions["peer"].net.state_dict().items()}
    step = run.step(tiny_batch())
    step.image("adv")
    after = run.companions["peer"].net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "asked in eval mode"
    asked = step.teacher("peer")
    assert not asked.requires_grad and torch.equal(asked, run.companions["peer"].net.eval()(step.image()))


def test_the_peer_learns_and_is_not_kept() -> None:
    run = tiny_run(PeerAid(), attack=OneStep(), objective=KlTeacher(role="peer"))
    before = [weight.detach().clone() for weight in run.companions["peer"].net.parameters()]
    train_step(run, tiny_batch())
    assert any(not torch.equal(a, b) for a, b in zip(before, run.companions["peer"].net.parameters(), strict=True))
    assert run.eval_net() is run.student.net


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma2": -1.0}, "the weight of peer_kl must be at least 0"),
        ({"lambda1": -1.0}, "the weight of ce must"),
        ({"T": 0.0}, "T must be at least"),
        ({"T_peer": 0.0}, "T_peer must be at least"),
    ],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PeerAid(**options)
