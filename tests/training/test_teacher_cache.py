"""Clean images that never change: their teachers are asked once, and say what they would say each time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rkd.core.errors import Refused
from rkd.core.random import Noise
from rkd.core.step import AttackPlan
from rkd.core.trainer import fit
from rkd.core.types import Batch
from rkd.data.loader import Loader
from rkd.distributed.ranks import ALONE
from rkd.nets.net import NetTeacher
from rkd.plugins.augments.crop import Crop
from rkd.plugins.augments.cutout import Cutout
from rkd.plugins.augments.flip import Flip
from rkd.plugins.augments.mixup import Mixup
from rkd.registry.catalog import load_catalog
from rkd.testing.tiny import SHAPE, StubTeacher, tiny_dataset, tiny_net, tiny_run
from rkd.training import memory, shelf
from rkd.training.dry_run import dry_step
from rkd.training.memory import remembering, tell_of_memory
from rkd.training.shelf import Shelf
from rkd.training.teacher_cache import Remembering, RememberingVariants
from rkd.training.variants import Variants

CATALOG = load_catalog()


class Counting(nn.Module):
    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.net = tiny_net(seed=4)
        self.noise = noise
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.net(x) + self.noise * torch.rand(1)


def run_with(net: nn.Module, cache: bool, loss: str = "rslad", **settings):
    attack = CATALOG.create("attack", "pgd", {"steps": 1})
    objective = CATALOG.create("objective", "kl-teacher")
    run = tiny_run(CATALOG.create("loss", loss), attack=attack, objective=objective, epochs=3,
                   teachers={"robust": NetTeacher(net, "robust")}, **settings)  # fmt: skip
    if cache:
        run.teachers = remembering(run)
    fit(run)
    return run


def test_asked_once_and_trained_alike() -> None:
    plain, kept = Counting(), Counting()
    expected, found = run_with(plain, cache=False), run_with(kept, cache=True)
    assert plain.images == 3 * 16
    assert kept.images == 2 * 16  # all images, and the first block once more: does it say the same?
    for a, b in zip(expected.student.net.parameters(), found.student.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_other_views_are_asked_about_each_time() -> None:
    net = Counting()
    run = run_with(net, cache=True, loss="adaad")  # AdaAD's teacher sees attacked images, and is part of the search
    assert isinstance(run.teachers["robust"], Remembering)
    assert net.images > 3 * 16


def at(*index: int) -> Batch:
    places = torch.tensor(index)
    data = tiny_dataset().train
    return Batch(data.images(places), data.labels[places], places)


def test_the_answers_do_not_depend_on_the_order() -> None:
    data = tiny_dataset()
    answers = [
        Remembering(NetTeacher(tiny_net(), "robust"), Loader(data.train, 8, seed)).remembered(at(5, 2))
        for seed in (0, 1)
    ]
    assert torch.equal(answers[0], answers[1])


def test_a_net_that_draws_random_numbers_is_asked_each_time() -> None:
    net = Counting(noise=0.5)
    run = run_with(net, cache=True)
    assert run.teachers["robust"].remembered(at(0)) is None
    assert net.images == 3 * 16 + 2 * 16  # found out once


def test_what_draws_random_numbers_leaves_the_students_as_they_were() -> None:
    """A run that goes on finds it out a second time."""
    net = Counting(noise=0.5)
    for teacher in (Remembering(NetTeacher(net, "robust"), Loader(tiny_dataset().train, 8, 0)), versions(net)):
        state = torch.get_rng_state()
        teacher.remembered(replace(at(0, 1), variant=torch.tensor([0, 0])))
        assert torch.equal(torch.get_rng_state(), state)


def whys(run, **settings) -> list[str]:
    said: list[str] = []
    run.teachers = remembering(run, tell=said.append, **settings)
    return said


def a_run(augments=(), epochs: int = 3, teacher=None, loss: str = "rslad", **settings):
    run = tiny_run(CATALOG.create("loss", loss), epochs=epochs, **settings,
                   teachers={"robust": teacher or NetTeacher(tiny_net(seed=4), "robust")})  # fmt: skip
    run.loader = Loader(run.data.train, 8, 0, augments)
    return run


def test_too_many_answers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_BYTES", 16 * 4 * 4 - 1)
    (why,) = whys(a_run(epochs=9))
    assert "looking its answers up saves little" in why  # on a file there would be room


class Jitter:
    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        return replace(batch, x=batch.x * noise.uniform((1, 1, 1)))


@pytest.mark.parametrize(
    ("run", "settings", "why"),
    [
        (a_run(epochs=1), {}, "no image comes again"),
        (a_run([Flip()]), {}, "looking its answers up saves little"),
        (a_run([Flip()], epochs=2), {}, "25% come again|saves little"),
        (a_run([Crop()], epochs=30), {}, "of 81 versions of each image 16% come again in 30 epochs"),
        (a_run([Flip(), Jitter()], epochs=30), {"how": "on"}, "Jitter does not say how many versions"),
        (a_run([Flip(), Mixup(classes=4)], epochs=30), {"how": "on"}, "Mixup blends images"),
        (a_run([Flip()]), {"how": "on", "most": 16 * 2 * 24 - 1}, "answers to 2 versions of 16 images take"),
        (a_run(teacher=StubTeacher("robust")), {"how": "on"}, "a teacher of its own kind"),
        (a_run(ranks=replace(ALONE, size=2)), {"how": "on"}, "several processes"),
    ],
)
def test_where_there_is_no_memory(run, settings, why) -> None:
    teacher = run.teachers["robust"]
    (said,) = whys(run, **settings)
    assert run.teachers["robust"] is teacher and run.loader.variants is None
    assert said.startswith("teacher robust: asked in each step: ") and re.search(why, said)


def test_it_can_be_turned_off() -> None:
    run = a_run()
    teacher = run.teachers["robust"]
    assert whys(run, how="off") == [] and run.teachers["robust"] is teacher


def test_it_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TRIVIAL", 1000)
    run = a_run([Crop(padding=1), Flip()], epochs=30)
    said = whys(run)
    assert isinstance(run.teachers["robust"], RememberingVariants) and "about 51%" in said[0]
    run.teachers["robust"] = NetTeacher(tiny_net(seed=4), "robust")
    run.device = torch.device("cuda")
    assert "on a GPU the step would wait" in whys(run)[0]


def test_what_the_teachers_may_take_is_for_all_of_them() -> None:
    run = a_run([Flip()])
    run.teachers["clean"] = NetTeacher(tiny_net(seed=5), "clean")
    first, second = whys(run, how="on", most=16 * 2 * 24)
    assert "looked up" in first and "teacher clean: asked in each step" in second


def test_the_dry_step_says_who_is_asked_about_clean_images() -> None:
    run = a_run([Flip()], loss="mtard", teacher=NetTeacher(tiny_net(seed=4), "robust"))
    run.teachers["clean"] = NetTeacher(tiny_net(seed=5), "clean")
    run.attacks["adv"] = AttackPlan(CATALOG.create("attack", "fgsm"), CATALOG.create("objective", "ce"))
    asked = dry_step(run).clean
    assert asked == {"clean"}
    (said,) = whys(run, how="on", most=16 * 2 * 24, roles=asked)
    assert said.startswith("teacher clean: about") and type(run.teachers["robust"]) is NetTeacher


# Versions of images

CROP_AND_FLIP = (Crop(padding=1), Flip())


def versions(net: nn.Module, augments=CROP_AND_FLIP, **shelf) -> RememberingVariants:
    loader = Loader(tiny_dataset().train, 8, 0, augments)
    loader.variants = Variants.of(augments, SHAPE)
    return RememberingVariants(NetTeacher(net, "robust"), loader, loader.variants, 8, Shelf(2**30, **shelf))


def batches(teacher: RememberingVariants, epochs: int):
    return [batch for epoch in range(epochs) for batch in teacher._loader.batches(epoch)]


ORDERS = [[Crop(padding=1), Flip()], [Flip(), Crop(padding=1)], [Cutout(length=3)], [Flip(p=1.0)]]


@pytest.mark.parametrize("augments", ORDERS)
def test_versions_are_answered_as_in_blocks_of_their_own_and_asked_once(augments) -> None:
    """Whatever was kept before: each answer has the bits that the image has alone in a block."""
    net = Counting()
    teacher = versions(net, augments)
    seen, trials = set(), None
    for batch in batches(teacher, 12):
        found = teacher.remembered(batch)
        trials = net.images - 8 * -(-teacher.asked // 8) if trials is None else trials
        for x, logits in zip(batch.x, found, strict=True):
            assert torch.equal(net.net(x.expand(8, *SHAPE).contiguous())[0].detach(), logits)
        seen |= set(zip(batch.index.tolist(), batch.variant.tolist(), strict=True))
    assert (teacher.asked, teacher.asked + teacher.found) == (len(seen), 12 * 16)
    assert teacher.found > 0


@pytest.mark.parametrize("augments", [[Crop(padding=1), Flip()], [Flip(), Crop(padding=1)], [Flip()]])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_is_the_same_with_and_without(augments, parts) -> None:
    """Here even bit for bit: this net's answers do not depend on the number of images."""
    runs = []
    for how in ("off", "on"):
        net = Counting()
        attack, objective = CATALOG.create("attack", "pgd", {"steps": 1}), CATALOG.create("objective", "kl-teacher")
        run = tiny_run(CATALOG.create("loss", "rslad"), attack=attack, objective=objective, epochs=8,
                       teachers={"robust": NetTeacher(net, "robust")}, grad_accumulation=parts)  # fmt: skip
        run.loader = Loader(run.data.train, 8, 0, augments)
        run.teachers = remembering(run, how)
        fit(run)
        runs.append((run, net))
    (plain, asked), (kept, _) = runs
    teacher = kept.teachers["robust"]
    assert asked.images == 8 * 16 == teacher.asked + teacher.found
    seen = {pair for b in batches(teacher, 8) for pair in zip(b.index.tolist(), b.variant.tolist(), strict=True)}
    assert teacher.asked == len(seen)
    for a, b in zip(plain.student.net.parameters(), kept.student.net.parameters(), strict=True):
        assert torch.equal(a, b)
    said: list[str] = []
    tell_of_memory(kept, said.append)
    assert said == [f"teacher robust: {teacher.found / 128:.0%} of the answers to clean images were looked up"]


