"""Cached teachers give the logits that they would give, whatever is kept, and are asked about each version once."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rkd.core.random import Noise
from rkd.core.run import Run
from rkd.core.step import AttackPlan
from rkd.core.trainer import fit
from rkd.core.types import Batch
from rkd.data.dataset import Subset
from rkd.data.loader import Loader
from rkd.distributed.ranks import ALONE, Ranks
from rkd.engine.accelerator import Engine
from rkd.nets.net import NetTeacher
from rkd.plugin import hookimpl
from rkd.plugins.augments.crop import Crop
from rkd.plugins.augments.cutout import Cutout
from rkd.plugins.augments.flip import Flip
from rkd.plugins.augments.mixup import Mixup
from rkd.registry.catalog import load_catalog
from rkd.testing.tiny import SHAPE, StubTeacher, tiny_net, tiny_run
from rkd.training import teacher_cache
from rkd.training.accumulation import Accumulation
from rkd.training.dry_run import dry_step
from rkd.training.logit_store import CHECKSUM
from rkd.training.teacher_cache import (
    CachedTeacher,
    cached_teachers,
    plan_caches,
)

CATALOG = load_catalog()
CROP_AND_FLIP = (Crop(padding=1), Flip())


class Counting(nn.Module):
    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.net = tiny_net(seed=4)
        self.noise = noise
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.net(x) + self.noise * torch.rand(1)


def a_run(augments=(), epochs: int = 3, teacher=None, loss: str = "rslad", **settings) -> Run:
    ranks = settings.pop("ranks", ALONE)
    teacher = teacher or tiny_net(seed=4)
    teacher = NetTeacher(teacher, "robust") if isinstance(teacher, nn.Module) else teacher
    if "attacks" not in settings:
        attack, objective = CATALOG.create("attack", "pgd", {"steps": 1}), CATALOG.create("objective", "kl-teacher")
        settings |= {"attack": attack, "objective": objective}
    run = tiny_run(CATALOG.create("loss", loss), epochs=epochs, teachers={"robust": teacher}, **settings)
    run.loader = Loader(run.data.train, 8, 0, augments, ranks=ranks)
    return run


def parameters(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.student.net.parameters()])


@contextmanager
def cached(run: Run, mode: str = "on", **settings):
    """`cached_teachers`, with the teacher `robust` as it is inside, and a list of all that is told."""
    said: list[str] = []
    with cached_teachers(run, mode, tell=said.append, **settings):
        yield run.teachers["robust"], said


def batches(run: Run, epochs: int) -> list[Batch]:
    return [batch for epoch in range(epochs) for batch in run.loader.batches(epoch)]


# A training

TRIALS = 9
"""Blocks that a teacher is asked about before the training: does it depend on more than the image?"""


@pytest.mark.slow
@pytest.mark.parametrize("augments", [[], [Crop(padding=1), Flip()], [Flip(), Crop(padding=1)], [Flip()]])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_is_the_same_with_and_without(augments, parts: int) -> None:
    """Here even bit for bit: this net's answers do not depend on the number of images."""
    plain_net, net = Counting(), Counting()
    plain = a_run(augments, 8, plain_net, backward=Accumulation(parts))
    fit(plain)
    run = a_run(augments, 8, net, backward=Accumulation(parts))
    teacher = run.teachers["robust"]
    with cached(run) as (cache, said):
        fit(run)
        seen = {int(number) for batch in batches(run, 8) for number in batch.version}
    asked, looked_up = cache.counts
    assert (asked, asked + looked_up, plain_net.images) == (len(seen), 8 * 16, 8 * 16)
    assert torch.equal(parameters(run), parameters(plain))
    assert said[-1] == f"teacher robust: {looked_up / 128:.0%} of the answers to clean images were looked up"
    assert run.teachers["robust"] is teacher and run.loader.variants is None
    if not augments:
        assert net.images == 16 + TRIALS * 8 // parts


def test_other_views_are_asked_about_each_time() -> None:
    run = a_run(loss="adaad", teacher=(net := Counting()))
    with cached(run) as (cache, _):
        fit(run)  # AdaAD's teacher sees attacked images, and is part of the search
    assert cache.counts[0] == 16 and net.images > 2 * 3 * 16


def test_the_answers_do_not_depend_on_the_order() -> None:
    answers = []
    for seed in (0, 1):
        run = a_run()
        run.loader = Loader(run.data.train, 8, seed)
        with cached(run) as (cache, _):
            found = torch.cat([torch.cat([b.index[:, None], cache.clean_logits(b)], 1) for b in batches(run, 1)])
        answers.append(found[found[:, 0].argsort()])
    assert torch.equal(*answers)


@pytest.mark.parametrize("augments", [CROP_AND_FLIP, (Cutout(length=3),), (Flip(p=1.0),), ()])
def test_answers_have_the_bits_of_a_block_of_one_image(augments) -> None:
    """Whatever was kept before and whatever else is asked about."""
    net = Counting()
    run = a_run(augments, 12, net)
    with cached(run) as (cache, _):
        for batch in batches(run, 12):
            for x, logits in zip(batch.x, cache.clean_logits(batch), strict=True):
                assert torch.equal(net.net(x.expand(8, *SHAPE).contiguous())[0].detach(), logits)
        assert cache.counts[1] > 0


