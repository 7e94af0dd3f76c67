"""Clean and attacked accuracy, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .data import Split, check_images, fetch
from .doubts import Doubt, doubts
from .engine.choose import Engine
from .errors import DataError, Refused, RkdError
from .interfaces import Probe
from .journal import Journal, fingerprint
from .measures import calibration, interval, nrr, per_class, w_robust
from .modes import running
from .nets import NetStudent, check_logits
from .random import key
from .step import AttackPlan, Step
from .types import Batch, Mode, ThreatModel, View, at, fraction

Progress = Callable[[str, int, int], None]
"""(what, samples done, samples in all)"""

SLACK = 1e-6
"""How far an adversarial image may stand outside its ball and [0, 1]: rounding."""


@dataclass
class Outcome:
    """What the net says to some version of the evaluated images. All tensors `(N,)`, on the CPU.

    `confidence`: the largest probability. `forwards` and `backwards` count images through the net during the search;
    `about` says what was run. `rounded`: right after rounding to 8 bits inside the ball, if that was asked for.
    """

    right: Tensor
    prediction: Tensor
    confidence: Tensor
    rounded: Tensor | None = None
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Gallery:
    """Some images with what an attack made of them: `clean` and `adversarial` `(M, C, H, W)`, and `(M,)` positions
    among the evaluated samples with the attack's name."""

    rows: Tensor
    attacks: list[str]
    clean: Tensor
    adversarial: Tensor


