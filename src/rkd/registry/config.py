"""A run's configuration: its schema, and the messages about what does not fit it.

The schema fixes the frame; the tables of components hold those components' own options, which the registry checks
against their dataclasses when the run is built.
"""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rkd.core.errors import ConfigError
from rkd.core.types import Norm
from rkd.storage.text import did_you_mean, shown, with_input

from .normalization import known_normalization
from .recipes import Table, toml
from .schedules import parse_number, parse_schedule

MOST = 1_000_000
"""Epochs, images of a batch, and other counts."""


def _is_schedule(value: Any) -> Any:
    parse_schedule(value)
    return value


def _share_or_count(value: Any) -> int | float:
    number = parse_number(value)
    if not 0 < number <= MOST or (number > 1 and number != int(number)):
        raise ValueError(f"expected a number of images, or a share between 0 and 1, got {shown(value)}")
    return number if number < 1 else int(number)


TrainEngine = Literal["auto", "plain", "folded", "channels-last", "fused", "compiled"]
EvalEngine = Literal["auto", "bfloat16", "plain"]
"""What `engine` takes in a training and in an evaluation; `rkd.engine` says what each is."""

Normalization = Annotated[str, AfterValidator(known_normalization)]
Number = Annotated[float, BeforeValidator(parse_number)]
ScheduleText = Annotated[float | str, BeforeValidator(_is_schedule)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _WithOptions(BaseModel):
    """A table whose keys, beyond the known ones, are options of a component."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> Table:
        return dict(self.__pydantic_extra__ or {})

    def set_options(self, options: Table) -> None:
        self.__pydantic_extra__ = dict(options)


class Component(_WithOptions):
    """A component by name; everything else in its table is its options."""

    name: str


class DataConfig(Component):
    """`validation`: the share of the training images held out to choose the weights that are kept; `limit_train`: so
    many of the training images alone, or a share of them (both held-out and not), drawn from each class; `workers`:
    processes that read images which are not in memory (0: a thread)."""

    name: str = "digits"
    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    limit_train: Annotated[int | float, BeforeValidator(_share_or_count)] | None = None
    workers: Annotated[int, Field(ge=0, le=256)] = 0


class StudentConfig(_WithOptions):
    """`model` with its options; `conversions` in order, each with its options; `weights`: FILE or FILE#KEY to start
    from (a last layer for another number of classes starts untrained); `strip`: as in a
    teacher's table; `normalize`: with the data's mean and standard deviation, or not at all (`none`), as the nets of
    many papers, or as in a teacher's table."""

    model: str = "small-cnn"
    weights: Annotated[str, Field(min_length=1)] | None = None
    strip: str = ""
    normalize: Normalization = "data"
    conversions: dict[str, Table | Literal[False]] = Field(default_factory=dict)


class TeacherConfig(_Section):
    """`reference` is MODEL, MODEL@FILE, MODEL@FILE#KEY or a run's folder; without one, the table adds settings to the
    teacher that is in this role anyway. `options` are the model's; `train` overrides the recipe that prepares a
    missing teacher. Of a weights file, `normalize` says what its net expects: the data's normalisation, `none` (most
    official robust checkpoints), `half`, `imagenet`, `cifar10`, `cifar100`, or MEAN,.../STD,...; `auto` takes what the
    file says, or else whichever of data and none is clearly better. `strip` is taken off the beginnings of the names
    in it. `classes`: for each class of the data the net's output for it, where these are more or in another order."""

    reference: str = ""
    role: str | None = None
    options: Table = Field(default_factory=dict)
    train: Table = Field(default_factory=dict)
    normalize: Normalization = "auto"
    strip: str = ""
    classes: list[Annotated[int, Field(ge=0, lt=100_000)]] = Field(default_factory=list)


class BaselineConfig(_Section):
    """The same student trained the same way without teachers, to compare with: its `loss`; `train` adds settings."""

    loss: Annotated[str, Field(min_length=1)] = "pgd-at"
    train: Table = Field(default_factory=dict)


class AttackConfig(Component):
    """An attack with its options; `objective` (a name) for views other than `adv`."""

    objective: str | None = None


class ThreatConfig(_Section):
    """The attacker of training, validation and evaluation; what is not given is the data set's custom."""

    norm: Norm | None = None
    eps: Annotated[Number, Field(gt=0)] | None = None
    step_size: Annotated[Number, Field(gt=0)] | None = None


class OptimizerConfig(_Section):
    """The learning rate is `lr` times `schedule` at the training's progress."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[Number, Field(gt=0)] = 0.1
    schedule: ScheduleText = "cosine(1, 0)"
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[Number, Field(ge=0)] = 2e-4
    clip_gradient: Annotated[Number, Field(gt=0)] | None = None


class CheckpointConfig(_Section):
    """A checkpoint after every `epochs`-th epoch and the last one, and whenever `minutes` have passed since the one
    before (0: never within an epoch). The newest `keep` are kept while the run goes on."""

    epochs: Annotated[int, Field(ge=1, le=MOST)] = 1
    minutes: Annotated[Number, Field(ge=0)] = 10.0
    keep: Annotated[int, Field(ge=1, le=1000)] = 2


class ValidateConfig(_Section):
    """Validation after every `every`-th epoch on at most `limit` held-out images; `select` chooses the weights kept.
    `on = "test"` looks at the test images instead, as many papers do: the result is then no longer unseen data's."""

    every: Annotated[int, Field(ge=1, le=MOST)] = 1
    limit: Annotated[int, Field(ge=1, le=MOST)] | None = 1000
    steps: Annotated[int, Field(ge=0, le=10_000)] = 10
    select: Literal["w-robust", "robust", "clean", "last"] = "w-robust"
    on: Literal["held-out", "test"] = "held-out"


class EvaluateConfig(_Section):
    """The attacks of the final evaluation, on at most `limit` test images (none: all), `batch_size` at a time (none:
    256, or fewer where the training's batches are small). `rounded`: also the accuracy
    after rounding to 8 bits; `checks`: self-checks of the numbers (`full` runs attacks with a known outcome); `curve`:
    radii of the accuracy against eps; `examples`: images kept for the report's gallery; `engine`: whether searches
    that confirm what they find (autoattack and its parts) may run on a faster copy of the net, and in `bfloat16`
    what they can do with in reduced precision."""

    attacks: list[str] = Field(default_factory=lambda: ["fgsm", "pgd-sat", "cw"], max_length=100)
    limit: Annotated[int, Field(ge=1, le=MOST)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=MOST)] | None = None
    rounded: bool = False
    checks: Literal["off", "quick", "full"] = "quick"
    curve: list[Annotated[Number, Field(gt=0)]] = Field(default_factory=list, max_length=100)
    engine: EvalEngine = "auto"
    examples: Annotated[int, Field(ge=0, le=64)] = 8
    options: dict[str, Table] = Field(default_factory=dict)


