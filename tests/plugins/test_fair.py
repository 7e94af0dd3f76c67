"""Fair-ARD and its like: class weights against a plain search that counts, losses against plain float64 loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rkd.core.attack import Target
from rkd.core.errors import Refused
from rkd.core.hooks import hookimpl
from rkd.core.run import Run, TrainState
from rkd.core.trainer import advance, end_epoch, fit
from rkd.core.types import Batch
from rkd.nets.student import NetStudent
from rkd.plugins.attacks.noise import UniformNoise
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.methods.fair import FairArd, FairIad, FairMtard, FairRslad
from rkd.plugins.methods.kd import KnowledgeDistillation
from rkd.plugins.schedulers.anl import AdaptiveNormalization
from rkd.plugins.schedulers.fair import Fair
from rkd.registry.catalog import Catalog
from rkd.registry.defaults import method_defaults
from rkd.storage.serialize import load_state, save_state
from rkd.testing import LinearNet, OneStep, check_scheduler, tiny_batch, tiny_dataset, tiny_net, tiny_run
from rkd.testing.tiny import CLASSES, MEAN, STD
from rkd.training.accumulation import Accumulation
from rkd.training.dry_run import dry_step

from .by_hand import Setting, difference, kl, onehot, softmax

WEIGHTS = [0.9, 1.4, 2.5, 1.0]
KNOBS = {"class_weights": torch.tensor(WEIGHTS)}
SHADES = (0.0, 0.2, 0.4, 0.6)


# The scheduler


@dataclass
class Fade:
    """Asks about images that fade to grey."""

    mode: str = "eval"

    def __call__(self, x: Tensor, target: Target) -> Tensor:
        for shade in SHADES:
            target.logits(torch.lerp(x, torch.full_like(x, 0.5), shade))
        return (x + target.threat.eps).clamp(max=1)


def tiny(scheduler: Fair | None = None, **settings) -> Run:
    fair = {"fair": scheduler or Fair()}
    run = tiny_run(FairRslad(), attack=Fade(), data=tiny_dataset(42), batch_size=10, schedulers=fair, **settings)
    run.student = NetStudent(tiny_net(LinearNet, seed=3))
    run.optimizer = torch.optim.SGD(run.student.net.parameters(), lr=0.05)
    return run


def right_at(run: Run, batch: Batch) -> list[int]:
    """For each sample, at how many of the attack's images the student is still right."""
    weight = run.student.net.arch.weight.detach().double().numpy()
    bias = run.student.net.arch.bias.detach().double().numpy()
    counts = []
    for image, label in zip(batch.x.double().numpy().reshape(len(batch), -1), batch.y.tolist(), strict=True):
        asked = [(1 - shade) * image + shade * 0.5 for shade in SHADES]
        counts.append(sum(int((weight @ ((x - MEAN) / STD) + bias).argmax()) == label for x in asked))
    return counts


def published(kappa: list[float], beta: float = 2.0) -> list[float]:
    """The official script's weights of the classes."""
    r = [(1 / (k + 1e-5)) ** beta for k in kappa]
    return [min(max(len(r) * v / sum(r), 5 / 6), 5 / 2) for v in r]


@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_weights_follow_what_the_search_showed_in_the_epoch_before(beta: float) -> None:
    run = tiny(Fair(beta), epochs=4)
    run.hooks.hook.rkd_run_start(run=run)
    expected, seen = [1.0] * CLASSES, []
    for epoch in range(run.epochs):
        counts: list[list[int]] = [[] for _ in range(CLASSES)]
        for batch in run.loader.batches(epoch):
            for label, right in zip(batch.y.tolist(), right_at(run, batch), strict=True):
                counts[label].append(right)
            advance(run, batch)
            assert run.state.knobs["class_weights"].tolist() == pytest.approx(expected, rel=1e-5)
        end_epoch(run)
        expected = published([sum(c) / len(c) for c in counts], beta)
        seen += expected
    assert max(seen) > 1.3 and min(seen) == 5 / 6, "some class is weighted up, and some weight is clipped"


def test_each_gradient_of_a_search_counts_and_the_images_it_ends_with_do_not() -> None:
    fair = Fair()
    run = tiny_run(FairRslad(), attack=Pgd(eps=1e-6, steps=7), schedulers={"fair": fair})
    batch = tiny_batch()
    batch = replace(batch, y=run.student.net.eval()(batch.x).argmax(1))  # right, and cannot be turned wrong
    run.total_loss(run.step(batch))
    assert torch.equal(fair._right, 7 * torch.bincount(batch.y, minlength=CLASSES))
    assert torch.equal(fair._samples, torch.bincount(batch.y, minlength=CLASSES).float())


