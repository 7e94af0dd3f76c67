"""rkd from Python: train, evaluate, load. `import rkd` hands these out."""

from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rkd.core.errors import DataError, RkdError
from rkd.registry.catalog import Catalog, load_catalog
from rkd.registry.config import EvalEngine
from rkd.registry.defaults import default_objective
from rkd.registry.recipes import merge, read_recipe
from rkd.workflow.build import choose_device
from rkd.workflow.evaluate import Engine, EvalSettings, Evaluation, Journal, evaluate_and_check
from rkd.workflow.nets import load_run
from rkd.workflow.plan import ArraySplit, AttackPlan, Dataset, Reporter, Split, ThreatModel, join
from rkd.workflow.train import train_run

Checks = Literal["off", "quick", "full"]

NAMED = dict.fromkeys(("loss", "data", "attack", "objective", "optimizer"), "name") | {"student": "model"}
"""Settings that may be a component's name alone: the key of their table that it stands for."""


@cache
def catalog() -> Catalog:
    """Everything that the installed plugins provide, loaded once."""
    return load_catalog()


def train(
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Carry out a run in the new folder `out`, as `rkd run` does. Returns its results.

        rkd.train(settings={"loss": "rslad", "epochs": 20}, out="runs/mine")

    `recipe` is a shipped recipe's name or a TOML file; `settings` go on top, a component by its name or as a table with
    its options: `{"loss": {"name": "rslad", "alpha": 0.5}}`. In a script that torchrun started, all
    its processes carry out the one run together. Raises `rkd.RkdError`.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise RkdError(f"settings are a table, such as {{'loss': {{'name': 'rslad'}}}}; got {type(settings).__name__}")
    named = {
        key: {NAMED[key]: value} if key in NAMED and isinstance(value, str) else value
        for key, value in (settings or {}).items()
    }
    table = merge(read_recipe(recipe) if recipe else {}, named)
    return train_run(table, catalog(), Path(out), reporter, ranks=join())


def load_student(run: str | Path) -> nn.Module:
    """The student of a finished run: eval mode, frozen, images `(B, C, H, W)` in [0, 1] to logits `(B, K)`."""
    return load_run(run, catalog()).net


def evaluate(
    module: nn.Module,
    data: Dataset | Split | tuple[Tensor, Tensor],
    attacks: str | Sequence[str] | Mapping[str, AttackPlan] = ("fgsm", "pgd-sat", "cw"),
    *,
    eps: float | None = None,
    threat: ThreatModel | None = None,
    classes: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    rounded: bool = False,
    checks: Checks = "quick",
    engine: EvalEngine = "auto",
    journal: str | Path | None = None,
) -> Evaluation:
    """Clean and attacked accuracy of any module that takes images in [0, 1] and returns logits.

        rkd.evaluate(net, (images, labels), ["pgd-sat"], eps=8/255).summary()

    `data` is a data set (its test part), a split, or images `(N, C, H, W)` with labels `(N,)`. The threat is `threat`,
    else the data set's, else Linf 8/255; `eps` changes its radius. The module is left as it was.
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
    if not isinstance(device, (str, torch.device)):
        raise RkdError(f"device is a name, such as 'cpu' or 'cuda:1', or a torch.device; got {device!r}")
    if journal is not None and not isinstance(journal, (str, Path)):
        raise RkdError(f"journal is a folder's path; got {journal!r}")
    device = choose_device(device) if isinstance(device, str) else device
    split: Split
    if isinstance(data, Dataset):
        split, threat, classes = data.test, threat or data.threat, len(data.classes)
    elif isinstance(data, tuple) and len(data) == 2:
        split = ArraySplit(*data)
    elif isinstance(data, Split):
        split = data
    else:
        raise DataError(f"data is a data set, a split, or a pair (images, labels); got {type(data).__name__}")
    threat = threat or ThreatModel()
    if eps is not None:
        threat = threat.with_eps(eps)
    attacks = [attacks] if isinstance(attacks, str) else attacks
    _check_attacks(attacks)
    plans = attacks if isinstance(attacks, Mapping) else {name: attack_plan(name) for name in attacks}
    notes = Journal(journal) if journal is not None else None
    settings = EvalSettings(
        threat=threat, classes=classes, seed=seed, batch_size=batch_size, limit=limit, device=device, rounded=rounded,
        journal=notes, accelerator=Engine(engine),
    )  # fmt: skip
    result = evaluate_and_check(module, split, plans, settings, catalog(), checks)
    if notes is not None:
        notes.close()
    return result


def _check_attacks(attacks: Any) -> None:
    if isinstance(attacks, Mapping):
        wrong = [name for name, plan in attacks.items() if not isinstance(plan, AttackPlan)]
        if wrong:
            raise RkdError(
                f"attacks by name are AttackPlans, such as {{'mine': rkd.attack_plan('pgd', steps=50)}}; "
                f"{wrong[0]!r} is {type(attacks[wrong[0]]).__name__}"
            )
    elif not isinstance(attacks, Sequence) or not all(isinstance(name, str) for name in attacks):
        raise RkdError(f"attacks are names, such as ['pgd-sat', 'cw'], or [] for clean accuracy alone; got {attacks!r}")


def attack_plan(attack: str, objective: str | None = None, **options: Any) -> AttackPlan:
    """An attack by name with what it maximises (its own goal, or cross-entropy, if none is named)."""
    search = catalog().create("attack", attack, options)
    goal: Any = objective or default_objective(search)
    return AttackPlan(search, catalog().create("objective", goal))
