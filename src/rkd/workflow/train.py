"""Carry out a configuration: teachers, training, evaluation, and everything that belongs into the run's folder."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rkd.core.errors import ConfigError, NotFinite, Refused, RkdError
from rkd.core.interfaces import Teacher
from rkd.core.run import Run
from rkd.core.trainer import fit
from rkd.distributed.ranks import ALONE, Ranks
from rkd.evaluation.evaluate import rehearse
from rkd.evaluation.journal import Journal
from rkd.evaluation.result import Evaluation
from rkd.evaluation.samples import EvalSettings
from rkd.nets.memory_format import restore as as_kept
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.storage.lock import run_lock
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import to_cpu
from rkd.storage.text import command, read_text
from rkd.training.accumulation import Accumulation
from rkd.training.auto_batch import auto_micro_batches
from rkd.training.divergence import check_alike, diverged
from rkd.training.dry_run import StepCost, dry_step
from rkd.training.teacher_cache import cached_teachers
from rkd.training.validation import Validation, chosen_net

from .build import accelerate, build, checkpointer
from .evaluate import evaluate_plan
from .folders import cache_folder
from .forecast import duration, predict
from .manifest import cost_of, engine_of, manifest_of, sizes_of, try_to_write, weights_of
from .plan import Plan, Reporter, Silent, tell_data
from .preparing.baseline import Baseline, baseline_of, baseline_results, prepare_baseline
from .preparing.teachers import ResolvedTeacher, load_teachers, prepare
from .resolve import evaluation_batch, resolve
from .resume import continue_run, digest
from .saving import save_gallery


def train_run(
    table: Mapping[str, Any],
    catalog: Catalog,
    path: Path,
    reporter: Reporter | None = None,
    *,
    title: str = "student",
    dry_run: bool = False,
    limit_minutes: float | None = None,
    how_to_avoid: str = "",
    resume: bool = False,
    changed: bool = False,
    report: Callable[[RunFolder], Path | None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Run a configuration in the folder `path`. Returns the results, as `rkd run --json` prints them.

    Nothing is written before the configuration, the teachers and a dry step have proved sound. Several processes call
    this alike with their `ranks`; the first one writes and reports, all get the results. `changed`: a run that goes on
    gets this configuration instead of its own; `report` writes the page of a finished run. Raises RkdError.
    """
    started = time.perf_counter()
    reporter = reporter or Silent()
    if not resume and not dry_run:
        ranks.once(lambda: _check_place(path))
    reporter.doing(f"{title}: reading settings and data")
    plan = resolve(table, catalog)
    _check_processes(plan, ranks)
    tell_data(plan, reporter)
    baseline = baseline_of(plan, catalog)
    teachers = load_teachers(plan, catalog, reporter, ranks)
    unready = baseline is not None and not ranks.from_first(baseline.ready)
    if unready or any(teacher.missing for teacher in teachers):
        # A mistake in the run itself shall not show after the hours that these may take.
        reporter.doing(f"{title}: trying a training step and the evaluation on a few images")
        _rehearse(build(plan, catalog, _by_role(teachers), tell=reporter.message), plan)
        teachers = [
            prepare(t, plan, catalog, reporter, train_run, dry_run, ranks) if t.missing else t for t in teachers
        ]
    if baseline is not None and unready:
        prepare_baseline(baseline, catalog, reporter, train_run, dry_run, ranks)
    run = build(plan, catalog, _by_role(teachers), reporter.training(title), ranks, reporter.message)
    if plan.config.validate_.on == "test":
        reporter.message("the weights are chosen on the TEST images, as asked: the results are not for unseen data")
    reporter.doing(f"{title}: trying a training step and the evaluation on a few images")
    card = _rehearse(run, plan)
    check_alike(run, ranks)
    if plan.config.auto_batch:
        _choose_parts(run, plan, reporter, ranks)
    reporter.doing(f"{title}: estimating time and memory")
    seconds, memory = ranks.from_first(predict(run, plan, card, ranks))
    card = replace(card, memory=memory)
    reporter.cost(title, run, card, seconds)
    if limit_minutes is not None and seconds > 60 * limit_minutes:
        raise Refused(
            f"preparing the {title} would take about {duration(seconds)} on this machine "
            f"(the limit is {limit_minutes:g} minutes): {how_to_avoid}"
        )
    if dry_run:
        return {
            "config": _plain_config(plan),
            "teachers": [_teacher(teacher) for teacher in teachers],
            "cost": cost_of(card),
            "seconds": seconds,
            "memory": memory,
        }
    text = plan.config.text()
    folder = ranks.once(lambda: RunFolder.open(path) if resume else RunFolder.create(path, text))
    folder = folder if ranks.first else folder.readable()
    run.folder = folder.path
    text = text if changed or not resume else ranks.from_first(read_text(folder.config))
    run.checkpoints = checkpointer(plan.config, folder, ranks, text)
    accelerate(run, plan.config.engine, reporter.detail)
    with ExitStack() as stack:
        ranks.once(lambda: stack.enter_context(run_lock(folder)))
        manifest = manifest_of(plan, catalog, run, ranks)
        manifest |= {"cost": cost_of(card), "teachers": weights_of(teachers), "config": digest(text)}
        manifest |= {"report": report is not None}
        if resume:
            manifest |= continue_run(run, folder, ranks, manifest, reporter, text if changed else None)
        folder.write_json(folder.manifest, manifest | {"status": "running"})
        try:
            max_bytes = int(plan.config.teacher_cache_gib * 2**30)
            with cached_teachers(
                run, plan.config.teacher_cache, roles=card.clean, max_bytes=max_bytes,
                folder=cache_folder() / "answers", tell=reporter.detail,
            ):  # fmt: skip
                fit(run)
            net = chosen_net(run)
            results = _finish(run, folder, ranks, plan, net, teachers, baseline, catalog, reporter, title, started)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            status = "interrupted" if stopped else f"failed: {type(error).__name__}: {error}"
            try_to_write(folder, manifest | {"status": status, "seconds": time.perf_counter() - started})
            run.hooks.hook.rkd_run_stopped(run=run, error=error)
            raise
        manifest |= {"engine": engine_of(run)}
        if ranks.first:
            manifest |= {"sizes": sizes_of(net, plan.data.shape, teachers)}
        folder.write_json(folder.manifest, manifest | {"status": "finished", "seconds": results["seconds"]})
        folder.prune()
    page = report(folder) if report and ranks.first else None
    run.hooks.hook.rkd_run_end(run=run, results=results | {"report": page})
    return results


