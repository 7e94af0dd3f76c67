"""rkd from Python: train, evaluate, load. `import rkd` hands these out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from rkd.core.errors import RkdError
from rkd.registry.catalog import Catalog
from rkd.registry.config import EvalEngine
from rkd.registry.recipes import merge, read_recipe
from rkd.registry.session import Session
from rkd.workflow.build import choose_device
from rkd.workflow.evaluate import Engine, EvalSettings, Evaluation, Journal, evaluate_and_check
from rkd.workflow.objects.continued import continued
from rkd.workflow.objects.functions import as_plan
from rkd.workflow.objects.loaded import LoadedRun, loaded_run
from rkd.workflow.objects.parts import Parts, device_of, evaluated_split
from rkd.workflow.plan import AttackPlan, Reporter, ThreatModel, join, name_of
from rkd.workflow.train import train_run

Checks = Literal["off", "quick", "full"]

SESSION = Session()
"""What this process knows of components: `register` adds to it, `forget_registered` empties it. Nothing else is kept
from one call to the next."""


def catalog(plugins: Sequence[str | Path] = ()) -> Catalog:
    """Everything that the installed plugins provide, the plugin files `plugins`, and what was registered."""
    if isinstance(plugins, (str, Path)):
        raise RkdError(f"plugins is a list of files, such as ['mine.py']; got {plugins!r}")
    return SESSION.catalog(plugins)


def register(kind: str, name: str, component: Any) -> Any:
    """Give a class (or function) of a notebook or script a name, for as long as this process lives.

        rkd.register("loss", "mine", Mine)
        rkd.train(loss={"name": "mine", "alpha": 0.5}, out="runs/mine")

    `kind` is one of those of `rkd list-plugins`: loss, attack, model, dataset, ... A dataclass's fields are its
    options. A second component of that kind and name takes the first one's place; a plugin's keeps its own. Returns
    the component. What other processes shall have, too, belongs into a plugin (`rkd plugins new`). Raises RkdError.
    """
    SESSION.register(kind, name, component)
    return component


def forget_registered() -> None:
    """Undo every `register` of this process."""
    SESSION.forget()


def train(
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    student: Any = None,
    teachers: Mapping[str, Any] | None = None,
    data: Any = None,
    loss: Any = None,
    attack: Any = None,
    objective: Any = None,
    schedulers: Any = None,
    augments: Any = None,
    extensions: Any = None,
    trackers: Any = None,
    evaluate: Any = None,
    plugins: Sequence[str | Path] = (),
    resume: bool = False,
    accept_changes: bool = False,
    progress: bool | None = None,
    reporter: Reporter | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Carry out a run in the new folder `out`, as `rkd run` does. Returns its results.

        rkd.train(student=net, teachers={"robust": wide}, data=(train, test), loss="rslad", epochs=20, out="runs/mine")

    Every part is a name, a table with a name and options, or an object:

    - `student`: `"resnet18+aux-bn"`; a `torch.nn.Module`, which takes images in [0, 1] (what it normalises, it does
      inside) and returns logits; or a function `(shape, classes) -> module`, whose images are normalised for it. The
      module stays as it is: the trained one is `rkd.load_run(out, student=net).student`.
    - `teachers`: by role, a module, a run's folder, `"MODEL@FILE"`, or the name of a model that is to be prepared.
    - `data`: `(train, test)`, each `(images, labels)` as tensors or arrays, a torch Dataset, a DataLoader or a Split;
      or what `rkd.make_dataset` returns, which has more options.
    - `loss`, `attack`, `objective`: objects as plugins have them; an attack may be a function
      `f(model, images, labels) -> images`.
    - `schedulers`, `augments`, `extensions`, `trackers`, and `evaluate` (the attacks of the final evaluation): lists
      of names and objects. An extension is used as it is: a fresh one for each run.

    `recipe` is a shipped recipe's name or a TOML file; `settings` go on top, a section or value by its name in
    `config.toml`, and so do the parts and further keywords (`epochs=20`, `batch_size=64`, `optimizer={"lr": 0.1}`).
    `plugins` are plugin files. `resume`: go on with the run in `out`, as its `config.toml` says, given the same objects
    again; other settings are refused unless `accept_changes`. `progress`: draw it (by default in notebooks alone);
    `reporter` is told of it instead. In a script that torchrun started, all its processes carry out the one run
    together. What cannot be repeated from `config.toml` stands in `manifest.json` under `objects`. Raises
    `rkd.RkdError`.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise RkdError(f"settings are a table, such as {{'loss': {{'name': 'rslad'}}}}; got {type(settings).__name__}")
    named = {
        "student": student, "teachers": teachers, "data": data, "loss": loss, "attack": attack, "objective": objective,
        "schedulers": schedulers, "augments": augments, "extensions": extensions, "trackers": trackers,
        "evaluate": evaluate,
    }  # fmt: skip
    given = {key: value for key, value in named.items() if value is not None} | more
    parts = Parts()
    parts.add(settings or {})
    parts.add(given)
    names = parts.extend(catalog(plugins))
    base = read_recipe(recipe) if recipe else {}
    kept = {key: value for key, value in base.items() if key not in given or key not in ("student", "schedulers")}
    table = merge(kept, parts.table)
    ranks = join()
    if resume:
        table = ranks.once(lambda: continued(Path(out), table, names, accept_changes))
    elif Path(out).exists():
        raise RkdError(f"{out} exists already: choose another folder, or go on with it: resume=True")
    with _shown(progress, reporter) as told:
        try:
            return train_run(
                table, names, Path(out), told, resume=resume, changed=resume and accept_changes, ranks=ranks
            )
        except KeyboardInterrupt as error:
            if Path(out).exists():
                error.add_note(f"{out} holds what there is of the run; the same call with resume=True goes on with it")
            raise


@contextmanager
def _shown(progress: bool | None, reporter: Reporter | None) -> Iterator[Reporter | None]:
    """Inside, the reporter that is told of a run; what it draws is taken away again."""
    from rkd.cli.notebook import display, is_notebook

    if reporter is not None or not (is_notebook() if progress is None else progress):
        yield reporter
        return
    shown = display()
    with shown.terminal.guarded():
        yield shown


def load_run(run: str | Path, *, student: Any = None, plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """A run's folder: `.config`, `.manifest`, `.results`, `.history` (a dict an epoch), `.frame` (the same as a pandas
    data frame), `.student`.

        rkd.load_run("runs/mine").frame.plot(x="epoch", y=["val.clean", "val.robust"])

    `student`: the module or function that the run was made of, if it was one; its weights do not matter. Raises
    `rkd.RkdError`.
    """
    parts = Parts()
    if student is not None:
        parts.add({"student": student})
    return loaded_run(run, parts.extend(catalog(plugins)))


def load_student(run: str | Path, *, student: Any = None, plugins: Sequence[str | Path] = ()) -> nn.Module:
    """The student of a finished run: eval mode, frozen, images `(B, C, H, W)` in [0, 1] to logits `(B, K)`. `student`:
    as for `load_run`."""
    return load_run(run, student=student, plugins=plugins).student


AttackLike = str | AttackPlan | Callable[..., Any]


def evaluate(
    module: nn.Module,
    data: Any,
    attacks: AttackLike | Iterable[AttackLike] | Mapping[str, AttackLike] = ("fgsm", "pgd-sat", "cw"),
    *,
    eps: float | None = None,
    threat: ThreatModel | None = None,
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str | None = None,
    rounded: bool = False,
    checks: Checks = "quick",
    engine: EvalEngine = "auto",
    journal: str | Path | None = None,
) -> Evaluation:
    """Clean and attacked accuracy of any module that takes images in [0, 1] and returns logits.

        rkd.evaluate(net, (images, labels), ["pgd-sat"], eps=8/255).summary()

    `data` is a data set (its test part), a split, images `(N, C, H, W)` with labels `(N,)` as tensors or arrays, a
    torch Dataset or DataLoader, or `(train, test)` of them, as `train` takes it (the second). `attacks`: names, attacks
    of rkd, or functions `f(model, images, labels) -> images`; several in a list, or by the names under which their
    results stand. The threat is `threat`, else the data set's, else Linf 8/255; `eps` changes its radius. The
    module is left as it was; it runs where it is, and `device` is for one without weights.
    `rounded`: also the accuracy after rounding adversarial images to 8 bits. `checks`: what to look for before the
    numbers are believed; findings are in `.warnings`, and `full` runs attacks with a known outcome on a few images.
    `engine`: `auto` lets attacks that confirm what they find (autoattack) search on a faster copy; `bfloat16` lets them
    search in reduced precision besides. Every image that is counted has fooled the module itself in float32.
    `journal`: a folder; a killed evaluation that is called again goes on there.
    Raises `rkd.RkdError`, `rkd.DataError` for images, labels, radii or nets that are none.
    """
    for name, given, known in (("checks", checks, get_args(Checks)), ("engine", engine, get_args(EvalEngine))):
        if given not in known:
            raise RkdError(f"{name} is one of {', '.join(known)}; got {given!r}")
    if eps is not None and (not isinstance(eps, Real) or isinstance(eps, bool)):
        raise RkdError(f"eps must be a number, such as 8 / 255; got {eps!r}")
    if threat is not None and not isinstance(threat, ThreatModel):
        raise RkdError(f'threat must be a ThreatModel, such as ThreatModel("Linf", 8 / 255, 2 / 255); got {threat!r}')
    if device is not None and not isinstance(device, (str, torch.device)):
        raise RkdError(f"device is a name, such as 'cpu' or 'cuda:1', or a torch.device; got {device!r}")
    if journal is not None and not isinstance(journal, (str, Path)):
        raise RkdError(f"journal is a folder's path; got {journal!r}")
    if device is None:
        device = device_of(module)
    device = choose_device(device) if isinstance(device, str) else device
    split, dataset = evaluated_split(data)
    if dataset is not None:
        threat, classes = threat or dataset.threat, len(dataset.classes)
    threat = threat or ThreatModel()
    if eps is not None:
        threat = threat.with_eps(eps)
    plans = _plans(attacks)
    notes = Journal(journal) if journal is not None else None
    settings = EvalSettings(
        threat=threat, classes=classes, seed=seed, batch_size=batch_size, limit=limit, device=device, rounded=rounded,
        journal=notes, accelerator=Engine(engine),
    )  # fmt: skip
    result = evaluate_and_check(module, split, plans, settings, catalog(), checks)
    if notes is not None:
        notes.close()
    return result


def _plans(attacks: Any) -> dict[str, AttackPlan]:
    """Attacks by name. Raises RkdError for what is none, and for two of one name."""
    names = catalog()
    if isinstance(attacks, Mapping):
        return {str(name): as_plan(attack, names) for name, attack in attacks.items()}
    if isinstance(attacks, (str, AttackPlan)) or callable(attacks):
        attacks = [attacks]
    if not isinstance(attacks, Iterable):
        raise RkdError(
            "attacks are names, such as ['pgd-sat', 'cw'], functions, attacks of rkd, or [] for clean accuracy alone; "
            f"got {attacks!r}"
        )
    plans: dict[str, AttackPlan] = {}
    for attack in attacks:
        search = attack.attack if isinstance(attack, AttackPlan) else attack
        name = attack if isinstance(attack, str) else name_of(search)
        if name in plans:
            raise RkdError(f"two attacks are called {name!r}: give them names, as {{'mine': ..., 'other': ...}}")
        plans[name] = as_plan(attack, names)
    return plans


def attack_plan(attack: AttackLike, objective: Any = None, **options: Any) -> AttackPlan:
    """An attack with what it maximises (its own goal, or cross-entropy, if none is given), by name or as objects.
    `options` are those of a named attack."""
    if isinstance(attack, str):
        attack = catalog().create("attack", attack, options)
    elif options:
        raise RkdError(f"options are for attacks by name; an object has its own: got {', '.join(options)}")
    return as_plan(attack, catalog(), objective)