class RunConfig(_Section):
    """A whole run. A component set to `false` is taken out; a teacher that would take longer than `prepare_minutes` to
    prepare is refused, and `preparation_epochs` are the epochs of one that is prepared. `grad_accumulation`: in how
    many parts the gradient of a batch is computed; `batch_size` stays the samples of one step of the optimiser, of all
    processes together. `sync_bn`: batch norm over the samples of all processes. `engine`: how the student runs while it
    is attacked: `auto`, on a frozen copy with folded batch norms and, on CPUs, fused layers; `plain`, as it is; the
    others force one kind of copy. `on_nan`: what to do about a step whose loss or weights are not finite: `stop` the
    run, `skip` the batch, or `rollback` to the start of the epoch with half the learning rate. `teacher_cache`: `auto`
    keeps teachers' answers to clean images that come again, where that pays; `on` wherever it is exact;
    `teacher_cache_gib`: the most that the answers to augmented images may take. `companions`: nets beside the student
    that the loss declares, each a table like the student's; without a model, the student's own. `baseline`: the student
    without teachers, trained before and shown beside it."""

    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Annotated[int, Field(ge=1, le=MOST)] = 30
    batch_size: Annotated[int, Field(ge=2, le=MOST)] = 128
    grad_accumulation: Annotated[int, Field(ge=1, le=MOST)] = 1
    sync_bn: bool = False
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    teacher_cache: Literal["auto", "on", "off"] = "auto"
    teacher_cache_gib: Annotated[Number, Field(ge=0)] = 4.0
    engine: TrainEngine = "auto"
    loss: Component = Field(default_factory=lambda: Component(name="mtard-anl"))
    student: StudentConfig = Field(default_factory=StudentConfig)
    companions: dict[str, StudentConfig] = Field(default_factory=dict)
    data: DataConfig = Field(default_factory=DataConfig)
    teachers: list[TeacherConfig] = Field(default_factory=list, max_length=100)
    baseline: BaselineConfig | Literal[False] | None = None
    attack: AttackConfig | None = None
    attacks: dict[str, AttackConfig] = Field(default_factory=dict)
    objective: Component | None = None
    threat: ThreatConfig = Field(default_factory=ThreatConfig)
    schedulers: dict[str, Table | Literal[False]] = Field(default_factory=dict)
    augments: dict[str, Table | Literal[False]] = Field(default_factory=dict)
    extensions: dict[str, Table | Literal[False]] = Field(default_factory=dict)
    trackers: dict[str, Table | Literal[False]] = Field(default_factory=dict)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    validate_: ValidateConfig = Field(default_factory=ValidateConfig, alias="validate")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    auto_batch: bool = False
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    prepare_minutes: Annotated[Number, Field(gt=0)] = 30.0
    preparation_epochs: Annotated[int, Field(ge=1)] | None = None

    def text(self) -> str:
        """The configuration as TOML; reading it again gives the same configuration."""
        return toml(self.model_dump(by_alias=True))