class Mixing(nn.Module):
    """A net whose answers depend on the batch."""

    def __init__(self, how) -> None:
        super().__init__()
        self.net, self.how = tiny_net(seed=4), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.net(x))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda logits: logits - 1e-6 * logits.mean(0), "depends on the images beside it"),
        (lambda logits: logits + 1e-3 * torch.arange(len(logits)).unsqueeze(1), "depends on the images beside it"),
        (lambda logits: logits + 1e-6 * logits.abs().max(), "depends on the images beside it"),
        (lambda logits: logits + 0.1 * torch.rand(1), "says something else the second time"),
        (lambda logits: logits.double(), "not finite float32"),
        (lambda logits: logits / 0, "not finite float32"),
    ],
)
def test_teachers_whose_answers_depend_on_more_than_the_image(how, why) -> None:
    said: list[str] = []
    net = Mixing(how)
    teacher = versions(net, tell=said.append)
    batch = batches(teacher, 1)[0]
    assert teacher.remembered(batch) is None and teacher.remembered(batch) is None
    assert len(said) == 1 and why in said[0]


def test_another_teachers_answers_are_not_taken_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of a net with the same weights that computes something else."""
    monkeypatch.setattr(shelf, "IN_MEMORY", 0)
    for how in (lambda logits: logits, lambda logits: 2 * logits):
        net = Mixing(how)
        teacher = versions(net, folder=tmp_path)
        for batch in batches(teacher, 4):
            torch.testing.assert_close(teacher.remembered(batch), net(batch.x).detach(), rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_run_finds_what_the_first_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "IN_MEMORY", 0)
    first, second = versions(Counting(), folder=tmp_path), versions(Counting(), folder=tmp_path)
    for batch in batches(first, 6):
        assert torch.equal(first.remembered(batch), second.remembered(batch))
    assert first.asked > 0 and second.asked == 0
    (path,) = tmp_path.iterdir()
    # Damaged, and cut off: what is lost is asked again.
    content = bytearray(path.read_bytes())
    content[:] = bytes(255 - byte for byte in content[: len(content) // 2])
    path.write_bytes(content)
    third = versions(Counting(), folder=tmp_path)
    for batch in batches(third, 6):
        assert torch.equal(third.remembered(batch), first.remembered(batch))
    assert third.asked == first.asked


def test_an_augmentation_that_takes_two_versions_for_one_costs_time_alone() -> None:
    class Wrong(Crop):
        def variant(self, noise, shape):
            return super().variant(noise, shape) * 0

    net = Counting()
    teacher = versions(net, [Wrong(padding=1)])
    for batch in batches(teacher, 6):
        assert torch.equal(teacher.remembered(batch), net.net(batch.x).detach())

    class Beyond(Crop):
        def variant(self, noise, shape):
            return super().variant(noise, shape) + 9

    teacher = versions(net, [Beyond(padding=1)])
    with pytest.raises(Refused, match="from 0 to 8"):
        teacher.remembered(batches(teacher, 1)[0])


def test_batches_that_do_not_say_their_version() -> None:
    teacher = versions(Counting())
    assert teacher.remembered(at(0, 1)) is None