def test_a_class_that_is_never_right_gets_the_largest_weight_and_all_others_the_least() -> None:
    fair = Fair()
    fair._right, fair._samples = torch.tensor([8.0, 0.0, 12.0, 4.0]), torch.tensor([4.0, 4.0, 4.0, 4.0])
    fair.rkd_epoch_end(tiny(), {})
    assert fair._weights.tolist() == pytest.approx([5 / 6, 5 / 2, 5 / 6, 5 / 6])
    assert published([2.0, 0.0, 3.0, 1.0]) == pytest.approx(fair._weights.tolist())
    Fair(beta=9.0).rkd_epoch_end(tiny(), {})  # nothing was counted: nothing to do


def test_a_class_without_a_sample_weighs_one_and_classes_may_be_of_unequal_size() -> None:
    """The script divides by n / C: there a class twice as frequent counts as twice as robust."""
    fair = Fair(low=0.0, high=10.0)
    fair._right, fair._samples = torch.tensor([8.0, 4.0, 0.0, 2.0]), torch.tensor([4.0, 2.0, 0.0, 2.0])
    fair.rkd_epoch_end(tiny(), {})
    equal, hard = (3 * r / (1 / 4 + 1 / 4 + 1) for r in (1 / 4, 1.0))
    assert fair._weights.tolist() == pytest.approx([equal, equal, 1.0, hard], rel=1e-4)
    assert not fair._right.any() and not fair._samples.any()


