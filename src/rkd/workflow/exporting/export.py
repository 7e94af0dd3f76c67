"""Exporting a run's student: written, read back, compared with the net, evaluated under attack, described."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rkd.core.errors import ConfigError, Refused, RkdError
from rkd.data.dataset import fetch
from rkd.evaluation.evaluate import evaluate, rehearse
from rkd.evaluation.result import Evaluation
from rkd.export.card import model_card
from rkd.export.formats import Artefact, Exported
from rkd.export.hub import check_repository, push
from rkd.export.measure import StraightThrough, changes, check_same, difference, figures, plans_of
from rkd.nets.first_look import first_images
from rkd.profiling.size import latency_of, size_of
from rkd.registry.catalog import Catalog
from rkd.registry.options import describe
from rkd.registry.recipes import merge, read_recipe
from rkd.storage.card import read_card
from rkd.storage.files import whole_folder
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import shown

from ..evaluate import EvalRequest, curve_attack, settings_of, subject_of_run
from ..folders import find_run
from ..plan import Reporter, Silent, tell_data
from ..saving import Subject

CALIBRATION = 512
"""Training images that a format of eight bits sees."""

COMPARED = 64
"""Test images whose logits are put beside the net's."""

BLACK_BOX = "square"
"""The attack without gradients that is added to a run's own."""

QUERIES = 1000
"""Its queries; AutoAttack's takes 5,000."""


@dataclass(frozen=True)
class ExportRequest:
    """A run's student to be exported, and how its artefact is evaluated; None for what the run says, or else the usual.

    `format`: an exporter; `int8`: of eight bits besides; `out`: a new folder; `push`: OWNER/NAME on the hub;
    `settings`: tables `evaluate`, `attack` and `data` as in `rkd eval`, and `export`, the exporter's options.
    """

    run: str
    format: str
    int8: bool = False
    out: str | None = None
    push: str | None = None
    data_dir: str | None = None
    attacks: Sequence[str] | None = None
    limit: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: Sequence[str] = ()


@dataclass(frozen=True)
class _Written:
    """An artefact as it was evaluated: `result` under attack on a part of the test images, `clean` on all."""

    name: str
    artefact: Artefact | None
    result: Evaluation
    clean: Evaluation
    size: Mapping[str, Any]
    difference: float | None = None


def export_request(request: ExportRequest, catalog: Catalog, reporter: Reporter | None = None) -> dict[str, Any]:
    """Export a run's student. Returns what the folder's export.json says.

    The folder is there whole or not at all; a push comes last. Raises RkdError.
    """
    reporter = reporter or Silent()
    exporters = _exporters(request, catalog)
    if request.push is not None:
        check_repository(request.push)
    folder = RunFolder.open(find_run(request.run))
    card = read_card(folder)
    path = Path(request.out) if request.out else folder.path / "exports" / request.format
    if path.exists() and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise RkdError(f"{path} exists already; choose another --out folder, or remove it")
    reporter.doing(f"reading {folder.path} and the data")
    evaluation = EvalRequest(
        request.run, data_dir=request.data_dir, attacks=request.attacks, limit=request.limit, checks="off",
        device="cpu", settings={key: table for key, table in request.settings.items() if key != "export"},
    )  # fmt: skip
    subject = subject_of_run(with_black_box(evaluation, request.run), catalog)
    plan = subject.plan
    if tuple(plan.data.classes) != card.classes:
        raise Refused(f"{folder.path} was trained on classes in another order than the data's now: {card.classes}")
    tell_data(plan, reporter)
    student = Exported(subject.net, card, first_images(plan.data.train, "cpu", CALIBRATION).x)
    reporter.doing("trying the attacks on a few images")
    rehearse(subject.net, plan.data.test, plan.evaluation, settings_of(plan))
    try:
        with whole_folder(path) as work:
            rows = [_row_of_net(subject, reporter)]
            for name, exporter in exporters.items():
                reporter.doing(f"writing {request.format} ({name})")
                artefact = exporter(student, work)
                rows.append(_row_of(name, artefact, subject, rows[0], reporter))
            facts = _facts(request, folder, subject, rows, work)
            for row in rows[1:]:
                told, doubts = changes(rows[0].result, row.result, row.name)
                facts["changes"] += [*told, *doubts]
                for text in told:
                    reporter.message(text)
                for text in doubts:
                    reporter.warning(text)
            target = RunFolder(work)
            target.write_json(work / "export.json", facts)
            target.write_text(work / "README.md", model_card(facts))
    except FileExistsError:
        raise RkdError(f"{path} has been filled by others in the meantime; choose another --out folder") from None
    except OSError as error:
        raise RkdError(f"cannot make the folder {path}: {error.strerror}; choose another --out folder") from None
    if request.push is not None:
        reporter.doing(f"sending {path} to {request.push}")
        facts["pushed"] = push(path, request.push)
    return facts | {"folder": str(path)}


