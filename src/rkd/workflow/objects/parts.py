"""What `rkd.train` is given, as a configuration and the catalog in which its names are looked up.

An object goes the way of a name: it is put into the run's own catalog as `object:CLASS`, and that name into the table.
So every check, `config.toml` and `--resume` see one kind of run.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rkd.core.errors import RkdError
from rkd.core.hooks import RunHooks
from rkd.core.interfaces import Loss, Scheduler
from rkd.core.step import AttackPlan
from rkd.core.traits import name_of
from rkd.core.types import Shape
from rkd.data.arrays import as_split, is_pair, make_dataset
from rkd.data.augment import Augment
from rkd.data.dataset import Dataset, Split
from rkd.evaluation.journal import fingerprint
from rkd.nets.first_look import InputNormalization
from rkd.nets.net import Net
from rkd.nets.sources import TeacherReference
from rkd.registry.catalog import OBJECT, Catalog, Given
from rkd.registry.recipes import Table, merge
from rkd.training.tracking import Tracker

from .functions import as_attack

SOURCE = OBJECT.rstrip(":")
"""The source of teachers that are objects."""


DIGITS = 6
"""Of a hash in a name. Runs whose configurations name the same parts count as repetitions of one another: so a net's
name tells the names and shapes of its weights, a teacher's the weights, a data set's the images."""


class ModuleModel:
    """The architecture and weights of a module: nets are copies of it, and the module stays as it is."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return copied(self.module)


class GivenData:
    """The source of a data set that is there already."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self) -> Dataset:
        return self.dataset


class ModuleTeachers:
    """Teachers that are modules, by their names."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> Net | None:
        module = self.modules.get(reference.text.removeprefix(OBJECT))
        if module is None or not reference.text.startswith(OBJECT):
            return None
        plain = (0.0,) * data.shape[0], (1.0,) * data.shape[0]
        net = Net(copied(module), *plain)
        net.settle(InputNormalization(*plain, "none", "told", other=(data.mean, data.std)))
        return net


