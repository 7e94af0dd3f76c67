"""Evaluating: the net of a plan at the end of a run, a run or a weights file by `rkd eval`, any module by
`rkd.evaluate`."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rkd.core.errors import ConfigError, RkdError
from rkd.core.step import AttackPlan
from rkd.core.traits import traits_of
from rkd.core.types import Shape, ThreatModel
from rkd.data.dataset import Split, shape_of
from rkd.distributed.ranks import ALONE, Ranks
from rkd.engine.accelerator import Engine
from rkd.evaluation.corruptions import corrupted_accuracy, corrupted_files_accuracy, open_corrupted
from rkd.evaluation.curve import curve, usual_radii
from rkd.evaluation.evaluate import evaluate, rehearse
from rkd.evaluation.journal import MONTH, Journal
from rkd.evaluation.result import Evaluation, EvaluationWarning
from rkd.evaluation.samples import EvalSettings
from rkd.evaluation.selfcheck import BLACK_BOX, full_checks, margin_slope, other_normalization, quick_checks
from rkd.evaluation.threat import widest
from rkd.evaluation.transfer import transfer_matrix
from rkd.evaluation.warnings import find_warnings
from rkd.nets.first_look import answers, doubts, first_images
from rkd.nets.net import Net, Outputs
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import Catalog
from rkd.registry.config import RunConfig, TeacherConfig, parse, section
from rkd.registry.defaults import attack_options
from rkd.registry.recipes import merge, read_recipe
from rkd.storage.card import training_key
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import file_of

from .build import choose_device
from .choosing.zoo import is_published, known_teacher, zoo_reference
from .folders import cache_folder, find_run, new_folder
from .manifest import manifest_of_evaluation, sizes_of
from .nets import check_fits, from_sources, load_run, settle
from .plan import Plan, Progress, Reporter, Silent, tell_data
from .resolve import bounded, resolve
from .saving import Subject, save_evaluation

CHECKED = 32
"""Images on which the full self-checks run their attacks."""

EXAMPLES = 16
"""Images kept by `rkd eval --save`."""


def evaluate_and_check(
    net: nn.Module, split: Split, attacks: Mapping[str, AttackPlan], settings: EvalSettings, catalog: Catalog,
    checks: str = "quick", radii: Sequence[float] = (),
) -> Evaluation:  # fmt: skip
    """`rkd.evaluation.evaluate.evaluate`, the self-checks (`off`, `quick`, `full`), and robust accuracy at `radii`.

    All reasons not to trust the result are in its `warnings`; of full self-checks the accuracies of their attacks in
    `extra["checks"]`. A journal is closed by the caller.
    """
    result = evaluate(net, split, attacks, settings)
    warnings: list[EvaluationWarning] = []
    if checks != "off":
        repeat = next((plan for name, plan in attacks.items() if name != "fgsm"), None)
        warnings += quick_checks(net, split, settings, repeat=_short(repeat, catalog))
    if isinstance(net, Net) and net.settled is not None:
        result.extra["normalization"] = net.settled.table()
        known_outcome = check_plans(settings.threat, shape_of(split), catalog).get("short")
        if checks != "off" and attacks and known_outcome is not None:
            warnings += other_normalization(net, split, settings, known_outcome, samples=CHECKED)
    if checks == "full" and all(warning.check != "no-gradient" for warning in warnings):  # or no attack could run
        known_outcomes = check_plans(settings.threat, shape_of(split), catalog)
        more, checked = full_checks(net, split, known_outcomes, settings, samples=CHECKED)
        warnings += more
        result.extra["checks"] = {
            "samples": checked.samples,
            "clean": checked.accuracy(),
            "attacks": {name: checked.accuracy(name) for name in checked.attacks},
        }
    own = result.warnings
    if checks != "off" and any(warning.check == "no-effect" for warning in own):
        own = find_warnings(result, margin_slope(net, split, settings))
    known = {warning.check for warning in warnings}
    result.warnings = warnings + [warning for warning in own if warning.check not in known]
    if any(warning.advice == BLACK_BOX for warning in warnings):  # what else is advised would use gradients, too
        result.warnings = [replace(w, advice=BLACK_BOX) if "autoattack" in w.advice else w for w in result.warnings]
    if radii:
        name = curve_attack(attacks)
        distance = result.outcomes[name].distance if result.measures(name) else None
        result.extra["curve"] = curve(net, split, name, attacks[name], radii, settings, distance)
    return result


def evaluate_plan(
    net: nn.Module, plan: Plan, catalog: Catalog, progress: Progress, journal: Journal,
    detail: Callable[[str], None] = lambda text: None, ranks: Ranks = ALONE,
) -> Evaluation:  # fmt: skip
    """Evaluate `net` as the plan's configuration says, on the test images. `detail` is told how the net runs."""
    rules = plan.config.evaluate
    settings = settings_of(plan, progress=progress, journal=journal, ranks=ranks, rounded=rules.rounded,
                           examples=rules.examples, accelerator=Engine(rules.engine, detail))  # fmt: skip
    return evaluate_and_check(net, plan.data.test, plan.evaluation, settings, catalog, rules.checks, rules.curve)