def _rehearse(run: Run, plan: Plan) -> StepCost:
    """A dry step, and the attacks that come after the training: their mistakes shall not show when it is over."""
    card = dry_step(run)
    net = run.student.deployed()
    rehearse(net, plan.data.train, plan.evaluation, EvalSettings(threat=plan.data.threat, device=run.device))
    return card


def _choose_parts(run: Run, plan: Plan, reporter: Reporter, ranks: Ranks) -> None:
    """`--auto-batch`. What it finds stands in config.toml: a run that goes on or is repeated does not look again."""
    parts = plan.config.grad_accumulation = auto_micro_batches(run, ranks)
    plan.config.auto_batch = False
    if isinstance(run.backward, Accumulation):
        run.backward.micro_batches = parts
    plan.config.evaluate.batch_size = min(plan.config.evaluate.batch_size or 256, evaluation_batch(plan.config))
    if isinstance(run.validate, Validation):
        run.validate = replace(run.validate, batch_size=max(-(-run.loader.batch_size // parts), 16))
    how = "whole" if parts == 1 else f"in {parts} parts (--grad-accumulation {parts})"
    reporter.message(f"a batch of {run.loader.batch_size} fits into the memory of {run.device} {how}")


def card_of(plan: Plan, net: Net, results: Mapping[str, Any]) -> dict[str, Any]:
    """student.json: everything that is needed to use the weights."""
    data, student = plan.data, plan.config.student
    return {
        "format": 1,
        "model": student.model,
        "options": student.options,
        "shape": list(data.shape),
        "classes": list(data.classes),
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "data": data.name,
        "threat": {"norm": data.threat.norm, "eps": data.threat.eps, "step_size": data.threat.step_size},
        "loss": plan.config.loss.name,
        "results": results,
    }


def _finish(
    run: Run, folder: RunFolder, ranks: Ranks, plan: Plan, net: nn.Module, resolved: list[ResolvedTeacher],
    baseline: Baseline | None, catalog: Catalog, reporter: Reporter, title: str, started: float,
) -> dict[str, Any]:  # fmt: skip
    journal = Journal(folder.checkpoints / "evaluation")  # a run that is killed here goes on here

    def evaluated(net: nn.Module, name: str) -> Evaluation:
        return evaluate_plan(net, plan, catalog, reporter.evaluating(name), journal, ranks=ranks)

    try:
        evaluation = evaluated(net, title)
    except NotFinite as error:
        raise diverged(run, str(error)) from None
    student = evaluation.summary()
    teachers = []
    for t in resolved:
        if t.results:
            summary = t.results["student"]
        else:
            if isinstance(t.teacher.net, Net):
                as_kept(t.teacher.net)
            summary = evaluated(t.teacher.net, f"{t.reference.role} teacher").summary()
        teachers.append(_teacher(t) | summary)
    arch = net.arch if isinstance(net, Net) else net
    folder.save_weights(folder.weights, to_cpu(arch.state_dict()))
    chosen_epoch = run.state.best["epoch"] if run.state.best else run.epochs - 1
    parameters = sum(p.numel() for p in net.parameters())
    described = card_of(plan, net, student)  # type: ignore[arg-type]
    taught = [{key: t[key] for key in ("role", "model", "source", "normalization") if key in t} for t in teachers]
    further = {"parameters": parameters, "chosen_epoch": chosen_epoch, "teachers": taught}
    folder.write_json(folder.card, described | further)
    save_gallery(folder, evaluation)
    compared = {}
    if baseline is not None:
        compared = {"baseline": baseline_results(baseline, plan, catalog, run.device, student, evaluated)}
    folder.write_json(folder.evaluation, {"student": student, "teachers": teachers} | compared)
    ranks.objects(None)  # nobody may still be writing into what is about to be taken away
    if ranks.first:
        journal.close()
    return {
        "run": str(folder.path),
        "seed": plan.config.seed,
        "epochs": plan.config.epochs,
        "seconds": round(time.perf_counter() - started, 1),
        "student": {
            "model": "+".join([plan.config.student.model, *_kept(plan.config.student.conversions)]),
            "parameters": parameters,
            "chosen_epoch": chosen_epoch,
        }
        | student,
        "teachers": [
            {"role": t["role"], "model": t["model"], "source": t["source"], "clean": t["clean"]}
            | {"robust": t["worst_case"], "attacks": t["attacks"], "w_robust": t["w_robust"]}
            | {key: t[key] for key in ("normalization",) if key in t}
            for t in teachers
        ],
        **compared,
        "config": _plain_config(plan),
    }


def _by_role(teachers: list[ResolvedTeacher]) -> dict[str, Teacher]:
    return {teacher.reference.role: teacher.teacher for teacher in teachers}


def _teacher(teacher: ResolvedTeacher) -> dict[str, str]:
    reference = teacher.reference
    return {"role": reference.role, "model": reference.model or reference.text, "source": teacher.source}


def _check_processes(plan: Plan, ranks: Ranks) -> None:
    least = 2 * ranks.size * plan.config.grad_accumulation
    if plan.config.batch_size < least:
        parts = f" and {plan.config.grad_accumulation} parts each" if plan.config.grad_accumulation > 1 else ""
        raise ConfigError([
            f"batch_size: {plan.config.batch_size} images are too few for {ranks.size} processes{parts}, which need "
            f"two each; take --batch-size {least} or more, or fewer processes"
        ])  # fmt: skip


def _check_place(path: Path) -> None:
    """Find out before any work whether the folder can be made."""
    if path.exists():
        raise RkdError(
            f"{path} exists already; choose another --name, or continue it with `{command('run', '--resume', path)}`"
        )
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RkdError(f"cannot write into {parent}; choose another place with --out DIR")


def _kept(section: Mapping[str, Any]) -> list[str]:
    return [name for name, options in section.items() if options is not False]


def _plain_config(plan: Plan) -> dict[str, Any]:
    return plan.config.model_dump(by_alias=True, exclude_none=True)
