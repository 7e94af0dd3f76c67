"""Wrong use of companions, views, losses side by side, class weights and generated images: `rkd run` refuses it with
reasons, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from rkd.cli.options import App
from rkd.distributed.ranks import Ranks

SMALL = ("--student", "small-cnn", "--set", "student.width=2", "--dry-run")

PLUGIN = '''"""Losses and schedulers that are wrong in one way each."""

import torch

from rkd.plugin import Companion, DerivedView, hookimpl, ops


class Wrong:
    """A loss that asks for `views` and `nets`."""

    roles = ()
    defaults = {"attack": "pgd", "attack.steps": 1}
    views = nets = ()

    def __call__(self, step):
        for view in self.views:
            step.image(view)
        for name in self.nets:
            step.companion(name)
        return {"adv": ops.cross_entropy(step.student("adv"), step.y)}


def loss(**attributes):
    return type("Wrong", (Wrong,), {"__doc__": Wrong.__doc__, **attributes})


def view(make, name="far"):
    return loss(derived_views={name: DerivedView(make)}, views=(name,))


def net(name="peer", roles=(), **companion):
    return loss(companions={name: Companion(**companion)}, nets=(name,), roles=roles)


class Sets:
    """A scheduler that sets one value."""

    name, value = "class_weights", 0

    def update(self, step, terms):
        return {self.name: self.value}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def sets(name, value):
    return type("Sets", (Sets,), {"__doc__": Sets.__doc__, "name": name, "value": value})


@hookimpl
def rkd_losses():
    ring = {"one": DerivedView(lambda step: step.image("two")), "two": DerivedView(lambda step: step.image("one"))}
    return {
        "of-none": net(of="robust"),
        "of-typo": net(of="rebust", roles=("robust",)),
        "follows-teacher": net(of="robust", follows=0.9, roles=("robust",)),
        "a-teachers-name": net("robust", roles=("robust",)),
        "the-students-name": net("student"),
        "idle": loss(companions={"peer": Companion()}),
        "ghost": loss(nets=("peer",)),
        "another-peer": net(lr=0.5),
        "itself": view(lambda step: step.image("far")),
        "ring": loss(derived_views=ring, views=("one",)),
        "clean": view(lambda step: step.image("adv"), "clean"),
        "adv": view(lambda step: step.image(), "adv"),
        "outside": view(lambda step: 2 * step.image()),
        "fewer": view(lambda step: step.image()[:1]),
        "no-images": view(lambda step: 3),
        "another-mirror": view(lambda step: step.image(), "mirror"),
        "other-targets": loss(targets=lambda self, step: step.y),
    }


@hookimpl
def rkd_schedulers():
    return {
        "three": sets("class_weights", torch.ones(3)),
        "twenty": sets("class_weights.adv", torch.ones(20)),
        "nan": sets("class_weights", torch.full((10,), float("nan"))),
        "text": sets("class_weights", "large"),
        "no-term": sets("class_weights.clean", torch.ones(10)),
        "many": sets("weight.adv", torch.ones(2)),
        "right": sets("class_weights", torch.ones(10)),
    }
'''


@pytest.fixture
def plugin(empty_folder: Path) -> Path:
    path = empty_folder / "wrong.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.slow
def test_losses(rkd, plugin: Path) -> None:
    for name, reason in {
        "of-none": "the companion 'peer' starts as the teacher 'robust' (teachers given: none)",
        "of-typo": "the companion 'peer' starts as the teacher 'rebust' (teachers given: robust)",
        "follows-teacher": "the companion 'peer' cannot both follow the student and start as a teacher",
        "a-teachers-name": "a companion cannot be called 'robust', as another net is",
        "the-students-name": "a companion cannot be called 'student', as another net is",
        "idle": "the companion 'peer' would never be used by the loss",
        "ghost": "there is no companion 'peer' (companions: none)",
        "itself": "the loss that makes the view 'far' asks for that very view",
        "ring": "the loss that makes the view 'one' asks for that very view",
        "clean": "the data and the loss both make the view 'clean'",
        "adv": "an attack and the loss both make the view 'adv'",
        "outside": "what makes the view 'far' is at fault: images must lie in [0, 1], these go from 0 to 2",
        "fewer": "what the loss calls 'far' returned torch.float32 images (1, 1, 8, 8) for torch.float32 ones (2, 1,",
        "no-images": "what the loss calls 'far' returned int, not images",
        "peeraid+another-peer": "peeraid and another-peer both declare the companion 'peer', each in its own way",
        "rslad+igdm+another-mirror": "igdm and another-mirror both make the view 'mirror', each in its own way",
        "adr+other-targets": "adr and other-targets both make 'targets', each in its own way",
    }.items():  # fmt: skip
        refused(rkd("run", "--plugin", plugin, "--loss", name, *SMALL), reason)


@pytest.mark.slow
def test_settings(rkd) -> None:
    for (loss, setting), reason in {
        ("rslad", "companions.peer.model=mlp"): "companions.peer: the loss 'rslad' has none; its companions with",
        ("adr", "companions.average.model=mlp"): "no architecture to choose: the student's moving average",
        ("ciard", "companions.learner.model=mlp"): "no architecture to choose: learns, starts as the teacher robust",
        ("peeraid", "companions.peer.model=nosuch"): "there is no model 'nosuch'",
        ("peeraid", "companions.peer.wdth=3"): "companions.peer.wdth: there is no such option. Did you mean width?",
        ("rslad+mtard", "seed=0"): "objective: the losses side by side want kl-teacher (rslad) and ce (mtard); choose",
        ("rslad+cgard", "seed=0"): "attack: the losses side by side want pgd (rslad) and pgd-joint (cgard); choose",
        ("rslad+peeraid", "seed=0"): "objective.role: the losses side by side want none (rslad) and peer (peeraid)",
        ("rslad+rslad", "seed=0"): "loss: 'rslad+rslad' is no sum of different losses",
        ("cgard", "attack.name=pgd"): "nothing makes the view 'adv-teacher' (there is clean, adv)",
    }.items():  # fmt: skip
        refused(rkd("run", "--loss", loss, "--set", setting, *SMALL), reason)


@pytest.mark.slow
def test_values_of_schedulers(rkd, plugin: Path) -> None:
    for name, reason in {
        "three": "'class_weights' to tensor([1., 1., 1.]); expected a tensor (10,) of finite numbers, one a class",
        "twenty": "a scheduler sets 'class_weights.adv' to tensor([1., 1.",
        "nan": "expected a tensor (10,) of finite numbers, one a class",
        "text": "a scheduler sets 'class_weights' to 'large'; expected a tensor (10,)",
        "no-term": "scheduler 'no-term' sets 'class_weights.clean', but the loss has no term 'clean' (its terms: adv)",
        "many": "a scheduler sets 'weight.adv' to tensor([1., 1.]); expected a finite number",
    }.items():
        refused(rkd("run", "--plugin", plugin, "--loss", "pgd-at", "--scheduler", name, *SMALL), reason)


class Apart(Ranks):
    """Two processes that see all of each batch. The other one has class weights of its own."""

    def objects(self, mine: Any) -> list[Any]:
        return [mine, {name: value + 1 for name, value in mine.items()} if isinstance(mine, dict) else mine]

    def shared(self, samples: int) -> bool:
        return False

    def gather(self, mine: Tensor, sizes: list[int]) -> Tensor:
        return mine

    def sum(self, mine: Tensor) -> Tensor:
        return mine

    def once(self, do: Any) -> Any:
        return do()

    def from_first(self, value: Any) -> Any:
        return value

    def any(self, mine: bool) -> bool:
        return mine

    def share_step(self, nets: Any, share: float, loss: Tensor) -> Tensor:
        return loss


@pytest.mark.slow
def test_class_weights_that_differ_between_processes(rkd, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step on copies shows it, before anything is trained or written."""

    def meet(app: App) -> Ranks:
        app.load_torch()
        app.ranks = Apart(0, 2)
        return app.ranks

    monkeypatch.setattr(App, "meet", meet)
    monkeypatch.setattr(App, "leave", lambda app: None)
    said = rkd("run", "--plugin", plugin, "--loss", "pgd-at", "--scheduler", "right", *SMALL[:-1], "--name", "it")
    assert said.exit_code == 2
    words = " ".join(said.stderr.split())
    assert "the processes hold different values of class_weights" in words and "run.ranks.sum" in words
    assert not (Path("runs") / "it").exists()