@dataclass
class Evaluation:
    """Which samples a net gets right: `clean` and, under each attack, `attacks[name]`, `(N,)` bool.

    A sample counts as right under an attack if it is right both clean and attacked: an image that is already
    wrong needs no attack, and none is run on it. `index`: positions in the data; `outcomes`: all that is known,
    under `clean` and the attacks' names.
    """

    index: Tensor
    labels: Tensor
    outcomes: dict[str, Outcome]
    classes: int
    threat: ThreatModel = field(default_factory=ThreatModel)
    warnings: list[Doubt] = field(default_factory=list)
    gallery: Gallery | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Further findings by name (`curve`, `corruptions`, ...), plain values for JSON."""

    @property
    def samples(self) -> int:
        return len(self.index)

    @property
    def clean(self) -> Tensor:
        return self.outcomes["clean"].right

    @property
    def attacks(self) -> dict[str, Tensor]:
        return {name: outcome.right for name, outcome in self.outcomes.items() if name != "clean"}

    def accuracy(self, attack: str | None = None) -> float:
        """A fraction in [0, 1]: clean, or under an attack."""
        return float(self.outcomes[attack or "clean"].right.double().mean())

    def w_robust(self, attack: str) -> float:
        """(clean + robust) / 2, the measure of Zhao et al. (MTARD, ECCV 2022)."""
        return w_robust(self.accuracy(), self.accuracy(attack))

    def nrr(self, attack: str) -> float:
        """The harmonic mean of clean and robust accuracy."""
        return nrr(self.accuracy(), self.accuracy(attack))

    def counts(self, attack: str) -> bool:
        """Whether an attack keeps to the threat model, and so belongs into the worst case."""
        return self.outcomes[attack].about.get("in_threat", True)

    def worst(self) -> Tensor:
        """Samples that every attack of the threat model left right, `(N,)` bool."""
        right = self.clean.clone()
        for name, survived in self.attacks.items():
            if self.counts(name):
                right &= survived
        return right

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        names = list(self.attacks)
        worst = self.worst()
        rights = {"clean": self.clean, **self.attacks, "worst_case": worst}
        found: dict[str, Any] = {
            "samples": self.samples,
            "clean": self.accuracy(),
            "attacks": {name: self.accuracy(name) for name in names},
            "w_robust": {name: self.w_robust(name) for name in names},
            "nrr": {name: self.nrr(name) for name in names},
            "worst_case": float(worst.double().mean()),
            "interval_95": {name: interval(right) for name, right in rights.items()},
            "seconds": {name: round(outcome.seconds, 2) for name, outcome in self.outcomes.items()},
            "warnings": [doubt.plain() for doubt in self.warnings],
            "per_class": {name: per_class(right, self.labels, self.classes) for name, right in rights.items()},
            "calibration": {name: calibration(o.confidence, o.right) for name, o in self.outcomes.items()},
            "searches": {name: self._search(name) for name in names},
        }
        found["worst_class"] = {
            name: min((a for a in accuracies if a is not None), default=None)
            for name, accuracies in found["per_class"].items()
        }
        if any(o.rounded is not None for o in self.outcomes.values()):
            found["rounded"] = {n: float(o.rounded.double().mean()) for n, o in self.outcomes.items()
                                if o.rounded is not None}  # fmt: skip
        if self.gallery is not None:
            found["examples"] = self._examples(self.gallery)
        return found | self.extra

    def _search(self, name: str) -> dict[str, Any]:
        outcome = self.outcomes[name]
        attacked = int(self.clean.sum())
        fell = int((self.clean & ~outcome.right).sum())
        counts = {"attacked": attacked, "fooled": fell, "forwards": outcome.forwards, "backwards": outcome.backwards}
        return outcome.about | counts | {"seconds": round(outcome.seconds, 2)}

    def _examples(self, gallery: Gallery) -> list[dict[str, Any]]:
        def said(name: str, row: int) -> dict[str, Any]:
            outcome = self.outcomes[name]
            return {"prediction": int(outcome.prediction[row]), "confidence": float(outcome.confidence[row])}

        return [
            {"index": int(self.index[row]), "label": int(self.labels[row]), "attack": name}
            | {"clean": said("clean", row), "adversarial": said(name, row)}
            for row, name in zip(gallery.rows.tolist(), gallery.attacks, strict=True)
        ]


# Tensors of inference mode take no part in gradients, which attacks need, whatever the caller's own mode.
@torch.inference_mode(False)
def evaluate(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan] | None = None,
    *,
    threat: ThreatModel,
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    positions: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    rounded: bool = False,
    examples: int = 0,
    journal: Journal | None = None,
    engine: Engine | None = None,
) -> Evaluation:
    """Run `net`, which takes images in [0, 1], on `split`, clean and under each attack.

    `limit` takes that many samples, drawn once and for all from the split (the same for every net and seed), and
    `positions (M,)` these very ones.
    `rounded`: also the accuracy after rounding each adversarial image to 8 bits inside its ball. `examples`: how many
    images to keep for a gallery. `journal`: where to note each batch; what it already holds is not done again.
    `engine`: lets searches that confirm what they find run on a faster copy of the net; every image that is counted
    is judged by the net itself all the same.
    The net is left as it was: weights, gradients, buffers, modes; so is the global random state. An attack in train
    mode runs in `frozen` here. `classes`: None for as many as the net has.
    Raises DataError for images outside [0, 1], RkdError if an attack leaves its ball or the net's logits are unfit.
    """
    if not len(split):
        raise DataError("there are no images to evaluate on")
    check_threat(threat)
    attacks = attacks or {}
    if "clean" in attacks:
        raise RkdError("an attack cannot be called 'clean' in an evaluation: that name is the images as they are")
    positions = choose(len(split), limit) if positions is None else positions
    net = in_float32(net)
    ask = _Questions(net, split, positions, threat, torch.device(device), rounded, classes, engine)
    if journal is not None:
        journal.open(_fingerprint(ask, attacks, seed, batch_size, examples))
    notes = _Notes(journal, progress or (lambda what, done, total: None), len(positions))

    everything = torch.arange(len(positions))
    clean = notes.collect("clean", [(rows, ask.clean) for rows in everything.split(batch_size)], everything)
    kept = _spread(clean.right, ask.labels, examples)
    result = Evaluation(positions, ask.labels, {"clean": clean}, ask.classes or 0, threat)
    made: dict[str, Tensor] = {}
    standing = clean.right.nonzero().squeeze(1)
    for name, plan in attacks.items():
        parts = standing.split(batch_size) if len(standing) else ()  # an empty tensor splits into one part
        jobs = [(rows, ask.attacked(name, plan, key(seed, name), kept, len(parts))) for rows in parts]
        outcome = notes.collect(name, jobs, standing, clean)
        outcome.about = describe(plan, threat, ask.classes or 0) | {"engine": ask.engines.get(name, "plain")}
        result.outcomes[name] = outcome
        made[name] = notes.images
    if len(kept) and attacks:
        result.gallery = _gallery(result, kept, made, split)
    result.warnings = doubts(result)
    return result


class _Questions:
    """What is asked of the net, by rows of the evaluated samples. Each answer is a dict of tensors, one row a sample:
    `right`, `prediction`, `confidence`, and of attacks also `count` (forwards, backwards)."""

    def __init__(
        self, net: nn.Module, split: Split, positions: Tensor, threat: ThreatModel, device: torch.device,
        rounded: bool, classes: int | None, engine: Engine | None,
    ) -> None:  # fmt: skip
        self.net, self.split, self.positions, self.engine = net, split, positions, engine
        self.engines: dict[str, str] = {}
        """Which way the net ran in each search, where it was another than as it is."""
        self.threat, self.device, self.rounded, self.classes = threat, device, rounded, classes
        self.labels = split.labels[positions].cpu()

    def clean(self, rows: Tensor) -> dict[str, Tensor]:
        batch = fetch(self.split, self.positions[rows], self.device)
        check_images(batch.x)
        if int(batch.y.min()) < 0:
            raise DataError(f"a label is {int(batch.y.min())}; labels are classes from 0")
        with running(self.net, "eval"), torch.no_grad():
            logits = self.net(batch.x)
        self.classes = self.classes or (logits.shape[-1] if isinstance(logits, Tensor) and logits.ndim else 0)
        check_logits(logits, len(batch), self.classes, "the net")
        if not bool(logits.isfinite().all()):
            raise RkdError("the net's logits for clean images hold NaN or infinity: nothing can be said of such a net")
        if int(batch.y.max()) >= self.classes:
            raise DataError(f"a label is {int(batch.y.max())}, but the net knows {self.classes} classes")
        return _read(logits, batch.y)

    def attacked(
        self, name: str, plan: AttackPlan, noise: int, kept: Tensor, batches: int
    ) -> Callable[[Tensor], dict[str, Tensor]]:
        """A search; of the rows in `kept` the images come with the answer."""

        def answer(rows: Tensor) -> dict[str, Tensor]:
            batch = fetch(self.split, self.positions[rows], self.device)
            fast = self.engine.choice(self.net, plan.attack, batch.x, batches) if self.engine else None
            if fast is not None:
                self.engines[name] = str(fast)
            student = _Evaluated(self.net, fast.net if fast else None)
            step = Step(batch, student, attacks={"adv": plan}, threat=self.threat, noise_key=noise)
            x_adv = step.image("adv")
            ball = reach(plan, self.threat)
            check_inside(batch.x, x_adv, ball)
            with running(self.net, "eval"), torch.no_grad():
                found = _read(self.net(x_adv), batch.y)
                if self.rounded:
                    rounded = to_eight_bits(batch.x, x_adv, ball)
                    found["rounded"] = ops.correct(self.net(rounded), batch.y).cpu()
            here = torch.isin(rows, kept)
            if bool(here.any()):
                found |= {"kept": rows[here], "images": x_adv[here.to(self.device)].cpu()}
            return found | {"count": torch.tensor([student.forwards, student.backwards])}

        return answer


class _Notes:
    """Puts the batches of one question together, noting each in the journal, if there is one."""

    def __init__(self, journal: Journal | None, progress: Progress, total: int) -> None:
        self.journal, self.progress, self.total = journal, progress, total
        self.images = torch.empty(0)
        """Of the last question: the images of the gallery, in the order of their rows."""

    def collect(
        self, what: str, jobs: Sequence[tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]], rows: Tensor,
        clean: Outcome | None = None,
    ) -> Outcome:  # fmt: skip
        done = self.total - len(rows)
        self.progress(what, done, self.total)
        answers = []
        for number, (part, ask) in enumerate(jobs):
            found = self.journal.read(what, number) if self.journal else None
            if found is None:
                started = time.perf_counter()
                found = ask(part)
                found["seconds"] = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
                if self.journal:
                    self.journal.write(what, number, found)
            answers.append(found)
            done += len(part)
            self.progress(what, done, self.total)
        return self._together(rows, answers, clean)

    def _together(self, rows: Tensor, answers: list[dict[str, Tensor]], clean: Outcome | None) -> Outcome:
        def column(name: str, start: Tensor | None) -> Tensor:
            values = torch.cat([answer[name] for answer in answers]) if answers else None
            if start is None:
                assert values is not None
                return values
            whole = start.clone()
            if values is not None:
                whole[rows] = values
            return whole

        images = [a["images"] for a in answers if "images" in a]
        self.images = torch.cat(images) if images else torch.empty(0)
        rounding = bool(answers) and "rounded" in answers[0]
        counts = [answer["count"] for answer in answers if "count" in answer]
        forwards, backwards = torch.stack(counts).sum(0).tolist() if counts else (0, 0)
        return Outcome(
            column("right", clean.right if clean else None),
            column("prediction", clean.prediction if clean else None),
            column("confidence", clean.confidence if clean else None),
            column("rounded", clean.right if clean else None) if rounding else None,
            forwards, backwards, float(sum(float(answer["seconds"]) for answer in answers)),
        )  # fmt: skip


class _Evaluated(NetStudent):
    """A net that learns nothing any more: not even its running statistics move. Counts what a search asks of it.

    `fast`: a copy that a search in eval mode may use instead; it gets at the net itself by `Target.exact`.
    """

    def __init__(self, net: nn.Module, fast: nn.Module | None = None) -> None:
        super().__init__(net)
        self.fast = fast
        self.forwards = self.backwards = 0

    def logits(self, images: Mapping[View, Tensor], mode: Mode) -> dict[View, Tensor]:
        self.forwards += sum(map(len, images.values()))
        return super().logits(images, mode)

    @contextmanager
    def attacked(self, view: View, mode: Mode) -> Iterator[Probe]:
        with super().attacked(view, "frozen" if mode == "train" else mode) as probe:
            asked = self.fast if self.fast is not None and mode == "eval" else probe
            yield _Counted(self, asked, probe)

    def counted(self, logits: Tensor) -> Tensor:
        def backward(gradient: Tensor) -> None:
            self.backwards += len(gradient)

        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)
        return logits


class _Counted:
    """The net as a search sees it, and `exact`, as it is."""

    def __init__(self, student: _Evaluated, asked: Probe, exact: Probe) -> None:
        self._student, self._asked, self._exact = student, asked, exact

    def __call__(self, x: Tensor) -> Tensor:
        return self._student.counted(self._asked(x))

    def exact(self, x: Tensor) -> Tensor:
        return self._student.counted(self._exact(x))


class _Enough(Exception):
    pass


def rehearse(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan],
    *,
    threat: ThreatModel,
    device: torch.device | str = "cpu",
) -> None:
    """Raise Refused for an attack that an evaluation could not run, at the price of one forward and backward each.

    Each is called on two images and stopped at its second question to the net.
    """
    batch = fetch(split, torch.arange(min(2, len(split))), device)
    for name, plan in attacks.items():
        asked: list[str] = []

        def stop(step: Step, view: str, logits: Tensor, asked: list[str] = asked) -> None:
            asked.append(view)
            if len(asked) > 1:
                raise _Enough

        step = Step(batch, _Evaluated(net), attacks={"adv": plan}, threat=threat, on_query=stop)
        try:
            step.image("adv")
        except _Enough:
            continue
        except RkdError as error:
            raise Refused(f"the attack {name!r} could not be run in the evaluation: {error}") from None


def search(net: nn.Module, batch: Batch, plan: AttackPlan, threat: ThreatModel, noise_key: int) -> Tensor:
    """The images that one attack makes of a batch, in evaluation: `(B, C, H, W)`. The net is left as it was."""
    return Step(batch, _Evaluated(net), attacks={"adv": plan}, threat=threat, noise_key=noise_key).image("adv")


def reach(plan: AttackPlan, threat: ThreatModel) -> ThreatModel | None:
    """The ball that an attack keeps to: its own `eps` and `norm`, else the threat's; None if it keeps to none."""
    attack = plan.attack
    if not getattr(attack, "bounded", True):
        return None
    eps = getattr(attack, "eps", None)
    norm = getattr(attack, "norm", None) or threat.norm
    return ThreatModel(norm, threat.eps if eps is None else at(eps, 1.0), threat.step_size)


