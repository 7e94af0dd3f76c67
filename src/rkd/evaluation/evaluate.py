"""Clean and attacked accuracy, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ops
from ..core.attack import PLAIN as NO_ACCELERATOR
from ..core.errors import DataError, RkdError
from ..core.interfaces import Accelerator, HasNotes, traits_of
from ..core.random import key
from ..core.step import AttackPlan, Step
from ..core.types import ThreatModel, fraction
from ..data.dataset import Split, check_images, fetch
from ..distributed.ranks import ALONE, Ranks
from ..nets.modes import running
from .answers import ask as ask_net
from .answers import check_answer, check_numbers
from .counting import Evaluated
from .journal import Journal, fingerprint
from .model import FEW, ready
from .result import Evaluation, Gallery, Outcome
from .threat import check_inside, check_threat, reach, to_eight_bits
from .warnings import doubts

Progress = Callable[[str, int, int], None]
"""(what, samples done, samples in all)"""

PLAIN = "plain"
"""The engine of a search that ran on the net as it is."""

PARTING = "by lead"
"""How images are put into batches: a journal of other batches is another one."""


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
    accelerator: Accelerator = NO_ACCELERATOR,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run `net`, which takes images in [0, 1], on `split`, clean and under each attack.

    `limit` takes that many samples, drawn once and for all from the split (the same for every net and seed), and
    `positions (M,)` these very ones.
    `rounded`: also the accuracy after rounding each adversarial image to 8 bits inside its ball. `examples`: how many
    images to keep for a gallery. `journal`: where to note each batch; what it already holds is not done again.
    `accelerator`: lets attacks that confirm what they find run on a faster copy of the net; every image that is
    counted is judged by the net itself all the same.
    `ranks`: processes that call this alike; each does its part of the batches, and all get the whole result.
    The net is left as it was: weights, gradients, buffers, modes; so is the global random state. An attack in train
    mode runs in `frozen` here. `classes`: None for as many as the net has.
    Raises DataError for images outside [0, 1], RkdError if an attack leaves its ball or the net's logits are unfit.
    """
    if not isinstance(net, nn.Module):
        raise RkdError(f"the net must be a torch.nn.Module, got {type(net).__name__}")
    if not len(split):
        raise DataError("there are no images to evaluate on")
    check_threat(threat)
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise RkdError(f"the batch size must be a whole number of at least 1, got {batch_size!r}")
    attacks = attacks or {}
    if "clean" in attacks:
        raise RkdError("an attack cannot be called 'clean' in an evaluation: that name is the images as they are")
    positions = choose(len(split), limit) if positions is None else positions
    if ranks.size > 1:  # a batch for every process
        batch_size = max(1, min(batch_size, -(-len(positions) // ranks.size)))
    net = ready(net, fetch(split, positions[:FEW], device).x)
    ask = _Questions(net, split, positions, threat, torch.device(device), rounded, classes, accelerator)
    if journal is not None:
        journal.open(_fingerprint(ask, attacks, seed, batch_size, examples, ranks.size))
    notes = _Notes(journal, progress or (lambda what, done, total: None), len(positions), ranks)

    everything = torch.arange(len(positions))
    clean = notes.collect("clean", [(rows, ask.clean) for rows in everything.split(batch_size)], everything)
    ask.classes = ranks.from_first(ask.classes)
    kept = _spread(clean.right, ask.labels, examples)
    result = Evaluation(positions, ask.labels, {"clean": clean}, ask.classes or 0, threat)
    made: dict[str, Tensor] = {}
    assert clean.margin is not None
    standing = clean.right.nonzero().squeeze(1)
    parts = _parts(standing, clean.margin[standing], batch_size, ranks.size)
    standing = torch.cat(parts) if parts else standing
    for name, plan in attacks.items():
        jobs = [(rows, ask.attacked(name, plan, key(seed, name), kept)) for rows in parts]
        outcome = notes.collect(name, jobs, standing, clean)
        outcome.about = describe(plan, threat, ask.classes or 0) | {"engine": notes.engine}
        result.outcomes[name] = outcome
        made[name] = notes.images
    if len(kept) and attacks:
        result.gallery = _gallery(result, kept, made, split)
    result.warnings = doubts(result)
    return result


class _Questions:
    """What is asked of the net, by rows of the evaluated samples. Each answer is a dict of tensors, one row a sample:
    `right`, `prediction`, `confidence`, and of attacks also `count` (forwards and backwards of the net, then those of
    other nets) and `engine`, which way the net ran (a text's UTF-8)."""

    def __init__(
        self, net: nn.Module, split: Split, positions: Tensor, threat: ThreatModel, device: torch.device,
        rounded: bool, classes: int | None, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.net, self.split, self.positions, self.accelerator = net, split, positions, accelerator
        self.threat, self.device, self.rounded, self.classes = threat, device, rounded, classes
        self.labels = split.labels[positions].cpu()

    def clean(self, rows: Tensor) -> dict[str, Tensor]:
        batch = fetch(self.split, self.positions[rows], self.device)
        check_images(batch.x)
        logits = ask_net(self.net, batch.x)
        self.classes = check_answer(logits, batch.y, self.classes)
        check_numbers(logits)
        return _read(logits, batch.y)

    def attacked(self, name: str, plan: AttackPlan, noise: int, kept: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        """A search; of the rows in `kept` the images come with the answer."""

        accelerator = self.accelerator if traits_of(plan.attack).confirms else NO_ACCELERATOR

        def answer(rows: Tensor) -> dict[str, Tensor]:
            batch = fetch(self.split, self.positions[rows], self.device)
            student = Evaluated(self.net, accelerator)
            step = Step(batch, student, attacks={"adv": plan}, threat=self.threat, noise_key=noise)
            x_adv = step.image("adv")
            ball = reach(plan, self.threat)
            check_inside(batch.x, x_adv, ball, name)
            with running(self.net, "eval"), torch.no_grad():
                found = _read(self.net(x_adv), batch.y)
                if self.rounded:
                    rounded = to_eight_bits(batch.x, x_adv, ball)
                    found["rounded"] = ops.correct(self.net(rounded), batch.y).cpu()
            here = torch.isin(rows, kept)
            if bool(here.any()):
                found |= {"kept": rows[here], "images": x_adv[here.to(self.device)].cpu()}
            way = ("; ".join(accelerator.choices()) or PLAIN).encode()
            asked, others = student.asked, student.asked_of_others
            counts = torch.tensor([asked.forwards, asked.backwards, others.forwards, others.backwards])
            return found | {"count": counts, "engine": torch.tensor(list(way), dtype=torch.uint8)}

        return answer


def _fits(found: Mapping[str, Tensor], count: int, other: Mapping[str, Tensor]) -> bool:
    """Whether what a journal holds has the form of an answer for `count` images, and of the `other` answers."""
    forms = {"right": torch.bool, "rounded": torch.bool, "prediction": torch.int64, "confidence": torch.float32,
             "margin": torch.float32}  # fmt: skip
    if not {"right", "prediction", "confidence", "margin", "seconds"} <= found.keys():
        return False
    if ("kept" in found) != ("images" in found):
        return False
    if (found.keys() ^ other.keys()) - {"kept", "images"}:
        return False
    for name, value in found.items():
        if name in forms:
            sound = value.dtype == forms[name] and tuple(value.shape) == (count,)
        elif name == "engine":
            sound = value.dtype == torch.uint8 and value.ndim == 1 and bytes(value.tolist()).isascii()
        elif name == "images":
            sound = value.dtype == torch.float32 and value.ndim == 4 and len(value) == len(found["kept"])
        else:
            sound = (name, tuple(value.shape)) in (("seconds", (1,)), ("count", (4,))) or name == "kept"
        if not sound:
            return False
    return True


class _Notes:
    """Puts the batches of one question together, noting each in the journal, if there is one."""

    def __init__(self, journal: Journal | None, progress: Progress, total: int, ranks: Ranks) -> None:
        self.journal, self.progress, self.total, self.ranks = journal, progress, total, ranks
        self.images = torch.empty(0)
        """Of the last question: the images of the gallery, in the order of their rows."""
        self.engine = PLAIN
        """Of the last question: which way the net ran; more than one if a resumed evaluation went on in another."""

    def collect(
        self, what: str, jobs: Sequence[tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]], rows: Tensor,
        clean: Outcome | None = None,
    ) -> Outcome:  # fmt: skip
        done = self.total - len(rows)
        self.progress(what, done, self.total)
        answers: dict[int, dict[str, Tensor]] = {}
        for number, (part, ask) in enumerate(jobs):
            done += len(part)
            if number % self.ranks.size != self.ranks.rank:
                continue
            found = self.journal.read(what, number) if self.journal else None
            if found is not None and not _fits(found, len(part), next(iter(answers.values()), found)):
                found = None  # a stranger's journal: it is asked anew
            if found is None:
                started = time.perf_counter()
                found = ask(part)
                found["seconds"] = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
                if self.journal:
                    self.journal.write(what, number, found)
            answers[number] = found
            self.progress(what, done, self.total)
        for others in self.ranks.objects(answers):
            answers |= others
        if sum(len(answer["right"]) for answer in answers.values()) != len(rows):
            raise RkdError(f"{what}: the processes evaluated other images than the {len(rows)} they were to share")
        if self.ranks.size > 1:
            self.progress(what, self.total, self.total)
        return self._together(rows, [answers[number] for number in range(len(jobs))], clean)

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
        order = torch.cat([a["kept"] for a in answers if "kept" in a] or [rows[:0]]).argsort()
        self.images = torch.cat(images)[order] if images else torch.empty(0)
        ways = dict.fromkeys(bytes(a["engine"].tolist()).decode() for a in answers if "engine" in a)
        self.engine = "; ".join(ways) or PLAIN
        rounding = bool(answers) and "rounded" in answers[0]
        counts = [answer["count"] for answer in answers if "count" in answer]
        forwards, backwards, *others = torch.stack(counts).sum(0).tolist() if counts else (0, 0, 0, 0)
        return Outcome(
            column("right", clean.right if clean else None),
            column("prediction", clean.prediction if clean else None),
            column("confidence", clean.confidence if clean else None),
            column("rounded", clean.right if clean else None) if rounding else None,
            forwards, backwards, float(sum(float(answer["seconds"]) for answer in answers)),
            margin=column("margin", clean.margin if clean else None), others=tuple(others),
        )  # fmt: skip


def describe(plan: AttackPlan, threat: ThreatModel, classes: int) -> dict[str, Any]:
    """What an attack is, with all its options, in plain values."""
    attack, traits, ball = plan.attack, traits_of(plan.attack), reach(plan, threat)
    notes = list(attack.notes(classes)) if isinstance(attack, HasNotes) else []
    inside = ball is not None and ball.norm == threat.norm and ball.eps <= threat.eps * (1 + 1e-6)
    if ball is None:
        notes.append("keeps to no ball: not part of the worst case")
    elif not inside:
        here, there = (f"{t.norm} {fraction(t.eps)}" for t in (ball, threat))
        notes.append(f"its ball, {here}, is not within the threat's, {there}: not part of the worst case")
    measure = traits.measure or threat.norm
    if measure != threat.norm:
        notes.append(f"it looks for the nearest image in {measure}: of little use in a ball of {threat.norm}")
    goal = plan.objective
    return {
        "implementation": f"{type(attack).__module__}.{type(attack).__qualname__}",
        "options": _options(attack),
        "objective": getattr(goal, "__name__", type(goal).__name__),
        "norm": ball.norm if ball else None,
        "eps": ball.eps if ball else None,
        "measure": measure,
        "in_threat": inside,
        "black_box": traits.black_box,
        "notes": notes,
    }


def choose(count: int, limit: int | None) -> Tensor:
    """Positions of the samples to evaluate: all, or `limit` of them drawn once and for all, in order."""
    if limit is None or limit == count:
        return torch.arange(count)
    if not isinstance(limit, Integral) or not 1 <= limit <= count:
        raise DataError(f"the limit of samples must be between 1 and {count}, the size of the test data; got {limit}")
    generator = torch.Generator().manual_seed(key("evaluation subset"))
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _parts(rows: Tensor, lead: Tensor, most: int, processes: int) -> Sequence[Tensor]:
    """`rows` in parts of at most `most`, for several processes as many and as large a part for each.

    Those of a similar `lead` of the label go together: where most fall, a batch soon shrinks, and where most stand, it
    stays as large as it is fast. The processes are dealt theirs in turn, so that they have as much to do.
    """
    rows = rows[lead.argsort(descending=True, stable=True)]
    rounds = max(-(-len(rows) // (most * processes)), 1)
    dealt = [part[place::processes] for part in rows.tensor_split(rounds) for place in range(processes)]
    return [part for part in dealt if len(part)]


def _read(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    confidence, prediction = logits.float().softmax(1).max(1)
    sound = logits.isfinite().all(1)  # a confidence that is no number would be none in JSON either
    return {
        "right": ops.correct(logits, y).cpu(),
        "prediction": prediction.cpu(),
        "confidence": torch.where(sound, confidence, 0.0).cpu(),
        "margin": torch.where(sound, ops.margin(logits, y), -torch.inf).cpu(),
    }


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
    """Of each image kept what the first attack that fooled the net made of it, else what came nearest to it. Attacks
    outside the threat model are shown where there is no other."""
    shown = [name for name in made if result.counts(name)] or list(made)
    names = [min(shown, key=lambda name: _lead(result.outcomes[name], row)) for row in kept.tolist()]
    adversarial = torch.stack([made[name][place] for place, name in enumerate(names)])
    return Gallery(kept, names, split.images(result.index[kept]).cpu(), adversarial)


def _lead(outcome: Outcome, row: int) -> float:
    """The label's lead in logits after an attack; none where the net is fooled."""
    assert outcome.margin is not None
    return max(float(outcome.margin[row]), 0.0) if outcome.right[row] else -1.0


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
    return fingerprint(PARTING, searches, ask.threat, ask.rounded, ask.classes, ask.accelerator.name, *settings,
                       ask.positions, ask.labels, first, repr(ask.net), *weights)  # fmt: skip