def settings_of(plan: Plan, **more: Any) -> EvalSettings:
    """What a plan says of its evaluation, whatever is evaluated; `more`: fields of EvalSettings."""
    rules, data = plan.config.evaluate, plan.data
    return EvalSettings(
        threat=data.threat, classes=len(data.classes), seed=plan.config.seed, batch_size=rules.batch_size or 256,
        limit=rules.limit, device=choose_device(plan.config.device), **more,
    )  # fmt: skip


@dataclass(frozen=True)
class EvalRequest:
    """A run or a weights file to be evaluated, and how; None for what the run says, or else the usual.

    `net`: a run's folder or name, or a weights file; `curve`: "usual" or radii by commas; `corruptions`: "own" or a
    folder; `others`: runs for a transfer matrix; `source`: of an ONNX file, the run that lends it gradients; `save`: a
    new folder for the result; `settings`: tables `evaluate`, `attack`, `model` and `data` on top of all; `command`: the
    words that asked for it.
    """

    net: str
    model: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    attacks: Sequence[str] | None = None
    eps: str | float | None = None
    norm: str | None = None
    limit: int | None = None
    rounded: bool = False
    curve: str | None = None
    checks: str = "full"
    corruptions: str | None = None
    others: Sequence[str] = ()
    source: str | None = None
    save: str | None = None
    engine: str | None = None
    batch_size: int | None = None
    seed: int | None = None
    device: str | None = None
    normalize: str = "auto"
    strip: str = ""
    classes: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: Sequence[str] = ()