def test_what_draws_random_numbers_leaves_the_students_as_they_were() -> None:
    run = a_run(teacher=Counting(noise=0.5))
    state = torch.get_rng_state()
    with cached(run) as (teacher, said):
        assert type(teacher) is NetTeacher and "something else the second time" in said[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_that_do_not_say_their_version() -> None:
    run = a_run(teacher=(net := Counting()))
    batch = run.loader.batch(torch.arange(2), 0)
    with cached(run) as (cache, _):
        for _ in range(2):
            assert torch.equal(cache.clean_logits(batch), net.net(batch.x).detach())
        assert cache.counts == (0, 0)


# Weights that move


@pytest.mark.parametrize("how", ["in place", "another module", "another net", "loaded"])
def test_a_teacher_whose_weights_move_is_asked_anew(how: str) -> None:
    net, other = tiny_net(seed=4), tiny_net(seed=5).eval()
    run = a_run(teacher=net, epochs=4)
    notices, differences = [], []

    class Mover:
        @hookimpl
        def rkd_after_update(self, run: Run) -> None:
            if run.state.epoch == 2 and run.state.batch == 0:
                if how == "in place":
                    with torch.no_grad():
                        for p in net.parameters():
                            p.mul_(0.5)
                elif how == "another module":
                    net.arch = other.arch
                elif how == "another net":
                    run.teachers["robust"].net = other
                else:
                    net.load_state_dict(other.state_dict())
            step = run.step(run.loader.batch(torch.arange(4), 0))
            now = run.teachers["robust"].net(step.image("clean")).detach()
            differences.append(float((step.teacher() - now).abs().max()))

        @hookimpl
        def rkd_notice(self, run: Run, text: str) -> None:
            notices.append(text)

    run.hooks.register(Mover())
    with cached(run):
        fit(run)
    assert max(differences) == 0 and len(differences) == 8
    assert notices == ["the weights of the teacher 'robust' move: from here on it is asked in each step"]


def notices_of(run: Run) -> list[str]:
    """Where the notices of the run will be."""
    notices: list[str] = []

    class Listener:
        @hookimpl
        def rkd_notice(self, run: Run, text: str) -> None:
            notices.append(text)

    run.hooks.register(Listener())
    return notices


def test_weights_that_move_unseen_are_told_of() -> None:
    run = a_run(teacher=(net := tiny_net(seed=4)))
    notices = notices_of(run)
    with cached(run):
        fit(run)
    assert notices == []
    with cached(run):
        next(net.parameters()).data.mul_(0.5)
    assert len(notices) == 1 and "through .data" in notices[0] and "teacher_cache=off" in notices[0]


def test_weights_of_a_fast_copy_that_move_unseen_are_told_of() -> None:
    """Also where no answer is kept: the copy was made of the weights as they were."""
    run = a_run(teacher=(net := tiny_net(seed=4)))
    notices = notices_of(run)
    run.teachers["robust"].accelerator = Engine("auto")
    with cached(run, "off"):
        next(net.parameters()).data.mul_(0.5)
    assert len(notices) == 1 and "--engine plain" in notices[0]


# Which teachers


class Jitter:
    def __call__(self, batch: Batch, noise: Noise) -> Batch:
        return replace(batch, x=batch.x * noise.uniform((1, 1, 1)))


class Misnumbered(Crop):
    def variant(self, noise, shape):
        return super().variant(noise, shape) * 0


@pytest.mark.parametrize(
    ("run", "settings", "why"),
    [
        (a_run(epochs=1), {}, "no image comes again"),
        (a_run([Crop()], epochs=30), {"mode": "auto"}, "of 81 versions of each image 16% come again in 30 epochs"),
        (a_run([Flip(), Jitter()], epochs=30), {}, "Jitter does not say how many versions"),
        (a_run([Flip(), Mixup(classes=4)], epochs=30), {}, "Mixup blends images"),
        (a_run([Misnumbered(padding=1)]), {}, "of one image is not one image"),
        (a_run([Flip()]), {"max_bytes": 16 * 2 * 24 - 1}, "answers to 2 versions of 16 images take"),
        (a_run(teacher=StubTeacher("robust")), {}, "a teacher of its own kind"),
    ],
)
def test_where_there_is_no_cache(run, settings, why) -> None:
    teacher = run.teachers["robust"]
    with cached(run, **settings) as (inside, said):
        assert inside is teacher and run.loader.variants is None
    assert len(said) == 1 and said[0].startswith("teacher robust: asked in each step: ") and re.search(why, said[0])


def test_it_can_be_turned_off() -> None:
    run = a_run()
    with cached(run, "off") as (teacher, said):
        assert type(teacher) is NetTeacher
    assert said == []


def test_it_is_used_where_it_pays() -> None:
    with cached(a_run([Crop(padding=1), Flip()], epochs=30), "auto") as (teacher, said):
        assert isinstance(teacher, CachedTeacher)
    assert said[0] == "teacher robust: about 51% of the clean images come again, and are looked up"


def test_plans_ask_nobody() -> None:
    run = a_run([Flip()], 4, net := Counting())
    (plan,) = plan_caches(run).values()
    assert net.images == 0
    assert plan.repeats == pytest.approx(1 - 2 * (1 - 0.5**4) / 4)
    assert plan.size == 16 * 2 * 4 * (4 + CHECKSUM) and not plan.in_file


def test_what_the_answers_may_take_is_for_all_teachers() -> None:
    run = a_run([Flip()])
    run.teachers["clean"] = NetTeacher(tiny_net(seed=5), "clean")
    with cached(run, max_bytes=16 * 2 * 24) as (_, said):
        assert type(run.teachers["clean"]) is NetTeacher
    assert "teacher clean: asked in each step" in said[0] and "teacher robust: about" in said[1]


def test_the_dry_step_says_who_is_asked_about_clean_images() -> None:
    run = a_run([Flip()], loss="mtard", attacks={})
    run.teachers["clean"] = NetTeacher(tiny_net(seed=5), "clean")
    run.attacks["adv"] = AttackPlan(CATALOG.create("attack", "fgsm"), CATALOG.create("objective", "ce"))
    asked = dry_step(run).clean
    assert asked == {"clean"}
    with cached(run, max_bytes=16 * 2 * 24, roles=asked) as (robust, said):
        assert type(robust) is NetTeacher and said[0].startswith("teacher clean: about")


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
    with cached(a_run(CROP_AND_FLIP, teacher=Mixing(how))) as (teacher, said):
        assert type(teacher) is NetTeacher
    assert len(said) == 1 and why in said[0]


# Files


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "IN_MEMORY", 0)