def check_inside(x: Tensor, x_adv: Tensor, ball: ThreatModel | None) -> None:
    """Raise RkdError unless the images `x_adv` are numbers in [0, 1] and, if there is one, inside the ball around x."""
    if x_adv.shape != x.shape or not bool(x_adv.isfinite().all()):
        raise RkdError("an attack returned images of another shape, or values that are not numbers")
    if float(x_adv.min()) < -SLACK or float(x_adv.max()) > 1 + SLACK:
        raise RkdError("an attack returned images outside [0, 1]")
    if ball is None:
        return
    change = (x_adv.double() - x.double()).flatten(1)
    size = change.abs().amax(1) if ball.norm == "Linf" else change.norm(dim=1)
    if float(size.max()) > ball.eps * (1 + 1e-5) + SLACK:
        raise RkdError(
            f"an attack left its ball: {ball.norm} {float(size.max()):.6g} from the image, where eps is "
            f"{fraction(ball.eps)}; an attack without a ball says so with bounded = False"
        )


def to_eight_bits(x: Tensor, x_adv: Tensor, ball: ThreatModel | None) -> Tensor:
    """`x_adv` on the grid of 8-bit images, still inside the ball: each pixel to the nearest level, or where that is
    outside (in L2: wherever it leads away from x) to the nearest one on the side of x."""
    levels = x_adv * 255
    nearest = levels.round()
    towards = torch.where(x_adv > x, (levels - 1e-4).floor(), (levels + 1e-4).ceil())
    # Between x and its own nearest level, x itself is as near as one comes.
    towards = torch.where((towards / 255 - x).sign() * (x_adv - x).sign() < 0, x * 255, towards)
    if ball is None:
        return nearest / 255
    if ball.norm == "Linf":
        out = (nearest / 255 - x).abs() > ball.eps + SLACK
    else:
        out = (nearest / 255 - x).abs() > (x_adv - x).abs()
    return torch.where(out, towards, nearest) / 255