def _exporters(request: ExportRequest, catalog: Catalog) -> dict[str, Any]:
    """The exporter as it is and, if asked for, in eight bits. Raises UnknownName, ConfigError, RkdError."""
    entry = catalog.find("exporter", request.format)
    options = dict(request.settings.get("export", {}))
    if "int8" in options:
        raise ConfigError("--set export.int8: type --int8")
    exporters = {"exported": entry.create(options, "export")}
    if request.int8:
        if all(option.name != "int8" for option in describe(entry.factory)):
            known = [n for n in catalog.names("exporter") if any(o.name == "int8" for o in describe(
                catalog.find("exporter", n).factory))]  # fmt: skip
            raise RkdError(
                f"the format {request.format} has no eight bits; --int8 goes with --to {' or --to '.join(known)}"
            )
        exporters["int8"] = entry.create({**options, "int8": True}, "export")
    return exporters


def with_black_box(request: EvalRequest, run: str) -> EvalRequest:
    """An evaluation under the attacks of a run, and a search without gradients besides, unless attacks are given."""
    rules = read_recipe(RunFolder(find_run(run)).config).get("evaluate", {})
    attacks = list(rules.get("attacks", []))
    if request.attacks is not None or not attacks or BLACK_BOX in attacks:
        return request
    usual = {"evaluate": {"options": {BLACK_BOX: {"queries": QUERIES}}}}
    told = {**request.settings.get("attack", {}), **request.settings.get("evaluate", {}).get("options", {})}
    settings = request.settings if BLACK_BOX in told else merge(usual, request.settings)
    return replace(request, attacks=[*attacks, BLACK_BOX], settings=settings)


def _row_of_net(subject: Subject, reporter: Reporter) -> _Written:
    """The net itself, under the attacks as they are."""
    plan, net = subject.plan, subject.net
    return _Written("float", None, *_evaluated(net, "float", subject, reporter), size_of(net, plan.data.shape))


def _row_of(name: str, artefact: Artefact, subject: Subject, net_row: _Written, reporter: Reporter) -> _Written:
    """An artefact beside the net. Raises Refused where a float one is another net."""
    plan, net = subject.plan, subject.net
    images = fetch(plan.data.test, torch.arange(min(COMPARED, len(plan.data.test)))).x
    apart = difference(artefact.net, net, images)
    if name == "exported":
        check_same(apart, f"{subject.name} as {artefact.files[0]}")
    evaluations = _evaluated(StraightThrough(artefact.net, net), name, subject, reporter)
    size = {**net_row.size, "latency": latency_of(artefact.net, plan.data.shape)}
    return _Written(name, artefact, *evaluations, size, apart)


def _evaluated(net: nn.Module, name: str, subject: Subject, reporter: Reporter) -> tuple[Evaluation, Evaluation]:
    """Under attack as the plan says, and clean on all test images."""
    plan = subject.plan
    settings = settings_of(plan, progress=reporter.evaluating(name))
    search = curve_attack(plan.evaluation) if plan.evaluation else None
    attacks = plans_of(subject.net, plan.evaluation, search)
    result = evaluate(net, plan.data.test, attacks, settings)
    return result, evaluate(net, plan.data.test, {}, replace(settings, limit=None))


def _facts(
    request: ExportRequest, folder: RunFolder, subject: Subject, rows: Sequence[_Written], work: Path
) -> dict[str, Any]:
    """All that export.json and the model card say."""
    card, plan = folder.read_json(folder.card), subject.plan
    evaluation, manifest = folder.read_json(folder.evaluation), folder.read_json(folder.manifest)
    config = read_recipe(folder.config)
    sizes = manifest.get("sizes", {})
    table = []
    for row in rows:
        files = row.artefact.files if row.artefact else ()
        size = dict(row.size)
        if files:
            size["bytes"] = sum((work / file).stat().st_size for file in files)
        whole = {"clean": row.clean.accuracy(), "samples": row.clean.samples}
        entry = {"name": row.name, "whole_test_set": whole, "size": size, **figures(row.result)}
        if row.artefact:
            entry |= {"files": list(files), "runtime": row.artefact.runtime, "usage": row.artefact.usage,
                      "about": list(row.artefact.about), "difference": row.difference}  # fmt: skip
        table.append(entry)
    return {
        "format": 1,
        "to": request.format,
        "run": folder.path.resolve().name,
        "model": subject.model,
        "options": dict(subject.options),
        "shape": list(plan.data.shape),
        "classes": list(plan.data.classes),
        "mean": card["mean"],
        "std": card["std"],
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint},
        "threat": card["threat"],
        "loss": config.get("loss", {}),
        "epochs": config.get("epochs"),
        "seed": config.get("seed"),
        "teachers": [
            {key: teacher.get(key) for key in ("role", "model", "clean", "worst_case", "samples")}
            | {"size": sizes.get("teachers", {}).get(teacher.get("role"), {})}
            for teacher in evaluation["teachers"]
        ],
        "own_evaluation": {key: evaluation["student"].get(key) for key in (
            "samples", "clean", "attacks", "worst_case", "interval_95", "searches")},
        "calibration": CALIBRATION if request.int8 else 0,
        "rows": table,
        "changes": [],
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(work.iterdir())},
        "versions": {name: importlib.metadata.version(name) for name in ("rkd-toolkit", "torch")},
        "command": list(request.command),
        "name": shown(folder.path.resolve().name),
    }  # fmt: skip
