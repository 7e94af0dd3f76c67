"""What `rkd eval` evaluates: a net, and a resolved configuration that holds the data, the attacker and the attacks."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rkd.core.errors import ConfigError, RkdError
from rkd.distributed.ranks import ALONE, leave
from rkd.evaluation.corruptions import corrupted_accuracy, corrupted_files_accuracy, open_corrupted
from rkd.evaluation.curve import usual_radii
from rkd.evaluation.evaluate import rehearse
from rkd.evaluation.journal import MONTH, Journal
from rkd.evaluation.result import Evaluation
from rkd.evaluation.transfer import identity, transfer_matrix
from rkd.nets.net import Net
from rkd.registry.catalog import Catalog
from rkd.registry.config import assignments, merge, parse, read_recipe, toml
from rkd.storage.card import training_key
from rkd.storage.runfolder import RunFolder
from rkd.workflow.build import choose_device
from rkd.workflow.cache import cache_folder
from rkd.workflow.evaluate import curve_attack, settings_of
from rkd.workflow.evaluate import evaluate_net as run_attacks
from rkd.workflow.manifest import environment_of
from rkd.workflow.nets import load_file, load_run, settle_normalization
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import resolve

from .interrupts import Interrupts
from .progress import Display
from .shared import App, find_run, split_attacks

EXAMPLES = 16
"""Images kept with --save."""


@dataclass(frozen=True)
class Subject:
    """A net in need of evaluation. `options`: its model's; `trained`: what its run says of its training."""

    name: str
    model: str
    net: Net
    plan: Plan
    options: Mapping[str, Any]
    trained: Mapping[str, Any] = field(default_factory=dict)


def of_run(text: str, options: Mapping[str, Any], catalog: Catalog) -> Subject:
    """The student of a finished run, on its own data unless told otherwise."""
    folder = RunFolder(find_run(text))
    loaded = load_run(folder.path, catalog)
    config = read_recipe(folder.config)
    parse(config)  # a stranger's: every section has its form from here on
    own: dict[str, Any] = {key: config[key] for key in ("seed", "device", "data", "evaluate") if key in config}
    own["threat"] = asdict(loaded.card.threat)
    if options["dataset"]:
        own.get("evaluate", {}).pop("limit", None)  # it was meant for another number of test images
    plan = _plan(own, options, catalog)
    shape, classes = loaded.card.shape, len(loaded.card.classes)
    if shape != tuple(plan.data.shape) or classes != len(plan.data.classes):
        raise RkdError(
            f"{folder.path} is for images {shape} and {classes} classes; data set {plan.data.name!r} has "
            f"{tuple(plan.data.shape)} and {len(plan.data.classes)}"
        )
    trained = {
        "method": _name_in(config.get("loss")), "epochs": config.get("epochs"), "seed": config.get("seed"),
        "data": _name_in(config.get("data")), "threat": asdict(loaded.card.threat), "settings": training_key(config),
    }  # fmt: skip
    trained = {key: value for key, value in trained.items() if value is not None}
    return Subject(str(folder.path), loaded.card.model, loaded.net, plan, loaded.card.options, trained)