def describe(plan: AttackPlan, threat: ThreatModel, classes: int) -> dict[str, Any]:
    """What an attack is, with all its options, in plain values."""
    attack, ball = plan.attack, reach(plan, threat)
    notes = list(attack.notes(classes)) if hasattr(attack, "notes") else []
    inside = ball is not None and ball.norm == threat.norm and ball.eps <= threat.eps * (1 + 1e-6)
    if ball is None:
        notes.append("keeps to no ball: not part of the worst case")
    elif not inside:
        here, there = (f"{t.norm} {fraction(t.eps)}" for t in (ball, threat))
        notes.append(f"its ball, {here}, is not within the threat's, {there}: not part of the worst case")
    measure = getattr(attack, "measure", threat.norm)
    if measure != threat.norm:
        notes.append(f"it looks for the nearest image in {measure}: of little use in a ball of {threat.norm}")
    goal = plan.objective
    return {
        "implementation": f"{type(attack).__module__}.{type(attack).__qualname__}",
        "options": _options(attack),
        "objective": getattr(goal, "__name__", type(goal).__name__) if callable(goal) else str(goal),
        "norm": ball.norm if ball else None,
        "eps": ball.eps if ball else None,
        "in_threat": inside,
        "black_box": bool(getattr(attack, "black_box", False)),
        "notes": notes,
    }