class Parts:
    """Collects the parts of a run. `table` is its configuration, `components` what the catalog lacks."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.components: dict[str, dict[str, Any]] = {}
        self._named: list[tuple[Any, str]] = []

    def add(self, settings: Mapping[str, Any]) -> None:
        """Sections of the configuration, in which objects may stand for components. Raises RkdError."""
        special: dict[str, Callable[[Any], None]] = {
            "attack": self._attack, "evaluate": self._evaluation, "student": self._student,
            "teachers": self._teachers, "data": self._data,
        }  # fmt: skip
        for key, value in settings.items():
            if key in special:
                special[key](value)
            elif key in ("loss", "objective"):
                self._one(key, value)
            elif key in ("schedulers", "augments", "extensions", "trackers"):
                self._several(key, value)
            elif key == "optimizer" and isinstance(value, str):
                self._put({key: {"name": value}})
            else:
                self._put({key: value})

    def extend(self, catalog: Catalog) -> Catalog:
        """`catalog` with the components of this run."""
        return catalog.extended(self.components)

    def _put(self, more: Mapping[str, Any]) -> None:
        self.table = merge(self.table, more)

    def _one(self, kind: str, given: Any) -> None:
        """A section of one component: its name, a table with a `name`, or an object."""
        table = dict(given) if isinstance(given, Mapping) else {"name": given}
        if "name" in table:
            table["name"] = self._name(kind, table["name"], kind)
        self._put({kind: table})

    def _several(self, section: str, given: Any) -> None:
        """A section of components by name, of a list of names and objects, or of a table of options by name."""
        if isinstance(given, Mapping):
            self._put({section: given})
            return
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise RkdError(f"{section} is a list of names and objects, or a table NAME: OPTIONS; got {given!r}")
        self._put({section: {self._name(section.removesuffix("s"), each, section): {} for each in given}})

    def _attack(self, given: Any) -> None:
        if isinstance(given, AttackPlan):
            self._one("objective", given.objective)
            given = given.attack
        self._one("attack", given)

    def _evaluation(self, given: Any) -> None:
        """A table, or its attacks alone: names, functions, attacks."""
        table = dict(given) if isinstance(given, Mapping) else {"attacks": given}
        if "attacks" in table:
            attacks = table["attacks"]
            listed = attacks if isinstance(attacks, (list, tuple)) else [attacks]
            table["attacks"] = [self._name("attack", each, "evaluate") for each in listed]
        self._put({"evaluate": table})

    def _student(self, given: Any) -> None:
        if isinstance(given, str):
            model, *conversions = given.split("+")
            more: Table = {"conversions": {name: {} for name in conversions}} if conversions else {}
            self._put({"student": {"model": model} | more})
        elif isinstance(given, Mapping):
            table = dict(given)
            model = table.pop("model", None)
            self._put({"student": table})
            if model is not None:
                self._student(model)
        elif isinstance(given, nn.Module):
            module = _module(given, "the student")
            name = self._add("model", f"{name_of(given)}-{form_of(given)}", Given(ModuleModel(module)))
            # A module is whole: what it is to normalise, it does inside, unless the user says otherwise.
            self._put({"student": {"model": name, "normalize": self.table.get("student", {}).get("normalize", "none")}})
        elif isinstance(given, type) and issubclass(given, nn.Module):
            raise RkdError(f"student: {given.__name__} is a class of modules: give an instance, {given.__name__}(...)")
        elif callable(given):
            self._put({"student": {"model": self._name("model", given, "student")}})
        else:
            raise RkdError(
                "student is a name (resnet18+aux-bn), a torch.nn.Module, or a function (shape, classes) -> module; got "
                f"{type(given).__name__}"
            )

    def _teachers(self, given: Any) -> None:
        if isinstance(given, (list, tuple)):  # as a recipe has them
            self._put({"teachers": list(given)})
            return
        if not isinstance(given, Mapping):
            raise RkdError(f"teachers is a table ROLE: TEACHER, such as {{'robust': net}}; got {type(given).__name__}")
        source, rows = ModuleTeachers(), []
        for role, teacher in given.items():
            row = dict(teacher) if isinstance(teacher, Mapping) else {"reference": teacher}
            reference = row.get("reference")
            if isinstance(reference, nn.Module):
                module = _module(reference, f"the {role} teacher")
                name = f"{name_of(module)}-{fingerprint(*module.state_dict().values())[:DIGITS]}"
                source.modules[name] = module
                row["reference"] = f"{OBJECT}{name}"
            elif isinstance(reference, Path):
                row["reference"] = str(reference)
            elif reference is not None and not isinstance(reference, str):
                raise RkdError(
                    f"the {role} teacher is a torch.nn.Module, a run's folder, MODEL@FILE, or a model's name; got "
                    f"{type(reference).__name__}"
                )
            rows.append(row | {"role": role})
        if source.modules:
            self.components.setdefault("teacher", {})[SOURCE] = Given(source)
        self._put({"teachers": rows})

    def _data(self, given: Any) -> None:
        if isinstance(given, (str, Mapping)):
            self._put({"data": {"name": given} if isinstance(given, str) else given})
            return
        if not isinstance(given, Dataset):
            if is_pair(given) or not isinstance(given, (tuple, list)) or len(given) != 2:
                raise RkdError(
                    "data is (train, test), each a pair (images, labels), a torch Dataset or DataLoader, or a Split; "
                    f"or a name, or what rkd.make_dataset gives; got {_kind(given)}"
                )
            given = make_dataset(*given)
        name = self._add("dataset", f"{given.name}-{given.fingerprint[:DIGITS]}", Given(GivenData(given)))
        self._put({"data": {"name": name}})

    def _name(self, kind: str, given: Any, where: str) -> str:
        """The name of a component in the run's catalog. Raises RkdError for what is none of this kind."""
        if isinstance(given, str):
            return given
        if known := [name for one, name in self._named if one is given]:
            return known[0]
        if isinstance(given, type):
            name = self._add(kind, given.__name__, given)
        elif kind == "attack":
            name = self._add(kind, name_of(given), Given(as_attack(given)))
        else:
            self._check(kind, given, where)
            # A scheduler has a state, which the next run shall not begin with. An extension is its owner's to look at.
            own = copy.deepcopy(given) if kind == "scheduler" else given
            name = self._add(kind, name_of(given), Given(own))
        self._named.append((given, name))
        return name

    def _check(self, kind: str, given: Any, where: str) -> None:
        expected, fits = FORMS[kind]
        if not fits(given):
            raise RkdError(f"{where}: expected a name, a class, or {expected}; got {_kind(given)}")

    def _add(self, kind: str, name: str, component: Any) -> str:
        known = self.components.setdefault(kind, {})
        name = base = OBJECT + "".join(c for c in name if c.isalnum() or c in "_-. ")
        number = 1
        while name in known:
            number += 1
            name = f"{base}-{number}"
        known[name] = component
        return name