def test_another_teachers_answers_are_not_taken_for_its_own(tmp_path: Path, in_files: None) -> None:
    """Not even of a net with the same weights that computes something else."""
    for how in (lambda logits: logits, lambda logits: 2 * logits):
        run = a_run(CROP_AND_FLIP, teacher=(net := Mixing(how)))
        with cached(run, folder=tmp_path) as (cache, said):
            for batch in batches(run, 4):
                torch.testing.assert_close(cache.clean_logits(batch), net(batch.x).detach(), rtol=0, atol=0)
        assert f"kept in {tmp_path}" in said[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("changed", ["augmentation", "data", "seed"])
def test_answers_to_other_images_are_not_taken(changed: str, tmp_path: Path, in_files: None) -> None:
    for second in (False, True):
        augments = (Cutout(length=4 if second and changed == "augmentation" else 2),)
        run = a_run(augments, teacher=(net := tiny_net(seed=4)))
        if second and changed == "data":
            run.data = replace(run.data, fingerprint="other")
        elif second and changed == "seed":
            run.loader = Loader(Subset(run.data.train, torch.arange(16).flip(0)), 8, 0, augments)
        with cached(run, folder=tmp_path) as (cache, _):
            for batch in batches(run, 4):
                torch.testing.assert_close(cache.clean_logits(batch), net(batch.x).detach(), rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_run_finds_what_the_first_one_left(tmp_path: Path, in_files: None) -> None:
    def answers() -> tuple[Tensor, tuple[int, int]]:
        run = a_run(CROP_AND_FLIP)
        with cached(run, folder=tmp_path) as (cache, _):
            return torch.cat([cache.clean_logits(batch) for batch in batches(run, 6)]), cache.counts

    (first, counts), (second, counts_then) = answers(), answers()
    assert torch.equal(first, second) and counts[0] > 0 and counts_then[0] == 0
    (path,) = tmp_path.iterdir()
    # Damaged, and cut off: what is lost is asked again.
    content = path.read_bytes()
    path.write_bytes(bytes(255 - byte for byte in content[: len(content) // 2]))
    third, counts_then = answers()
    assert torch.equal(first, third) and counts_then == counts


class OneOf(Ranks):
    """One of several processes, whose collective calls hear only themselves."""

    def objects(self, mine):
        return [mine]


def test_processes_share_what_each_has_asked(tmp_path: Path) -> None:
    """Two processes in turn: each batch's samples are divided, every epoch otherwise, and none is asked about twice."""
    alone = a_run(CROP_AND_FLIP)
    with cached(alone) as (cache, _):
        expected = [cache.clean_logits(batch) for batch in batches(alone, 6)]
        asked = cache.counts[0]
    runs = [a_run(CROP_AND_FLIP, ranks=OneOf(rank, 2, rank)) for rank in (0, 1)]
    with cached(runs[0], folder=tmp_path) as (one, _), cached(runs[1], folder=tmp_path) as (other, _):
        for mine, theirs, logits in zip(batches(runs[0], 6), batches(runs[1], 6), expected, strict=True):
            assert torch.equal(torch.cat([one.clean_logits(mine), other.clean_logits(theirs)]), logits)
        assert one.counts[0] + other.counts[0] == asked
    assert len(list(tmp_path.iterdir())) == 1