def evaluate_request(
    request: EvalRequest, catalog: Catalog, reporter: Reporter | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Evaluate a run or a weights file. Returns the results, as `rkd eval --json` prints them.

    An evaluation that was killed goes on where it was, if it is asked for again. Raises RkdError.
    """
    reporter = reporter or Silent()
    reporter.doing(f"reading {request.net} and the data")
    is_file = is_published(request.net) or file_of(request.net).is_file()
    subject = _of_file(request, catalog, reporter) if is_file else subject_of_run(request, catalog)
    return evaluate_subject(subject, request, catalog, reporter, ranks)


def evaluate_subject(
    subject: Subject, request: EvalRequest, catalog: Catalog, reporter: Reporter, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Evaluate the net that a request is about, once it is found. As `evaluate_request`."""
    started = time.time()
    plan = subject.plan
    device = choose_device(plan.config.device)
    net = subject.net.to(device)
    save = ranks.once(lambda: new_folder(Path(str(request.save)), "--save")) if request.save else None
    if request.corruptions not in (None, "own"):
        open_corrupted(str(request.corruptions), shape=plan.data.shape, classes=len(plan.data.classes))
    tell_data(plan, reporter)
    reporter.doing("trying the attacks on a few images")
    others = {str(find_run(text)): subject_of_run(request, catalog, text) for text in request.others}
    rehearse(net, plan.data.test, plan.evaluation, settings_of(plan))
    journal = Journal(cache_folder() / "evaluations", kept=MONTH)
    result = evaluate_plan(net, plan, catalog, reporter.evaluating(subject.name), journal, reporter.detail, ranks)
    if request.corruptions:
        result.extra["corruptions"] = _corrupted(subject, request.corruptions, catalog, reporter, ranks)
    if others:
        nets = {subject.name: net} | {name: other.net.to(device) for name, other in others.items()}
        result.extra["transfer"] = _transfer(nets, plan, reporter, ranks)
    size = subject.size or {"parameters": sum(parameter.numel() for parameter in net.parameters())}
    summary = {
        "net": subject.name,
        "model": subject.model,
        "parameters": size["parameters"],
        "data": plan.data.name,
        "classes": list(plan.data.classes),
        "threat": asdict(plan.data.threat),
        "seed": plan.config.seed,
    } | result.summary()
    ranks.objects(None)  # nobody may still be writing into the journal that is about to be taken away
    if ranks.first:
        if save:
            further = {"corruptions": request.corruptions, "transfer": list(request.others)}
            save_evaluation(
                save, subject, summary, result, {key: value for key, value in further.items() if value},
                manifest_of_evaluation(subject.plan, catalog, ranks, request.command, started)
                | {"sizes": {"student": subject.size} if subject.size else sizes_of(net, plan.data.shape)},
            )  # fmt: skip
        journal.close()
    return summary


def subject_of_run(request: EvalRequest, catalog: Catalog, text: str | None = None) -> Subject:
    """The student of a finished run, on its own data unless told otherwise."""
    folder = RunFolder(find_run(text or request.net))
    loaded = load_run(folder.path, catalog)
    card = loaded.card
    config = read_recipe(folder.config)
    parse(config)  # a stranger's: every section has its form from here on
    own: dict[str, Any] = {key: config[key] for key in ("seed", "device", "data", "evaluate") if key in config}
    own["threat"] = asdict(card.threat)
    if request.dataset:
        own.get("evaluate", {}).pop("limit", None)  # it was meant for another number of test images
    plan = plan_of_request(own, request, catalog)
    if (card.shape, len(card.classes)) != (tuple(plan.data.shape), len(plan.data.classes)):
        raise RkdError(
            f"{folder.path} is for images {card.shape} and {len(card.classes)} classes; data set {plan.data.name!r} "
            f"has {tuple(plan.data.shape)} and {len(plan.data.classes)}"
        )
    places = Outputs.by_name(card.classes, plan.data.classes)
    if places != tuple(range(len(places))):
        loaded.net.arch = nn.Sequential(loaded.net.arch, Outputs(places))
        plan.notes.append(f"{folder.path}: its outputs are taken in the order of the data's classes, by name: {places}")
    trained = {
        "method": _name_in(config.get("loss")), "epochs": config.get("epochs"), "seed": config.get("seed"),
        "data": _name_in(config.get("data")), "threat": asdict(card.threat), "settings": training_key(config),
    }  # fmt: skip
    trained = {key: value for key, value in trained.items() if value is not None}
    return Subject(str(folder.path), card.model, loaded.net, plan, card.options, trained)


def _name_in(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else None


def _of_file(request: EvalRequest, catalog: Catalog, reporter: Reporter) -> Subject:
    """A net with weights from a file, from an address, or of the catalogue."""
    known = known_teacher(request.net, catalog)
    if known is not None:
        request = replace(request, dataset=request.dataset or known.data)
    plan = plan_of_request({}, request, catalog)
    data, model, options = plan.data, str(request.model), request.settings.get("model", {})
    table = {"classes": request.classes.strip("[]").split(",")} if request.classes else {}
    classes = tuple(section(TeacherConfig, table, "--classes").classes)
    reference = TeacherReference(f"{model}@{request.net}", "net", model, request.net, options, request.strip, classes)
    if known is not None:
        more = {"strip": request.strip, "classes": classes}
        reference = zoo_reference(request.net, known.role, catalog, options, more)
        model, options = str(reference.model), reference.options
        reporter.message(f"{request.net}, as published: {known.accuracies}")
    net = from_sources(reference, data, catalog, "file", reporter)
    assert isinstance(net, Net), "the source of files makes Nets"
    check_fits(net, request.net, data)
    # Without an attack a normalisation that makes no clear difference makes none to the result either.
    settled = settle(net, reference, request.normalize, data, "--normalize", must=bool(plan.evaluation))
    for note in settled.notes:
        reporter.message(note)
    said = settled.answers or answers(net, first_images(data.train, "cpu", CHECKED))
    if doubt := doubts(said, request.net, data.classes, None, "", classes):
        reporter.warning(doubt)
    return Subject(request.net, model, net.eval().requires_grad_(False), plan, options)


def plan_of_request(own: Mapping[str, Any], request: EvalRequest, catalog: Catalog) -> Plan:
    """The plan of a request: a run's own settings yield to it."""
    table: dict[str, Any] = {"loss": {"name": "ce"}, **own}  # a method without teachers and attacks
    data = merge(_given({"name": request.dataset, "dir": request.data_dir}), request.settings.get("data", {}))
    rules = merge(_given({
        "limit": request.limit, "batch_size": request.batch_size, "engine": request.engine, "attacks": request.attacks,
        "rounded": request.rounded or None, "checks": request.checks, "examples": EXAMPLES if request.save else 0,
        "curve": [],
    }), request.settings.get("evaluate", {}))  # fmt: skip
    options = rules.pop("options", {})
    table = merge(table, {"data": data} if data else {}, {"evaluate": rules})
    chosen = table["evaluate"].get("attacks")
    own_options = table["evaluate"].get("options", {})
    kept = {name: given for name, given in own_options.items() if chosen is None or name in chosen}
    attacks = RunConfig().evaluate.attacks if chosen is None else chosen
    wanted, notes = attack_options(request.settings.get("attack", {}), attacks, catalog)
    table["evaluate"]["options"] = merge(kept, wanted, options)
    old_norm = own.get("threat", {}).get("norm")
    if request.eps is not None:
        # The step size goes with the radius, at the share that the data set's custom gives it.
        table["threat"] = {"norm": request.norm or old_norm, "eps": request.eps}
    elif request.norm and request.norm != old_norm:
        if old_norm:
            raise RkdError(f"the run's eps is a radius in {old_norm}: with --norm {request.norm} give --eps")
        table["threat"] = {"norm": request.norm}
    table |= _given({"seed": request.seed, "device": request.device})
    with _by_option(request):
        plan = resolve(table, catalog)
        for option, asked in (("rounded", request.rounded), ("curve", request.curve), ("transfer", request.others)):
            if asked and not plan.evaluation:
                raise RkdError(f"--{option} needs an attack")
        if request.curve:
            usual = request.curve == "usual"
            radii = usual_radii(plan.data.threat) if usual else [text.strip() for text in request.curve.split(",")]
            plan = resolve(merge(table, {"evaluate": {"curve": radii}}), catalog)
    plan.notes += notes
    return plan


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


_OPTIONS = {
    "threat.eps": "eps", "threat.norm": "norm", "evaluate.limit": "limit", "evaluate.batch_size": "batch_size",
    "evaluate.curve": "curve", "seed": "seed", "data.name": "dataset", "data.dir": "data_dir",
}  # fmt: skip
"""Settings by the options of `rkd eval` that give them."""


@contextmanager
def _by_option(request: EvalRequest) -> Iterator[None]:
    """Problems of settings that options gave name the options: a radius that was typed is `--eps`, a run's own is its
    `threat.eps`. So is one that is missing in a ball that was typed."""
    given = {key: option for key, option in _OPTIONS.items() if getattr(request, option) is not None}
    if request.norm is not None:
        given["threat.eps"] = "eps"

    def renamed(problem: str) -> str:
        setting, colon, text = problem.partition(": ")
        key = re.sub(r"\.\d+$", "", setting)
        return f"--{given[key].replace('_', '-')}{colon}{text}" if colon and key in given else problem

    try:
        yield
    except ConfigError as error:
        raise ConfigError([renamed(problem) for problem in error.problems]) from None


def _corrupted(subject: Subject, source: str, catalog: Catalog, reporter: Reporter, ranks: Ranks) -> dict[str, Any]:
    plan = subject.plan
    settings = settings_of(plan, progress=reporter.evaluating(subject.name), ranks=ranks)
    if source != "own":
        return corrupted_files_accuracy(subject.net, source, settings, shape=plan.data.shape)
    own = {name: catalog.create("corruption", name) for name in catalog.names("corruption")}
    return corrupted_accuracy(subject.net, plan.data.test, own, settings)


def _transfer(nets: dict[str, Net], plan: Plan, reporter: Reporter, ranks: Ranks) -> dict[str, Any]:
    name = curve_attack(plan.evaluation)
    settings = settings_of(plan, progress=reporter.evaluating("transfer"), ranks=ranks)
    return transfer_matrix(nets, plan.data.test, plan.evaluation[name], settings, name=name)


def curve_attack(plans: Mapping[str, AttackPlan]) -> str:
    """The attack whose accuracy is drawn against eps, of those that keep to a ball: the first that climbs by gradients
    in more than one step or serves all radii of the ball's norm by one search, else one that does not, else one that
    looks for the nearest image. Such a search knows no radius: it repeats at each the same, often long, way."""

    def rank(name: str) -> int:
        traits = traits_of(plans[name].attack)
        if traits.seeks_nearest:
            return 0 if traits.any_radius and traits.measure is None else 2
        return int(name == "fgsm" or traits.black_box)

    return min(bounded(plans), key=rank)


def check_plans(threat: ThreatModel, shape: Shape, catalog: Catalog) -> dict[str, AttackPlan]:
    """The attacks of `rkd.evaluation.selfcheck.full_checks`, as far as their plugins are installed."""
    most = widest(threat.norm, shape)
    wanted: dict[str, tuple[str, str, dict[str, Any]]] = {
        "fgsm": ("fgsm", "ce", {}),
        "short": ("pgd", "ce", {"steps": 20, "start": "uniform"}),
        "long": ("pgd", "ce", {"steps": 100, "start": "uniform"}),
        "large": ("pgd", "ce", {"steps": 40, "start": "uniform", "eps": min(4 * threat.eps, most)}),
        "unbounded": ("pgd", "ce", {"steps": 100, "start": "none", "eps": most, "step_size": most / 20}),
        "margin": ("pgd", "margin", {"steps": 100, "start": "uniform"}),
    }
    if threat.norm not in ("L0", "L0-values"):  # which square does not know
        wanted["black-box"] = ("square", "margin", {"queries": 300})
    known = {kind: set(catalog.names(kind)) for kind in ("attack", "objective")}
    return {
        probe: AttackPlan(catalog.create("attack", name, options), catalog.create("objective", goal))
        for probe, (name, goal, options) in wanted.items()
        if name in known["attack"] and goal in known["objective"]
    }


def _short(plan: AttackPlan | None, catalog: Catalog) -> AttackPlan | None:
    """A quick search for the repeat: five steps of PGD, whatever the evaluation runs."""
    if plan is None or "pgd" not in catalog.names("attack"):
        return None
    return AttackPlan(catalog.create("attack", "pgd", {"steps": 5, "start": "uniform"}), plan.objective)