def _name_in(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else None


def of_file(path: Path, options: Mapping[str, Any], catalog: Catalog, app: App) -> Subject:
    """A net with weights from a file."""
    plan = _plan({}, options, catalog)
    data, model = plan.data, options["model"]
    settings = assignments(options["sets"]).get("model", {})
    net = load_file(path, model, data.shape, len(data.classes), catalog, data.mean, data.std, settings)
    settle_normalization(
        net, options["normalize"], str(path), data, lambda text: app.terminal.message(f"{text}; --normalize settles it")
    )
    return Subject(str(path), model, net, plan, settings)


def evaluate_net(subject: Subject, options: Mapping[str, Any], catalog: Catalog, app: App) -> dict[str, Any]:
    """Attack the net. Returns what `rkd eval --json` prints. A killed evaluation goes on where it was."""
    plan, started = subject.plan, time.time()
    net = subject.net.to(choose_device(plan.config.device))
    interrupts = Interrupts()
    display = Display(app.terminal, interrupts)
    ranks = app.ranks or ALONE
    save = ranks.once(lambda: _new_folder(options["save"])) if options["save"] else None
    if options["corruptions"] not in (None, "own"):
        open_corrupted(options["corruptions"], shape=plan.data.shape, classes=len(plan.data.classes))
    for note in plan.notes:
        app.terminal.message(note)
    others = {str(find_run(text)): of_run(text, options, catalog) for text in options["others"]}
    rehearse(net, plan.data.test, plan.evaluation, settings_of(plan))
    journal = Journal(cache_folder() / "evaluations", kept=MONTH)
    with interrupts.noted():
        result = run_attacks(
            net, plan, catalog, display.evaluating(subject.name), journal, app.terminal.detail, ranks=ranks
        )
    if options["corruptions"]:
        result.extra["corruptions"] = _corrupted(net, plan, options["corruptions"], catalog, display, subject.name)
    if others:
        device = choose_device(plan.config.device)
        nets = {subject.name: net} | {name: other.net.to(device) for name, other in others.items()}
        result.extra["transfer"] = _transfer(nets, plan, display)
    found = {
        "net": subject.name,
        "model": subject.model,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "data": plan.data.name,
        "classes": list(plan.data.classes),
        "threat": asdict(plan.data.threat),
        "seed": plan.config.seed,
    } | result.summary()
    ranks.objects(None)  # nobody may still be writing into the journal that is about to be taken away
    leave(ranks)
    if not ranks.first:
        return found
    if save:
        _keep(save, found, result)
        _describe(RunFolder(save), subject, options, catalog, app, started)
    journal.close()
    return found


def _corrupted(net: Net, plan: Plan, where: str, catalog: Catalog, display: Display, name: str) -> dict[str, Any]:
    settings = settings_of(plan, progress=display.evaluating(name))
    if where != "own":
        return corrupted_files_accuracy(net, where, settings, shape=plan.data.shape)
    own = {each: catalog.create("corruption", each) for each in catalog.names("corruption")}
    return corrupted_accuracy(net, plan.data.test, own, settings)


def _transfer(nets: dict[str, Net], plan: Plan, display: Display) -> dict[str, Any]:
    name = curve_attack(plan)
    settings = settings_of(plan, progress=display.evaluating("transfer"))
    return transfer_matrix(nets, plan.data.test, plan.evaluation[name], settings, name=name)


def _new_folder(text: str) -> Path:
    """A folder with nothing in it: also one that is there, as a killed evaluation leaves it."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RkdError(f"{path} exists already; choose another --save folder")
    except FileExistsError:  # a file
        raise RkdError(f"{path} exists already; choose another --save folder") from None
    except OSError as error:
        raise RkdError(f"cannot make the folder {path}: {error.strerror}; choose another --save folder") from None
    return path


def _keep(path: Path, found: dict[str, Any], result: Evaluation) -> None:
    """evaluation.json, and the images of the gallery."""
    folder = RunFolder(path)
    folder.write_json(folder.evaluation, found)
    if result.gallery is not None:
        folder.save_weights(
            folder.examples, {"clean": result.gallery.clean, "adversarial": result.gallery.adversarial}
        )  # fmt: skip


def _describe(
    folder: RunFolder, subject: Subject, options: Mapping[str, Any], catalog: Catalog, app: App, started: float
) -> None:
    """What a page about the evaluation needs besides its result: the settings, which net it was, and the manifest."""
    plan, net = subject.plan, subject.net
    settings = {key: value for key, value in plan.config.model_dump().items() if key in ("seed", "device", "evaluate")}
    settings["data"] = {"name": plan.config.data.name} | plan.config.data.options
    settings["threat"] = asdict(plan.data.threat)
    if options["corruptions"]:
        settings["evaluate"]["corruptions"] = options["corruptions"]
    if options["others"]:
        settings["evaluate"]["transfer"] = list(options["others"])
    folder.write_text(folder.evaluation_settings, toml(settings))
    card = {
        "format": 1,
        "name": Path(subject.name).resolve().name,
        "source": subject.name,
        "model": subject.model,
        "options": dict(subject.options),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "weights": identity(net),
        "shape": list(plan.data.shape),
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "trained": dict(subject.trained),
    }
    folder.write_json(folder.net_card, card)
    manifest = environment_of(catalog, choose_device(plan.config.device), (app.ranks or ALONE).size)
    manifest |= {
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seed": plan.config.seed,
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint},
        "command": ["rkd", *app.words],
        "status": "finished",
        "seconds": round(time.time() - started, 2),
    }
    folder.write_json(folder.manifest, manifest)


def _plan(own: Mapping[str, Any], options: Mapping[str, Any], catalog: Catalog) -> Plan:
    """A configuration with these options: a run's own settings yield to them."""
    table: dict[str, Any] = {"loss": {"name": "ce"}, **own}  # a method without teachers and attacks
    sets = assignments(options["sets"])
    if wrong := sets.keys() - {"attack", "model", "data"}:
        raise ConfigError([
            f"--set {key}: here there is attack.NAME.KEY, model.KEY and data.KEY" for key in sorted(wrong)
        ])  # fmt: skip
    if values := [key for key, value in sets.items() if not isinstance(value, Mapping)]:
        raise ConfigError([f"--set {key}=...: expected --set {key}.KEY=VALUE" for key in values])
    attacks = {name: values for name, values in sets.get("attack", {}).items() if isinstance(values, Mapping)}
    if len(attacks) < len(sets.get("attack", {})):
        raise ConfigError("--set attack.KEY=VALUE: name the attack, as in --set attack.pgd-sat.steps=50")
    data = {"name": options["dataset"], "dir": options["data_dir"]} | sets.get("data", {})
    data = {key: value for key, value in data.items() if value is not None}
    rules: dict[str, Any] = {"limit": options["limit"], "batch_size": options["batch_size"]}
    rules = {key: value for key, value in rules.items() if value is not None}
    rules |= {"checks": options["checks"], "examples": EXAMPLES if options["save"] else 0, "curve": []}
    if options["rounded"]:
        rules["rounded"] = True
    if options["engine"]:
        rules["engine"] = options["engine"]
    if (names := split_attacks("--attack", options["attacks"])) is not None:
        rules["attacks"] = names
    table = merge(table, {"data": data} if data else {}, {"evaluate": rules})
    chosen = table["evaluate"].get("attacks")
    old = {name: o for name, o in table["evaluate"].get("options", {}).items() if chosen is None or name in chosen}
    table["evaluate"]["options"] = merge(old, attacks)
    old_norm = own.get("threat", {}).get("norm")
    if options["eps"] is not None:
        # The step size goes with the radius, at the share that the data set's custom gives it.
        table["threat"] = {"norm": options["norm"] or old_norm, "eps": options["eps"]}
    elif options["norm"] and options["norm"] != old_norm:
        if old_norm:
            raise RkdError(f"the run's eps is a radius in {old_norm}: with --norm {options['norm']} give --eps")
        table["threat"] = {"norm": options["norm"]}
    for key in ("seed", "device"):
        if options[key] is not None:
            table[key] = options[key]
    with _by_option(options):
        plan = resolve(table, catalog)
        for option in ("rounded", "curve", "transfer"):
            if options["others" if option == "transfer" else option] and not plan.evaluation:
                raise RkdError(f"--{option} needs an attack")
        if options["curve"]:
            table["evaluate"]["curve"] = _radii(options["curve"], plan)
            plan = resolve(table, catalog)
    return plan


_OPTIONS = {
    "threat.eps": "eps", "threat.norm": "norm", "evaluate.limit": "limit", "evaluate.batch_size": "batch_size",
    "evaluate.curve": "curve", "seed": "seed", "data.name": "dataset", "data.dir": "data_dir",
}  # fmt: skip
"""Settings by the options that give them."""


@contextmanager
def _by_option(options: Mapping[str, Any]) -> Iterator[None]:
    """Problems of settings that options gave name the options: a radius that was typed is `--eps`, a run's own is its
    `threat.eps`. So is one that is missing in a ball that was typed."""
    given = {key: option for key, option in _OPTIONS.items() if options[option] is not None}
    if options["norm"] is not None:
        given["threat.eps"] = "eps"

    def renamed(problem: str) -> str:
        where, colon, what = problem.partition(": ")
        key = re.sub(r"\.\d+$", "", where)
        return f"--{given[key].replace('_', '-')}{colon}{what}" if colon and key in given else problem

    try:
        yield
    except ConfigError as error:
        raise ConfigError([renamed(problem) for problem in error.problems]) from None


def _radii(text: str, plan: Plan) -> list[Any]:
    return usual_radii(plan.data.threat) if text == "usual" else [part.strip() for part in text.split(",")]