M = TypeVar("M", bound=BaseModel)


def section(model: type[M], table: Mapping[str, Any], where: str = "") -> M:
    """A section of the configuration that stands at `where`. Raises ConfigError with every problem."""
    try:
        return model(**table)
    except ValidationError as error:
        place = f"{where}." if where else ""
        raise ConfigError([f"{place}{_explain(item)}" for item in error.errors()]) from None


_TABLES = {
    "loss", "student", "companions", "data", "attack", "attacks", "objective", "threat", "schedulers", "augments",
    "extensions", "trackers", "optimizer", "validate", "evaluate",
}  # fmt: skip


def parse(table: Mapping[str, Any]) -> RunConfig:
    """Check a configuration. Raises ConfigError with every problem."""
    return section(RunConfig, table)


def sound(table: Mapping[str, Any]) -> Table:
    """The sections that have the form of one: a table, with text for names, or a list of tables for the teachers."""

    def fits(key: str, value: Any) -> bool:
        if key == "teachers":
            return isinstance(value, list) and all(isinstance(inner, Mapping) for inner in value)
        if key not in _TABLES:
            return True
        if not isinstance(value, Mapping) or not isinstance(value.get("name", ""), str):
            return False
        tables = ("attacks", "schedulers", "augments", "extensions", "trackers", "companions")
        inner = value.values() if key in tables else ()
        return all(isinstance(options, Mapping) or options is False for options in inner)

    return {key: value for key, value in table.items() if fits(key, value)}


def _short(place: list[str]) -> str:
    where = ".".join(place)
    return where if len(where) <= 100 else f"{where[:97]}..."


def _explain(item: Any) -> str:
    place = [str(part) for part in item["loc"] if not (isinstance(part, str) and "[" in part)]
    if item["type"] == "extra_forbidden":
        place = place or [str(item["loc"][-1])]
        section = _section(item["loc"][:-1])
        near = did_you_mean(place[-1], section)
        return f"{_short(place)}: there is no such setting.{near} Here there is: {', '.join(section)}"
    where = _short(place)
    if item["type"] == "missing":
        return f"{where}: is required"
    given = shown(item["input"]).strip("'")
    if item["type"] == "model_type":
        inside = _section(item["loc"])
        name = (
            "model" if where == "student" else "name" if "name" in inside else "attacks" if "attacks" in inside else ""
        )
        meant = f"{where}.{name}={given}" if name != "attacks" else shlex.quote(f'{where}.attacks=["{given}"]')
        advice = f"did you mean {meant}?" if name else f"there is {', '.join(f'{where}.{key}' for key in inside)}"
        return f"{where}: is a table of settings; {advice}"
    said = f"{where}: {with_input(item['msg'].removeprefix('Value error, '), item['input'])}"
    if isinstance(item["input"], str) and item["type"] in ("list_type", "dict_type"):
        meant = f'{where}=["{given}"]' if item["type"] == "list_type" else f"{where}.{given}={{}}"
        return f"{said}; did you mean {shlex.quote(meant)}?"
    return said


def _section(location: tuple[int | str, ...]) -> list[str]:
    """The settings that exist at a place in the configuration."""
    model: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        kinds = [model_class for model_class in _Section.__subclasses__() if model_class is not RunConfig]
        wanted = str(fields[part].annotation) if part in fields else ""
        model = next((kind for kind in kinds if kind.__name__ in wanted), RunConfig)
    return [field.alias or name for name, field in model.model_fields.items()]
