"""The Step: what a loss, an objective and a scheduler see of one batch. Lazy, and nothing is computed twice."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .attack import Target, WatchedProbe
from .errors import Refused, RkdError
from .interfaces import Attack, CachingTeacher, Objective, Probe, Student, Teacher
from .random import Noise, forked, key
from .traits import name_of, traits_of
from .types import Batch, DerivedView, Mode, ThreatModel, View


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """A search and what it maximises."""

    attack: Attack
    objective: Objective


@dataclass(slots=True)
class Used:
    """Which parts a step asked for: an attack, a teacher or a knob that nobody asks for is a user's mistake."""

    views: set[View] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)
    knobs: set[str] = field(default_factory=set)
    clean: set[str] = field(default_factory=set)
    """Roles of teachers whose answers to the clean images were asked for."""
    trained: set[View] = field(default_factory=set)
    """Views that the student ran on in train mode."""
    companions: set[str] = field(default_factory=set)


class Step:
    """One batch, with everything that can be asked about it.

    Views: `clean` is the batch's images, a view that an augmentation made is taken as it is, one of `views` follows
    from others, any other is made by the attack of that name on first request. `companions`: further nets, asked as the
    student is, or as teachers are. `targets` makes the labels that the loss teaches. `noise_key` names
    the step: all its random numbers follow from it. `on_query` is told of each forward of a search, with step, view,
    rows, number and logits: of the student's, and if `on_query_others` also of those of another net that it runs on
    (`transfer`).
    """

    def __init__(
        self,
        batch: Batch,
        student: Student,
        teachers: Mapping[str, Teacher] | None = None,
        attacks: Mapping[View, AttackPlan] | None = None,
        *,
        companions: Mapping[str, Student] | None = None,
        views: Mapping[View, DerivedView] | None = None,
        targets: Callable[[Step], Tensor] | None = None,
        threat: ThreatModel | None = None,
        knobs: Mapping[str, Any] | None = None,
        progress: float = 1.0,
        lr_scale: float = 1.0,
        noise_key: int = 0,
        on_query: Callable[[Step, View, Tensor | None, int, Tensor], None] | None = None,
        on_query_others: bool = False,
        on_end: Callable[[Step, View, Tensor], None] | None = None,
    ) -> None:
        self.batch = batch = _ordinary(batch)
        self.y = batch.y
        self.progress = progress
        self.lr_scale = lr_scale
        self.threat = threat or ThreatModel()
        self.used = Used()
        self._student = student
        self._teachers = teachers or {}
        self._companions = companions or {}
        self._attacks = attacks or {}
        self._views = views or {}
        self._make_targets = targets
        self._knobs: Mapping[str, float | Tensor] = knobs or {}
        self.noise_key = noise_key
        self._on_query = on_query
        self._on_query_others = on_query_others
        self._on_end = on_end
        self.synchronised = False
        """Whether batch norms in train mode wait for other processes: then all must ask the net equally often."""
        self.again = False
        """Whether the same samples have gone through the student in train mode: running statistics stay."""
        self.searching: tuple[View, Mode] | None = None
        """View and mode of the search that is running, if one is."""
        self.usual_role: str | None = None
        """The teacher that a loss means where it names none, of several that stand side by side."""
        self._open: tuple[View, ...] = ()
        for view in {**self._attacks, **self._views}:
            makers = [
                ("the data", ["clean"]), ("an augmentation", batch.views), ("an attack", self._attacks),
                ("the loss", self._views),
            ]  # fmt: skip
            if len(twice := [maker for maker, views in makers if view in views]) > 1:
                raise Refused(
                    f"{' and '.join(twice)} both make the view {view!r}: take one of them out, or give the attack "
                    "another view"
                )
        self._images: dict[View, Tensor] = {"clean": batch.x, **batch.views}
        self._logits: dict[tuple[str, View, Mode], Tensor] = {}  # of companions by their names, of the student by ""
        self._teacher_logits: dict[tuple[str, View], Tensor] = {}
        self._probed: dict[tuple[View, Mode], Tensor] = {}
        self._targets: Tensor | None = None

    # What every loss needs

    @property
    def labels(self) -> Tensor:
        """Hard labels `(B,)` int64; refuses soft ones."""
        if self.y.ndim != 1:
            raise Refused(
                "this loss needs hard labels, but an augmentation made soft ones (mixup, cutmix): "
                "take that augmentation out, or choose a loss that accepts probabilities"
            )
        return self.y

    @property
    def targets(self) -> Tensor:
        """The labels that the loss teaches in place of the data's, `(B, K)` probabilities without gradient, computed
        once; `y` where it declares none (`rkd.core.traits.LossTraits.targets`)."""
        if self._make_targets is None:
            return self.y
        if self._targets is None:
            with torch.no_grad():
                self._targets = self._make_targets(self)
            if len(self._targets) != len(self.y) or self._targets.ndim != 2:
                raise Refused(
                    f"the loss made targets {tuple(self._targets.shape)}; expected probabilities of each sample, "
                    f"({len(self.y)}, classes)"
                )
        return self._targets

    def image(self, view: View = "clean") -> Tensor:
        """The images of a view, `(B, C, H, W)` in [0, 1]. That view's attack runs on the first request."""
        if view not in self._images:
            self._images[view] = self._made(view)
        if view != "clean":
            self.used.views.add(view)
        return self._images[view]

    def student(self, view: View = "clean", mode: Mode = "train") -> Tensor:
        """The student's logits `(B, K)` on a view; gradients flow to its weights."""
        return self.students(view, mode=mode)[0]

    def students(self, *views: View, mode: Mode = "train") -> tuple[Tensor, ...]:
        """The student's logits on several views. The order named is the order run."""
        if self.searching:  # memoised, they would reach the loss without a gradient to the weights
            raise Refused(
                "an objective asked for the student's logits in the middle of an attack, where its weights are frozen; "
                "use step.probe_logits(view)"
            )
        if mode == "train":
            self.used.trained.update(views)
        return self._answers("", views, mode)

    def companion(self, name: str, view: View = "clean", mode: Mode = "train") -> Tensor:
        """A companion's logits `(B, K)` on a view; gradients flow to its weights if it learns. `teacher(name, view)`
        gives its answer in eval mode, without gradient; so does this one while an attack runs."""
        if self.searching:
            return self.teacher(name, view)
        if name not in self._companions:
            raise Refused(f"there is no companion {name!r} (companions: {', '.join(self._companions) or 'none'})")
        self.used.companions.add(name)
        return self._answers(name, (view,), mode)[0]

    def _answers(self, name: str, views: Sequence[View], mode: Mode) -> tuple[Tensor, ...]:
        missing = {view: self.image(view) for view in views if (name, view, mode) not in self._logits}
        if missing:
            net = self._companions[name] if name else self._student
            run_in: Mode = "frozen" if self.again and mode == "train" else mode
            for view, logits in net.logits(missing, run_in).items():
                self._logits[name, view, mode] = logits
        return tuple(self._logits[name, view, mode] for view in views)

    def teacher(self, role: str | None = None, view: View = "clean") -> Tensor:
        """A teacher's logits `(B, K)` on a view, without gradient. No role: the only teacher. A companion's name: its
        logits in eval mode."""
        role = self._role(role)
        if (role, view) not in self._teacher_logits:
            teacher, x = self._teachers.get(role), self.image(view)
            if teacher is None:
                with torch.no_grad():
                    logits = self._companions[role].logits({view: x}, "eval")[view].detach()
            elif view == "clean" and isinstance(teacher, CachingTeacher):
                logits = teacher.clean_logits(self.batch)
            else:
                with torch.no_grad():
                    logits = teacher.logits(x).detach()
            self._teacher_logits[role, view] = logits
        if view == "clean" and role in self._teachers:
            self.used.clean.add(role)
        return self._teacher_logits[role, view]

    def knob(self, name: str, default: float | Tensor = 1.0) -> float | Tensor:
        """A value that a scheduler set in an earlier step, such as `T.robust`."""
        self.used.knobs.add(name)
        return self._knobs.get(name, default)

    def fresh(self) -> Step:
        """A second look at this step: the student's logits are computed anew, with its weights as they are. Images and
        teachers' logits are shared with this step."""
        other = copy.copy(self)
        other._logits = {}
        return other

    def detach(self) -> None:
        """Keep the logits of student and companions, and let their graphs go."""
        self._logits = {asked: logits.detach() for asked, logits in self._logits.items()}

    # What objectives need

    def role(self, role: str | None = None) -> str:
        """The role itself; for None the only teacher's, or `robust` where there are several."""
        if role is None and len(self._teachers) > 1 and "robust" in self._teachers:
            return "robust"
        return self._role(role)

    def ask(self, role: str | None, x: Tensor) -> Tensor:
        """A teacher's, or a companion's, logits on any images, differentiable in them (AdaAD). Not memoised."""
        role = self._role(role)
        if role in self._teachers:
            return self._teachers[role].logits(x)
        with self._companions[role].attacked("clean", "eval") as probe:
            return probe(x)

    def probe_logits(self, view: View = "clean") -> Tensor:
        """The attacked student's logits on a view in the attack's own mode, without gradient, once per mode."""
        mode: Mode = self.searching[1] if self.searching else "eval"
        if (view, mode) not in self._probed:
            with torch.no_grad():
                self._probed[view, mode] = self._student.logits({view: self.image(view)}, mode)[view].detach()
        return self._probed[view, mode]

    def keep(self, name: str, images: Tensor) -> None:
        """Take the images of a further view `VIEW-NAME` from the search of VIEW (`rkd.core.attack.Target.keep`)."""
        view = f"{self.searching[0] if self.searching else 'adv'}-{name}"
        if view in {**self._attacks, **self._views, **self.batch.views}:
            raise Refused(f"an attack makes the view {view!r} beside its own, and something else too: take one out")
        self._images[view] = images.detach()

    def select(self, keep: Tensor | slice) -> Step:
        """The step of a part of the samples, for a search that lets fallen samples leave. Teachers are not re-run."""
        part = self.fresh()
        part.batch = _ordinary(self.batch.select(keep))
        part.y = part.batch.y
        part._images = {view: x[keep] for view, x in self._images.items()}
        part._teacher_logits = {name: logits[keep] for name, logits in self._teacher_logits.items()}
        part._probed = {name: logits[keep] for name, logits in self._probed.items()}
        part._targets = None if self._targets is None else self._targets[keep]
        return part

    @contextmanager
    def on(self, net: nn.Module, mode: Mode) -> Iterator[tuple[Step, Probe]]:
        """Inside, this step in the middle of its search, and the probe, with `net` in the student's place. No attack
        makes further views."""
        view = self.searching[0] if self.searching else "adv"
        other = self.fresh()
        other._student, other.searching = self._student.stand_in(net), (view, mode)
        other._attacks, other._probed = {}, {}
        other._images, other._teacher_logits = dict(self._images), dict(self._teacher_logits)
        if not self._on_query_others:
            other._on_query = None
        with other._student.attacked(view, mode) as probe:
            yield other, other._watched(probe, view)

    def _watched(self, probe: Probe, view: View) -> Probe:
        """`probe`, a net under attack, with each of its forwards told to `on_query`."""
        on_query, numbers = self._on_query, itertools.count()
        if on_query is None:
            return probe
        rows = torch.arange(len(self.y), device=self.y.device)
        return WatchedProbe(probe, rows, lambda rows, logits: on_query(self, view, rows, next(numbers), logits))

    def _role(self, role: str | None) -> str:
        given = ", ".join(self._teachers) or "none"
        if role is None and self.usual_role in self._teachers and not self.searching:
            role = self.usual_role
        if role is None:
            if len(self._teachers) == 1:
                return self._role(next(iter(self._teachers)))
            if not self._teachers:
                raise Refused("a teacher is needed, and there is none: take another loss, attack or objective")
            raise Refused(f"there are several teachers ({given}); whoever asks must name one, such as objective.role")
        if role in self._teachers:
            self.used.roles.add(role)
        elif role in self._companions:
            self.used.companions.add(role)
        else:
            raise Refused(f"a teacher with the role {role!r} is needed (given: {given}); type --teacher {role}=MODEL")
        return role

    def _made(self, view: View) -> Tensor:
        """The images of a view that nobody has asked for yet."""
        if view in self._open:
            maker = "attack" if view in self._attacks else "loss"
            hint = ": its objective must use the images it is given" if maker == "attack" else ""
            raise Refused(f"the {maker} that makes the view {view!r} asks for that very view{hint}")
        self._open = (*self._open, view)
        try:
            if view not in self._views:
                who, images = self._search(view)
            else:
                with torch.no_grad():
                    who, images = f"what the loss calls {view!r}", self._views[view].make(self)
        finally:
            self._open = self._open[:-1]
        x = self.batch.x
        if not isinstance(images, Tensor):
            raise Refused(f"{who} returned {type(images).__name__}, not images")
        if images.shape != x.shape or images.dtype != x.dtype:
            raise Refused(
                f"{who} returned {images.dtype} images {tuple(images.shape)} for {x.dtype} ones {tuple(x.shape)}"
            )
        if self._on_end is not None and view in self._attacks:
            self._on_end(self, view, images.detach())
        return images.detach()

    def _search(self, view: View) -> tuple[str, Tensor]:
        """The attack's name, in words, and what it found."""
        if view not in self._attacks:
            views = ", ".join(["clean", *self.batch.views, *self._attacks, *self._views])
            raise Refused(
                f"nothing makes the view {view!r} (there is {views}); type --attack {view}=NAME"
                if view != "adv"
                else f"an attack is needed for the view 'adv' (there is {views}); type --attack NAME"
            )
        plan = self._attacks[view]
        mode, who = traits_of(plan.attack).mode, f"the attack {name_of(plan.attack)}"
        outer, self.searching = self.searching, (view, mode)
        noise = Noise(key(self.noise_key, view), self.batch.index)
        # Only a train-mode search (dropout) may touch the global generator: leave it as it was.
        random = forked(key(self.noise_key, view, "net"), self.y.device) if mode != "eval" else nullcontext()
        try:
            with torch.inference_mode(False), torch.enable_grad(), random, self._student.attacked(view, mode) as probe:
                x = self.batch.x.detach()
                images = plan.attack(x, Target(self, plan.objective, self._watched(probe, view), noise))
        except Exception as error:
            if not hasattr(error, "__notes__") and not isinstance(error, RkdError):
                error.add_note(f"while {who} made the view {view!r}")
            raise
        finally:
            self.searching = outer
        return who, images


def _ordinary(batch: Batch) -> Batch:
    """The batch, in copies if it was made in inference mode: such tensors take no part in gradients."""
    if not (batch.x.is_inference() or batch.y.is_inference()):
        return batch
    with torch.inference_mode(False):
        views = {name: images.clone() for name, images in batch.views.items()}
        return Batch(batch.x.clone(), batch.y.clone(), batch.index.clone(), views)