def _listens(given: Any) -> bool:
    return any(name in vars(RunHooks) for name in dir(given) if name.startswith("rkd_"))


FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "loss": ("an object with __call__(step) -> {term: (B,)}", lambda given: isinstance(given, Loss)),
    "objective": ("a function (step, probe, x) -> (B,)", callable),
    "scheduler": ("an object with update(step, terms), state_dict and load_state_dict",
                  lambda given: isinstance(given, Scheduler)),
    "augment": ("an object with __call__(batch, noise) -> batch", lambda given: isinstance(given, Augment)),
    "extension": ("an object with hooks: methods called rkd_epoch_end, ... under @rkd.hookimpl", _listens),
    "tracker": ("an object with every, start, log_scalars, log_table, log_artifacts and finish",
                lambda given: isinstance(given, Tracker)),
    "model": ("a function (shape, classes) -> module", callable),
}  # fmt: skip
"""Kind -> its objects in words, and whether something is one."""


def evaluated_split(data: Any) -> tuple[Split, Dataset | None]:
    """The images to evaluate on, of (train, test) the latter, and the data set that they are a part of, if there is
    one. Raises DataError."""
    if isinstance(data, Dataset):
        return data.test, data
    if isinstance(data, (tuple, list)) and len(data) == 2 and not is_pair(data):
        data = data[1]
    return as_split(data), None


def form_of(module: nn.Module) -> str:
    """Follows from the names and shapes of a module's weights."""
    return fingerprint(*[(key, tuple(weight.shape)) for key, weight in module.state_dict().items()])[:DIGITS]


def device_of(module: Any) -> torch.device:
    """Where a module's weights are; the CPU for one without. Raises RkdError where they are on several devices."""
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    devices = {tensor.device for tensor in tensors} or {torch.device("cpu")}
    if len(devices) > 1:
        raise RkdError(f"the module is on {' and '.join(sorted(map(str, devices)))}: move it to one, module.to(...)")
    return devices.pop()


def copied(module: nn.Module) -> nn.Module:
    """Raises RkdError for a module that cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a module's own state: a tensor that is no leaf, a lock, an open file
        raise RkdError(
            f"the {name_of(module)} cannot be copied ({type(error).__name__}: {error}), and rkd leaves the one that it "
            "is given as it is: give a function (shape, classes) -> module instead"
        ) from None


def _module(given: nn.Module, who: str) -> nn.Module:
    if any(is_lazy(weight) for weight in given.parameters()):
        raise RkdError(f"{who} has lazy layers without weights: run it on an image once")
    return given


def _kind(given: Any) -> str:
    return f"a {type(given).__name__} of {len(given)}" if isinstance(given, (tuple, list)) else type(given).__name__
