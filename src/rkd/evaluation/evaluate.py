"""Clean and attacked accuracy, sample by sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .. import ops
from ..core.errors import DataError, Refused, RkdError
from ..core.random import key
from ..core.step import AttackPlan, Step
from ..core.traits import name_of, traits_of
from ..core.types import ThreatModel
from ..data.dataset import Split, check_images, fetch
from ..nets.modes import running
from ..nets.net import PLAIN
from ..storage.text import fraction
from .counting import CountingModel
from .journal import fingerprint
from .model import FIRST_IMAGES, check_classes, check_finite, checked_forward, prepare_model
from .result import AttackResult, Evaluation, Gallery
from .samples import EvalSettings, Record, run_batches, split_by_margin
from .threat import ball_of, check_inside, check_threat, to_eight_bits
from .warnings import find_warnings

BATCHING = "by lead, distances"
"""How images are put into batches, and what is known of them: a journal of other ones is another one."""


@runtime_checkable
class HasNotes(Protocol):
    """An attack that has something to say about its settings; evaluations show it."""

    def notes(self, classes: int) -> Sequence[str]:
        """What a reader of the result should know, a sentence each, on data of so many classes."""


# Tensors of inference mode take no part in gradients, which attacks need, whatever the caller's own mode.
@torch.inference_mode(False)
def evaluate(
    net: nn.Module,
    split: Split,
    attacks: Mapping[str, AttackPlan] | None = None,
    settings: EvalSettings | None = None,
) -> Evaluation:
    """Run `net`, which takes images in [0, 1], on `split`, clean and under each attack.

    The net is left as it was: weights, gradients, buffers, modes; so is the global random state. An attack in train
    mode runs in `frozen` here. Raises DataError for images outside [0, 1], RkdError if an attack leaves its ball or the
    net's logits are unfit.
    """
    settings, attacks = settings or EvalSettings(), attacks or {}
    if not isinstance(net, nn.Module):
        raise RkdError(f"the net must be a torch.nn.Module, got {type(net).__name__}")
    if not len(split):
        raise DataError("there are no images to evaluate on")
    check_threat(settings.threat)
    if "clean" in attacks:
        raise RkdError("an attack cannot be called 'clean' in an evaluation: that name is the images as they are")
    positions, processes = settings.samples(split), settings.ranks.size
    if processes > 1:  # a batch for every process
        size = max(1, min(settings.batch_size, -(-len(positions) // processes)))
        settings = replace(settings, batch_size=size)
    net = prepare_model(net, fetch(split, positions[:FIRST_IMAGES], settings.device).x)
    if settings.journal is not None:
        settings.journal.open(_fingerprint(net, split, positions, attacks, settings))
    model = _Model(net, split, positions, settings)

    rows = torch.arange(len(positions))
    records = run_batches("clean", rows.split(settings.batch_size), model.clean, len(rows), settings, _is_valid)
    clean = _merge(records, rows, None)
    classes = settings.ranks.from_first(model.classes) or 0
    result = Evaluation(positions, model.labels, {"clean": clean}, classes, settings.threat)
    kept = _examples(clean.right, model.labels, settings.examples)
    assert clean.margin is not None
    right = clean.right.nonzero().squeeze(1)
    batches = split_by_margin(right, clean.margin[right], settings.batch_size, processes)
    images: dict[str, Tensor] = {}
    for name, plan in attacks.items():
        compute = model.attacked(name, plan, kept)
        records = run_batches(name, batches, compute, len(rows), settings, _is_valid)
        outcome = _merge(records, torch.cat(list(batches)) if batches else right, clean)
        engines = dict.fromkeys(bytes(r["engine"].tolist()).decode() for r in records if "engine" in r)
        outcome.about = describe(plan, settings.threat, classes) | {"engine": "; ".join(engines) or PLAIN.name}
        result.outcomes[name], images[name] = outcome, _images(records)
    if len(kept) and attacks:
        result.gallery = _gallery(result, kept, images, split)
    result.warnings = find_warnings(result)
    return result


class _Model:
    """The net on rows of the evaluated samples. A record of a batch has `right`, `prediction`, `confidence`, `margin`
    and, of attacks, `rounded`, `distance`, the `images` at the rows `kept`, `count` (forwards and backwards of the net,
    then those of other nets) and `engine`, how the net ran (a text's UTF-8)."""

    def __init__(self, net: nn.Module, split: Split, positions: Tensor, settings: EvalSettings) -> None:
        self.net, self.split, self.positions, self.settings = net, split, positions, settings
        self.labels = split.labels[positions].cpu()
        self.classes = settings.classes

    def clean(self, rows: Tensor) -> Record:
        batch = fetch(self.split, self.positions[rows], self.settings.device)
        check_images(batch.x)
        logits = checked_forward(self.net, batch.x)
        self.classes = check_classes(logits, batch.y, self.classes)
        check_finite(logits)
        return _record(logits, batch.y)

    def attacked(self, name: str, plan: AttackPlan, kept: Tensor) -> Callable[[Tensor], Record]:
        """The attack, as a function of rows; of those in `kept` the record holds the images."""
        net, settings = self.net, self.settings
        noise, ball = key(settings.seed, name), ball_of(plan, settings.threat)
        traits = traits_of(plan.attack)
        accelerator = settings.accelerator if traits.confirms else PLAIN
        search, measure = unbounded(plan), traits.measure or (ball or settings.threat).norm

        def attack(rows: Tensor) -> Record:
            batch = fetch(self.split, self.positions[rows], settings.device)
            student = CountingModel(net, accelerator)
            step = Step(batch, student, attacks={"adv": search or plan}, threat=settings.threat, noise_key=noise)
            x_adv, distance = step.image("adv"), None
            if search is not None:
                check_inside(batch.x, x_adv, None, name)
                with running(net, "eval"), torch.no_grad():
                    right = ops.correct(net(x_adv), batch.y)
                distance = ops.image_norm(x_adv - batch.x, measure).where(~right, torch.inf)
                if ball is not None:
                    x_adv = ops.where(ops.image_norm(x_adv - batch.x, ball.norm) <= ball.eps, x_adv, batch.x)
            check_inside(batch.x, x_adv, ball, name)
            with running(net, "eval"), torch.no_grad():
                record = _record(net(x_adv), batch.y)
                if distance is not None:
                    record["distance"] = distance.cpu()
                if settings.rounded:
                    rounded = to_eight_bits(batch.x, x_adv, ball)
                    record["rounded"] = ops.correct(net(rounded), batch.y).cpu()
            shown = torch.isin(rows, kept)
            if bool(shown.any()):
                record |= {"kept": rows[shown], "images": x_adv[shown.to(x_adv.device)].cpu()}
            own, others = student.queries, student.other_queries
            counts = torch.tensor([own.forwards, own.backwards, others.forwards, others.backwards])
            engine = torch.tensor(list(("; ".join(accelerator.choices()) or PLAIN.name).encode()), dtype=torch.uint8)
            return record | {"count": counts, "engine": engine}

        return attack


def _record(logits: Tensor, y: Tensor) -> Record:
    confidence, prediction = logits.float().softmax(1).max(1)
    finite = logits.isfinite().all(1)  # a confidence of NaN would be none in JSON either
    return {
        "right": ops.correct(logits, y).cpu(),
        "prediction": prediction.cpu(),
        "confidence": torch.where(finite, confidence, 0.0).cpu(),
        "margin": torch.where(finite, ops.margin(logits, y), -torch.inf).cpu(),
    }


_COLUMNS = {"right": torch.bool, "rounded": torch.bool, "prediction": torch.int64, "confidence": torch.float32,
            "margin": torch.float32, "distance": torch.float32}  # fmt: skip


def _is_valid(record: Record, rows: Tensor, other: Record | None) -> bool:
    """Whether what a journal holds has the form of a record of these rows, and of the `other` record."""
    if not {"right", "prediction", "confidence", "margin", "seconds"} <= record.keys():
        return False
    if ("kept" in record) != ("images" in record):
        return False
    if other is not None and (record.keys() ^ other.keys()) - {"kept", "images"}:
        return False
    for name, value in record.items():
        if name in _COLUMNS:
            valid = value.dtype == _COLUMNS[name] and tuple(value.shape) == (len(rows),)
        elif name == "engine":
            valid = value.dtype == torch.uint8 and value.ndim == 1 and bytes(value.tolist()).isascii()
        elif name == "images":
            valid = value.dtype == torch.float32 and value.ndim == 4 and len(value) == len(record["kept"])
        else:
            valid = (name, tuple(value.shape)) in (("seconds", (1,)), ("count", (4,))) or name == "kept"
        if not valid:
            return False
    return True


def _merge(records: Sequence[Record], rows: Tensor, clean: AttackResult | None) -> AttackResult:
    """The result of the records of `rows` in turn; what is not attacked stays as it is `clean`."""

    def column(name: str, before: Tensor | None) -> Tensor:
        values = torch.cat([record[name] for record in records]) if records else None
        if before is None:
            assert values is not None
            return values
        merged = before.clone()
        if values is not None:
            merged[rows] = values
        return merged

    counts = [record["count"] for record in records if "count" in record]
    forwards, backwards, *others = torch.stack(counts).sum(0).tolist() if counts else (0, 0, 0, 0)
    return AttackResult(
        column("right", clean.right if clean else None),
        column("prediction", clean.prediction if clean else None),
        column("confidence", clean.confidence if clean else None),
        column("rounded", clean.right if clean else None) if records and "rounded" in records[0] else None,
        forwards, backwards, float(sum(float(record["seconds"]) for record in records)),
        margin=column("margin", clean.margin if clean else None), others=tuple(others),
        distance=column("distance", torch.zeros(len(clean.right), dtype=torch.float32))
        if clean and records and "distance" in records[0] else None,
    )  # fmt: skip


def _images(records: Sequence[Record]) -> Tensor:
    """The images of the gallery, in the order of their rows."""
    shown = [record for record in records if "images" in record]
    if not shown:
        return torch.empty(0)
    order = torch.cat([record["kept"] for record in shown]).argsort()
    return torch.cat([record["images"] for record in shown])[order]


def unbounded(plan: AttackPlan) -> AttackPlan | None:
    """The search that finds the nearest image of all, if the attack is one that looks for it whatever the radius, or
    keeps to none; None for other attacks."""
    attack: Any = plan.attack
    traits = traits_of(attack)
    if traits.any_radius:
        return AttackPlan(replace(attack, bounded=False), plan.objective)
    return plan if traits.seeks_nearest and not traits.bounded else None


def describe(plan: AttackPlan, threat: ThreatModel, classes: int) -> dict[str, Any]:
    """What an attack is, with all its options, in plain values."""
    attack, traits, ball = plan.attack, traits_of(plan.attack), ball_of(plan, threat)
    notes = list(attack.notes(classes)) if isinstance(attack, HasNotes) else []
    inside = ball is not None and ball.norm == threat.norm and ball.eps <= threat.eps * (1 + 1e-6)
    if ball is None:
        notes.append("keeps to no ball: not part of the worst case")
    elif not inside:
        own, allowed = (f"{t.norm} {fraction(t.eps)}" for t in (ball, threat))
        notes.append(f"its ball, {own}, is not within the threat's, {allowed}: not part of the worst case")
    measure = traits.measure or threat.norm
    if measure != threat.norm:
        notes.append(f"it looks for the nearest image in {measure}: of little use in a ball of {threat.norm}")
    return {
        "implementation": f"{type(attack).__module__}.{type(attack).__qualname__}",
        "options": _options(attack),
        "objective": name_of(plan.objective),
        "norm": ball.norm if ball else None,
        "eps": ball.eps if ball else None,
        "measure": measure,
        "in_threat": inside,
        "black_box": traits.black_box,
        "notes": notes,
    }


def _options(component: Any) -> dict[str, Any]:
    """The options of a component in plain values; a schedule as it is written."""
    if not is_dataclass(component):
        return {}
    options = {}
    for item in fields(component):
        value = getattr(component, item.name)
        plain = value is None or isinstance(value, (bool, int, float, str))
        options[item.name] = value if plain else str(value) if callable(value) else type(value).__name__
    return options


class _Enough(Exception):
    pass


def rehearse(net: nn.Module, split: Split, attacks: Mapping[str, AttackPlan], settings: EvalSettings) -> None:
    """Raise Refused for an attack that an evaluation could not run, at the price of one forward and backward each.

    Each is called on two images and stopped at its second query, of this net or another (`transfer`).
    """
    batch = fetch(split, torch.arange(min(2, len(split))), settings.device)
    for name, plan in attacks.items():
        queries: list[str] = []

        def stop(
            step: Step, view: str, rows: Tensor | None, query: int, logits: Tensor, queries: list[str] = queries
        ) -> None:
            queries.append(view)
            if len(queries) > 1:
                raise _Enough

        step = Step(batch, CountingModel(net), attacks={"adv": plan}, threat=settings.threat, on_query=stop,
                    on_query_others=True)  # fmt: skip
        try:
            step.image("adv")
        except _Enough:
            continue
        except RkdError as error:
            raise Refused(f"the attack {name!r} could not be run in the evaluation: {error}") from None


def _examples(right: Tensor, labels: Tensor, count: int) -> Tensor:
    """Rows of `count` samples that are right, from as many classes as there are, in order."""
    rows = right.nonzero().squeeze(1)
    if not count or not len(rows):
        return rows[:0]
    turn = torch.zeros(len(rows), dtype=torch.int64)
    for label in labels[rows].unique():
        of_it = labels[rows] == label
        turn[of_it] = torch.arange(int(of_it.sum()))
    return rows[turn.argsort(stable=True)[:count]].sort().values


def _gallery(result: Evaluation, kept: Tensor, images: Mapping[str, Tensor], split: Split) -> Gallery:
    """Each image with what the first attack that fooled the net made of it, else with what came nearest to it. Attacks
    outside the threat model are shown where there is no other."""

    def margin(name: str, row: int) -> float:
        outcome = result.outcomes[name]
        assert outcome.margin is not None
        return max(float(outcome.margin[row]), 0.0) if outcome.right[row] else -1.0

    shown = [name for name in images if result.counts(name)] or list(images)
    names = [min(shown, key=lambda name: margin(name, row)) for row in kept.tolist()]
    adversarial = torch.stack([images[name][place] for place, name in enumerate(names)])
    return Gallery(kept, names, split.images(result.index[kept]).cpu(), adversarial)


def _fingerprint(
    net: nn.Module, split: Split, positions: Tensor, attacks: Mapping[str, AttackPlan], settings: EvalSettings
) -> str:
    """Names an evaluation in a journal: the same net, data, attacks and settings that the numbers depend on."""
    s = settings
    # Buffers that no weights file holds are among them: a normalisation is one.
    weights = [part for item in chain(net.named_parameters(), net.named_buffers()) for part in item]
    described = [(name, describe(plan, s.threat, s.classes or 0)) for name, plan in attacks.items()]
    return fingerprint(
        BATCHING, described, s.threat, s.rounded, s.classes, s.accelerator.name, s.seed, s.batch_size, s.examples,
        s.ranks.size, positions, split.labels[positions].cpu(), split.images(positions[:1]), repr(net), *weights,
    )  # fmt: skip