@pytest.mark.slow
def test_generated_images(rkd, empty_folder: Path) -> None:
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10
    for name, arrays, reason in (
        ("shape", {"image": np.zeros((20, 9, 9, 1), np.uint8), "label": labels}, "it is uint8 of shape (20, 9, 9, 1)"),
        ("colour", {"image": np.zeros((20, 8, 8, 3), np.uint8), "label": labels}, "must hold images (N, 8, 8, 1) or"),
        ("float", {"image": images / 255, "label": labels}, "as uint8, those of the data set that they join"),
        ("more", {"image": images, "label": np.arange(20) % 12}, "label goes from 0 to 11, but the data set"),
        ("less", {"image": images, "label": labels - 1}, "label goes from -1 to 8, but the data set"),
        ("soft", {"image": images, "label": np.full((20, 10), 0.1)}, "label must hold integers (N,)"),
        ("count", {"image": images, "label": labels[:-1]}, "holds 20 images and 19 labels"),
        ("names", {"x": images, "y": labels}, "lacks image and label; the arrays there: x, y"),
    ):
        np.savez(empty_folder / f"{name}.npz", **arrays)
        words = ("--dataset", f"generated:{name}.npz", "--set", "data.base=digits")
        refused(rkd("run", "--loss", "pgd-at", *words, *SMALL), reason)


def refused(said, reason: str) -> None:
    assert said.exit_code == 2, f"{said.stdout}{said.stderr}"
    assert reason in " ".join(said.stderr.split()), said.stderr
    assert "Traceback" not in said.stderr and not Path("runs").exists()