def test_micro_batches_count_the_same() -> None:
    whole, parts = tiny(epochs=3), tiny(epochs=3, backward=Accumulation(micro_batches=3))
    for run in (whole, parts):
        fit(run)
    assert whole.state.knobs["class_weights"].max() > 1
    for a, b in zip(whole.student.net.parameters(), parts.student.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for name, value in whole.schedulers["fair"].state_dict().items():
        assert torch.equal(value, parts.schedulers["fair"].state_dict()[name]), name


def test_a_training_goes_on_within_an_epoch(tmp_path: Path) -> None:
    whole, stopped, resumed = tiny(epochs=3), tiny(epochs=3), tiny(epochs=3)
    fit(whole)
    stopped.hooks.hook.rkd_run_start(run=stopped)
    for batch in stopped.loader.batches(0):
        advance(stopped, batch)
    end_epoch(stopped)
    advance(stopped, next(stopped.loader.batches(1)))
    assert stopped.schedulers["fair"].state_dict()["samples"].sum() == 10
    save_state(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_state(tmp_path / "state.safetensors"))
    fit(resumed)
    for a, b in zip(whole.student.net.parameters(), resumed.student.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_soft_labels_count_by_their_shares() -> None:
    fair, batch = Fair(), tiny_batch(soft=True)
    run = tiny_run(FairRslad(), attack=OneStep(), schedulers={"fair": fair})
    step = run.step(batch)
    run.total_loss(step)
    assert torch.allclose(fair._samples, batch.y.sum(0))
    logits = []
    fair.rkd_attack_query(step, "adv", torch.tensor([3, 0]), 0, torch.eye(CLASSES)[batch.y.argmax(1)[[3, 0]]])
    logits = fair._heard
    assert torch.allclose(logits, batch.y[[3, 0]].sum(0))
    fair.rkd_attack_query(step, "other", torch.tensor([3, 0]), 0, torch.zeros(2, CLASSES))
    fair.rkd_attack_query(step, "adv", None, 0, torch.zeros(2, CLASSES))
    assert torch.equal(fair._heard, logits), "another view, or images of unknown samples"


def test_promises() -> None:
    check_scheduler(Fair())


def test_a_loss_that_never_attacks_is_refused_before_the_training() -> None:
    with pytest.raises(Refused, match=r"scheduler fair .* no attack that makes the view 'adv'"):
        dry_step(tiny_run(KnowledgeDistillation(), schedulers={"fair": Fair()}))
    with pytest.raises(Refused, match="makes the view 'weak'"):
        dry_step(tiny_run(FairRslad(), attack=OneStep(), schedulers={"fair": Fair(view="weak")}))


def test_an_attack_that_asks_nothing_is_told_and_changes_nothing() -> None:
    said = []

    class Listener:
        @hookimpl
        def rkd_notice(self, run: Run, text: str) -> None:
            said.append(text)

    run = tiny_run(FairRslad(), attack=UniformNoise(), schedulers={"fair": Fair()}, extensions={"it": Listener()})
    dry_step(run)
    fit(run)
    assert said == ["scheduler fair: no query of the attack on 'adv' found a sample right; class weights stay 1"]
    assert run.state.knobs["class_weights"].tolist() == [1.0] * CLASSES


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beta": -1.0}, "beta must be at least 0"), ({"low": 1.2}, "low must be between"), ({"high": 0.9}, "got 0.833")],
)
def test_numbers_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fair(**options)


# The methods


def setting(loss) -> Setting:
    return Setting(loss, state=TrainState(knobs=KNOBS))


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_fair_ard(reduction: str) -> None:
    s, T, alpha = setting(FairArd(alpha=0.7, reduction=reduction)), 30.0, 0.7
    share = 1 / CLASSES if reduction == "mean" else 1.0
    values, adv, clean = [], [], []
    for z, z_adv, t, y in zip(s.student(), s.student("adv"), s.teacher("robust"), s.y, strict=True):
        p, q, one = softmax(t, T), softmax(z_adv, T), softmax(z)
        values.append(WEIGHTS[y] * (share * alpha * T**2 * kl(p, q) - (1 - alpha) * math.log(one[y])))
        adv.append(difference(q, p, WEIGHTS[y] * share * alpha * T))
        clean.append(difference(one, onehot(y), WEIGHTS[y] * (1 - alpha)))
    s.expect(values, {"adv": adv, "clean": clean})


def test_fair_rslad() -> None:
    s = setting(FairRslad())
    values, adv, clean = [], [], []
    for z, z_adv, t, y in zip(s.student(), s.student("adv"), s.teacher("robust"), s.y, strict=True):
        p, q, q_adv = softmax(t), softmax(z), softmax(z_adv)
        values.append(WEIGHTS[y] * (5 / 6 * kl(p, q_adv) + 1 / 6 * kl(p, q)))
        adv.append(difference(q_adv, p, WEIGHTS[y] * 5 / 6))
        clean.append(difference(q, p, WEIGHTS[y] / 6))
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("weigh_teacher", [True, False])
def test_fair_iad(weigh_teacher: bool) -> None:
    s = setting(FairIad(beta=0.5, begin=0.0, weigh_teacher=weigh_teacher))
    values, adv, clean = [], [], []
    everyone = (s.student(), s.student("adv"), s.teacher("robust"), s.teacher("robust", "adv"), s.y)
    for z, z_adv, t, t_adv, y in zip(*everyone, strict=True):
        a = softmax(t_adv)[y] ** 0.5
        p, q, q_adv, taught = softmax(t), softmax(z), softmax(z_adv), a if weigh_teacher else 1.0
        gap = kl(q, q_adv)
        values.append(WEIGHTS[y] * (taught * kl(p, q_adv) + (1 - a) * gap))
        kd, own = difference(q_adv, p, taught), difference(q_adv, q, 1 - a)
        adv.append([WEIGHTS[y] * (v + w) for v, w in zip(kd, own, strict=True)])
        moved = [v * (math.log(v / w) - gap) for v, w in zip(q, q_adv, strict=True)]
        clean.append([WEIGHTS[y] * (1 - a) * v for v in moved])
    s.expect(values, {"adv": adv, "clean": clean})


@pytest.mark.parametrize("clean_teacher", [True, False])
def test_fair_mtard_asks_the_clean_teacher_that_the_script_forgets(clean_teacher: bool) -> None:
    s = setting(FairMtard(clean_teacher=clean_teacher))
    values, adv, clean = [], [], []
    everyone = (s.student(), s.student("adv"), s.teacher("robust", "adv"), s.teacher("clean"), s.y)
    for z, z_adv, robust, natural, y in zip(*everyone, strict=True):
        p, p_clean, q, q_adv = (
            softmax(robust),
            softmax(natural if clean_teacher else robust),
            softmax(z),
            softmax(z_adv),
        )
        values.append(WEIGHTS[y] * (kl(p, q_adv) + kl(p_clean, q)) / 2)
        adv.append(difference(q_adv, p, WEIGHTS[y] / 2))
        clean.append(difference(q, p_clean, WEIGHTS[y] / 2))
    s.expect(values, {"adv": adv, "clean": clean})


def test_it_brings_its_schedulers(catalog: Catalog) -> None:
    for loss in (FairArd(), FairIad(), FairRslad()):
        assert method_defaults(loss, {}, catalog)["schedulers"] == {"fair": {}}
    assert method_defaults(FairMtard(), {}, catalog)["schedulers"] == {"anl": {}, "fair": {}}
    assert method_defaults(FairArd(), {}, catalog)["attack"]["mode"] == "train"


def test_both_schedulers_of_fair_mtard_act() -> None:
    schedulers = {"anl": AdaptiveNormalization(0.3), "fair": Fair()}
    run = tiny_run(FairMtard(), attack=OneStep(), schedulers=schedulers, epochs=2)
    fit(run)
    assert {"weight.adv", "weight.clean", "class_weights"} <= run.state.knobs.keys()