def check_threat(threat: ThreatModel) -> None:
    """Raise RkdError for a radius that no attacker has."""
    if not threat.eps > 0:
        raise RkdError(f"eps must be above 0, got {threat.eps:g}; for clean accuracy alone give no attack")
    if threat.norm == "Linf" and threat.eps > 1:
        raise RkdError(f"eps is in units of [0, 1] images, got {threat.eps:g}; 8/255 is meant by 8 of 255 levels")


def choose(count: int, limit: int | None) -> Tensor:
    """Positions of the samples to evaluate: all, or `limit` of them drawn once and for all, in order."""
    if limit is None or limit == count:
        return torch.arange(count)
    if not 1 <= limit <= count:
        raise DataError(f"the limit of samples must be between 1 and {count}, the size of the test data; got {limit}")
    generator = torch.Generator().manual_seed(key("evaluation subset"))
    return torch.randperm(count, generator=generator)[:limit].sort().values


def in_float32(net: nn.Module) -> nn.Module:
    """`net`, or around one with weights of another type something that takes and gives float32."""
    kinds = {p.dtype for p in net.parameters() if p.is_floating_point()}
    return net if not kinds or torch.float32 in kinds else _InFloat32(net, kinds.pop())


class _InFloat32(nn.Module):
    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x.to(self.dtype))
        return logits.float() if isinstance(logits, Tensor) else logits


