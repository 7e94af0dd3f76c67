"""`rkd teachers rank`: what teachers are worth before a student is trained with one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rkd.core.errors import ConfigError, RkdError
from rkd.data.dataset import Split, fetch
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.journal import MONTH, Journal
from rkd.evaluation.result import Evaluation
from rkd.evaluation.samples import EvalSettings, choose_samples
from rkd.nets.modes import running
from rkd.profiling.bench import bench
from rkd.registry.catalog import Catalog
from rkd.registry.recipes import Table, merge
from rkd.storage.text import command

from ..build import accelerate, build
from ..evaluate import evaluate_and_check, settings_of
from ..folders import cache_folder
from ..plan import Plan, Reporter, Silent, tell_data
from ..preparing.teachers import ResolvedTeacher, load_teachers
from ..resolve import resolve
from . import unlearnable as rule

USUAL_TRAINING_IMAGES = 10_000
"""Training images that are attacked unless told otherwise: with a share of 1 % unlearnable still three times LEAST."""

NOT_ROBUST = "not robust beyond chance, so not ranked: the rule is about robust teachers"


@dataclass
class _Candidate:
    """A teacher with the plan of the run that it would teach in, where its own entry is `teacher`."""

    name: str
    plan: Plan
    teachers: list[ResolvedTeacher]
    teacher: ResolvedTeacher

    @property
    def net(self) -> nn.Module:
        return self.teacher.teacher.net


@dataclass
class _Measured:
    """`right (N,)` and `entropy (M,)` are of training images; `test` is the evaluation on the test images."""

    test: Evaluation
    clean: float
    right: Tensor
    entropy: Tensor
    at_chance: bool


def rank_teachers(
    table: Mapping[str, Any], catalog: Catalog, reporter: Reporter | None = None, *, references: Sequence[str] = (),
    unlearnable: str | None = None, train_limit: int | None = None, limit: int | None = None, steps: int = 20,
    seconds: float = 2.0,
) -> dict[str, Any]:  # fmt: skip
    """Measure each of the table's teachers as the only one given to the run that the table describes, and rank them by
    their mean predictive entropy (nats, clean images) on the robustly unlearnable training images.

    These are, of `train_limit` training images, those that no net of `references` gets right under PGD of `steps`
    steps; without references, that no teacher gets right which is robust beyond chance; or those that the file
    `unlearnable` lists (`read_positions`). `limit`: test images (None: the table's, or all). `seconds`: how long the
    student's step is timed with each teacher. Nothing is trained. Returns what `rkd teachers rank --json` prints.
    Raises RkdError.
    """
    reporter = reporter or Silent()
    reporter.doing("reading settings, data and teachers")
    run = _as_run(table, steps)
    candidates = _load(run, catalog, reporter)
    plan = candidates[0].plan
    data = plan.data
    listed = None if unlearnable is None else rule.read_positions(unlearnable, len(data.train))
    tested = _positions(limit or plan.config.evaluate.limit, data.test, "--limit", "test", len(data.test))
    looked_at = _positions(train_limit, data.train, "--train-limit", "training", USUAL_TRAINING_IMAGES)
    others = [_of(run, {"reference": text}, [], catalog, reporter) for text in references]
    tell_data(plan, reporter)
    journal = Journal(cache_folder() / "evaluations", kept=MONTH)

    def settings(candidate: _Candidate, part: str, positions: Tensor) -> EvalSettings:
        progress = reporter.evaluating(f"{candidate.name}, {part} images")
        return replace(settings_of(candidate.plan, progress=progress, journal=journal), positions=positions)

    def on_training(candidate: _Candidate) -> Evaluation:
        chosen = settings(candidate, "training", looked_at)
        return evaluate(candidate.net, data.train, candidate.plan.evaluation, chosen)

    measured: dict[str, _Measured] = {}
    for candidate in candidates:
        own = settings(candidate, "test", tested)
        test = evaluate_and_check(candidate.net, data.test, candidate.plan.evaluation, own, catalog)
        train = on_training(candidate)
        entropy = _entropies(candidate.net, data.train, looked_at if listed is None else listed, own)
        (right,) = train.attacks.values()
        measured[candidate.name] = _Measured(
            test, train.accuracy(), right, entropy, rule.at_chance(right, train.labels)
        )
    robust = [name for name, one in measured.items() if not one.at_chance]
    if listed is not None:
        rows, by = torch.arange(len(listed)), "file"
    elif others:
        rows, by = rule.wrong_for_all([on_training(other).attacks["pgd"] for other in others]), "references"
    else:
        rows, by = rule.wrong_for_all([measured[name].right for name in robust or measured]), "teachers"
    journal.close()
    refused = None
    if len(rows) < rule.LEAST:
        refused = rule.too_few(len(rows))
    elif len(robust) < 2:
        refused = f"{len(robust)} of {len(measured)} teachers are robust beyond chance: the rule compares robust ones"
    entropies = {name: one.entropy[rows] for name, one in measured.items()} if len(rows) >= rule.LEAST else {}
    ranked = {} if refused else {name: entropies[name] for name in robust}
    ranking = rule.by_entropy(ranked)
    costs = {}
    for candidate in candidates:  # after all else: what is timed is rearranged for its device
        reporter.doing(f"timing a step of the student with {candidate.name}")
        costs[candidate.name] = _cost(candidate, catalog, seconds)
    positions = looked_at if listed is None else listed
    return {
        "data": data.name,
        "threat": asdict(data.threat),
        "student": plan.config.student.model,
        "loss": plan.config.loss.name,
        "steps": steps,
        "test_images": measured[candidates[0].name].test.samples,
        "train_images": len(looked_at),
        "unlearnable": {"by": by, "images": len(rows), "of": len(positions), "references": list(references)},
        "teachers": [_summary(c, measured[c.name], entropies.get(c.name), ranking, costs[c.name]) for c in candidates],
        "ranking": None if refused else ranking,
        "refused": refused,
        "warnings": _warnings(measured, ranked),
        rule.KEY: positions[rows].tolist(),
    }


def _as_run(table: Mapping[str, Any], steps: int) -> Table:
    """The table with PGD as its evaluation, and RSLAD unless it names a loss."""
    run = merge({"loss": {"name": "rslad"}}, table)
    own = run.get("evaluate", {})
    if isinstance(own, Mapping):  # whatever else it is, is told as for any run
        kept = {key: own[key] for key in ("limit", "batch_size") if key in own}
        run["evaluate"] = kept | {"attacks": ["pgd"], "options": {"pgd": {"steps": steps, "start": "uniform"}}}
    return run


def _load(run: Table, catalog: Catalog, reporter: Reporter) -> list[_Candidate]:
    """All teachers, before any is measured: a mistake in the last one shall not show after hours."""
    given = run.get("teachers", [])
    if not isinstance(given, list) or not all(isinstance(entry, Mapping) for entry in given):
        raise ConfigError("teachers: is a list of tables")
    teachers = [entry for entry in given if "reference" in entry]
    added = [entry for entry in given if "reference" not in entry]
    names = [str(entry["reference"]) for entry in teachers]
    if len(names) < 2:
        raise RkdError(f"a ranking needs two teachers or more, as in --teacher A --teacher B; given: {len(names)}")
    if len(set(names)) < len(names):
        raise RkdError(f"the teacher {max(names, key=names.count)} is given twice")
    return [_of(run, entry, added, catalog, reporter) for entry in teachers]


def _of(
    run: Table, teacher: Mapping[str, Any], added: Sequence[Mapping[str, Any]], catalog: Catalog, reporter: Reporter
) -> _Candidate:
    """One teacher, resolved and loaded as for a run that is given it alone."""
    plan = resolve(run | {"teachers": [teacher, *added]}, catalog)
    teachers = load_teachers(plan, catalog, reporter)
    name = str(teacher["reference"])
    loaded = next(one for one in teachers if one.reference.text == name)
    if loaded.missing:
        train = command("run", "--dataset", plan.data.name, "--student", name, "--loss", "trades")
        raise RkdError(
            f"the teacher {name} is not trained yet, and only trained nets can be ranked: give {name}@FILE or the "
            f"folder of a finished run, such as that of `{train}`"
        )
    return _Candidate(name, plan, teachers, loaded)


def _positions(limit: int | None, split: Split, option: str, part: str, usual: int) -> Tensor:
    if limit is not None and limit > len(split):
        raise RkdError(f"{option}: {limit} is above the {len(split):,} {part} images")
    return choose_samples(len(split), limit or min(len(split), usual))


def _entropies(net: nn.Module, split: Split, positions: Tensor, settings: EvalSettings) -> Tensor:
    """Of the net's answers to the clean images at `positions (M,)`, in nats `(M,)`."""
    found = []
    with running(net, "eval"), torch.no_grad():
        for rows in positions.split(settings.batch_size):
            logits = net(fetch(split, rows, settings.device).x)
            found.append(torch.special.entr(logits.double().softmax(1)).sum(1).cpu())
    return torch.cat(found)


def _cost(candidate: _Candidate, catalog: Catalog, seconds: float) -> dict[str, Any]:
    """A step of the run with this teacher, as `rkd bench` times it, without cached answers."""
    roles = {one.reference.role: one.teacher for one in candidate.teachers}
    run = build(candidate.plan, catalog, roles)
    accelerate(run, candidate.plan.config.engine)
    timed = bench(run, seconds, least=1)
    return {"step_images": timed.images, "step_seconds": timed.step, "step_flops": sum(timed.flops.values())}


def _summary(
    candidate: _Candidate, measured: _Measured, entropy: Tensor | None, ranking: Sequence[str], cost: Mapping[str, Any]
) -> dict[str, Any]:
    test = measured.test.summary()
    name = candidate.name
    return {
        "teacher": name,
        "role": candidate.teacher.reference.role,
        "source": candidate.teacher.source,
        "parameters": sum(parameter.numel() for parameter in candidate.net.parameters()),
        "rank": ranking.index(name) + 1 if name in ranking else None,
        "entropy": None if entropy is None else float(entropy.mean()),
        "entropy_error": None if entropy is None else rule.standard_error(entropy),
        "clean": test["clean"],
        "robust": test["attacks"]["pgd"],
        "interval_95": {"clean": test["interval_95"]["clean"], "robust": test["interval_95"]["pgd"]},
        "train_clean": measured.clean,
        "train_robust": float(measured.right.double().mean()),
        "at_chance": measured.at_chance,
        "ece": test["calibration"]["clean"]["ece"],
        "ece_robust": test["calibration"]["pgd"]["ece"],
        **cost,
    }


def _warnings(measured: Mapping[str, _Measured], ranked: Mapping[str, Tensor]) -> list[str]:
    """A sentence each: what makes a number doubtful, and what the ranking does not say."""
    said: dict[str, list[str]] = {}
    for name, one in measured.items():
        if one.at_chance:
            said.setdefault(NOT_ROBUST, []).append(name)
        for warning in one.test.warnings:
            if warning.check != "few-samples":  # of every net alike; the intervals stand beside the numbers
                said.setdefault(str(warning), []).append(name)
    found = [f"{', '.join(names)}: {text}" for text, names in said.items()]
    for first, second, mean, error in rule.not_told_apart(ranked):
        found.append(f"{first} and {second}: mean entropies {mean:.3f} ± {error:.3f} apart: their order says nothing")
    return found