def _read(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    confidence, prediction = logits.float().softmax(1).max(1)
    return {"right": ops.correct(logits, y).cpu(), "prediction": prediction.cpu(), "confidence": confidence.cpu()}


def _spread(right: Tensor, labels: Tensor, count: int) -> Tensor:
    """Rows of `count` samples that are right, from as many classes as there are, in order."""
    rows = right.nonzero().squeeze(1)
    if not count or not len(rows):
        return rows[:0]
    turn = torch.zeros(len(rows), dtype=torch.int64)
    for label in labels[rows].unique():
        of_it = labels[rows] == label
        turn[of_it] = torch.arange(int(of_it.sum()))
    return rows[turn.argsort(stable=True)[:count]].sort().values


def _gallery(result: Evaluation, kept: Tensor, made: Mapping[str, Tensor], split: Split) -> Gallery:
    """Of each image kept what the first attack that fooled the net made of it, else what the last one made."""
    names = [
        next((name for name in made if not result.outcomes[name].right[row]), list(made)[-1]) for row in kept.tolist()
    ]
    adversarial = torch.stack([made[name][place] for place, name in enumerate(names)])
    return Gallery(kept, names, split.images(result.index[kept]).cpu(), adversarial)


def _options(component: Any) -> dict[str, Any]:
    """The options of a component in plain values; a schedule as it is written."""
    if not is_dataclass(component):
        return {}
    found = {}
    for item in fields(component):
        value = getattr(component, item.name)
        plain = value is None or isinstance(value, (bool, int, float, str))
        found[item.name] = value if plain else str(value) if callable(value) else type(value).__name__
    return found


def _fingerprint(ask: _Questions, attacks: Mapping[str, AttackPlan], *settings: object) -> str:
    weights = [part for item in ask.net.state_dict().items() for part in item]
    searches = [(name, describe(plan, ask.threat, ask.classes or 0)) for name, plan in attacks.items()]
    first = ask.split.images(ask.positions[:1])
    return fingerprint(searches, ask.threat, ask.rounded, ask.classes, *settings, ask.positions, ask.labels, first,
                       repr(ask.net), *weights)  # fmt: skip
