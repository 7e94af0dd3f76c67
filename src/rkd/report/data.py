"""What a run's folder says, as typed values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .values import LINE, items, number, shortened, table, text, whole

MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust a number: what was found, what it means, what to do."""

    finding: str
    meaning: str = ""
    advice: str = ""
    check: str = ""


@dataclass(frozen=True)
class Calibration:
    """`ece`: expected calibration error. `bins`: (count, mean confidence, accuracy) of each bin that is not empty."""

    ece: float | None
    confidence: float | None
    bins: list[tuple[int, float, float]]


@dataclass(frozen=True)
class Search:
    """What an attack was: its class, options and cost. `forwards` and `backwards` count images through the net, the
    `other` ones images through the net that it made its images on instead.
    `counts`: it keeps to the threat model, and so belongs into the worst case."""

    implementation: str
    options: dict[str, str]
    objective: str
    norm: str
    eps: float | None
    forwards: int | None
    backwards: int | None
    seconds: float | None
    notes: list[str]
    attacked: int | None = None
    fooled: int | None = None
    counts: bool = True
    black_box: bool = False
    other_forwards: int | None = None
    other_backwards: int | None = None


@dataclass(frozen=True)
class Size:
    """How large a net is. `macs`: multiply-accumulates for one image; `latency`: milliseconds for one image on one
    thread, the median of `runs` runs with their `quartiles`."""

    parameters: int | None
    bytes: int | None
    macs: int | None
    latency: float | None
    quartiles: tuple[float, float] | None
    runs: int | None


@dataclass(frozen=True)
class ExportedNet:
    """A row of an export's table: the net itself (`float`), what was exported, and what has eight bits. `accuracy` and
    `intervals` by kind of attack; `clean` on `whole` images, the whole test set."""

    name: str
    clean: float | None
    whole: int | None
    samples: int | None
    accuracy: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    size: Size
    runtime: str


@dataclass(frozen=True)
class Export:
    """A folder that `rkd export` wrote into the run's own."""

    format: str
    rows: list[ExportedNet]
    changes: list[str]


@dataclass(frozen=True)
class Curve:
    """Accuracy under one attack by radius. `intervals` has None where there is no interval."""

    attack: str
    norm: str
    eps: list[float]
    accuracy: list[float]
    intervals: list[tuple[float, float] | None]


@dataclass(frozen=True)
class Corruptions:
    """Accuracy by corruption, at each severity from the mildest on."""

    source: str
    accuracy: dict[str, list[float | None]]
    mean: float | None


@dataclass(frozen=True)
class Transfer:
    """Accuracy of nets on images that an attack made on others: `rows[source][net]`, both in the order of `nets`."""

    attack: str
    samples: int | None
    nets: list[str]
    clean: list[float | None]
    rows: list[list[float | None]]


@dataclass(frozen=True)
class Seen:
    """What the net said to an image."""

    prediction: int | None
    confidence: float | None


@dataclass(frozen=True)
class Example:
    """One image of the gallery, clean and attacked."""

    index: int | None
    label: int | None
    attack: str
    clean: Seen
    adversarial: Seen


@dataclass
class Net:
    """A student's or a teacher's evaluation. Accuracies are fractions."""

    role: str = ""
    model: str = ""
    source: str = ""
    normalization: str = ""
    samples: int | None = None
    clean: float | None = None
    attacks: dict[str, float] = field(default_factory=dict)
    w_robust: dict[str, float] = field(default_factory=dict)
    nrr: dict[str, float] = field(default_factory=dict)
    worst_case: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    checked: bool = False
    doubts: list[Doubt] = field(default_factory=list)
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    searches: dict[str, Search] = field(default_factory=dict)
    curve: Curve | None = None
    rounded: dict[str, float] = field(default_factory=dict)
    corruptions: Corruptions | None = None
    transfer: Transfer | None = None
    examples: list[Example] = field(default_factory=list)

    def accuracy(self, name: str) -> float | None:
        """By `clean`, `worst_case` or an attack's name."""
        if name in ("clean", "worst_case"):
            return self.clean if name == "clean" else self.worst_case
        return self.attacks.get(name)


@dataclass(frozen=True)
class Baseline:
    """The student without teachers, by `loss`. `difference`: by measure the run's student less it, with the ends of the
    95 % interval over the test images."""

    loss: str
    net: Net
    difference: dict[str, tuple[float, float, float]]


@dataclass
class RunData:
    """All that a run's folder says, or the folder of a saved evaluation (`evaluated`): that has no history and no
    teachers, `student` is the net, `card` says which one it was, and `config` holds the evaluation's settings alone."""

    name: str
    folder: Path
    config: dict[str, Any]
    config_text: str
    manifest: dict[str, Any]
    card: dict[str, Any]
    history: list[dict[str, float]]
    student: Net | None
    teachers: list[Net]
    left_out: list[str]
    evaluated: bool = False
    baseline: Baseline | None = None
    exports: list[Export] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.student is not None

    @property
    def status(self) -> str:
        """`finished`, `running`, `interrupted`, `failed: ...`; "" where the run does not say."""
        return text(self.manifest.get("status"), 300)

    @property
    def classes(self) -> list[str]:
        names = items(self.card.get("classes"))[:MOST_CLASSES]
        return [text(name, 40) or f"class {place}" for place, name in enumerate(names)]

    @property
    def threat(self) -> tuple[str, float | None]:
        """Norm and radius; the configuration's own where there is no student yet."""
        for source in (table(self.card.get("threat")), table(self.config.get("threat"))):
            if (eps := number(source.get("eps"), 0, 1e6)) is not None:
                return text(source.get("norm"), 20), eps
        return "", None

    @property
    def data(self) -> str:
        return text(self.card.get("data")) or text(table(self.config.get("data")).get("name"))

    @property
    def method(self) -> str:
        return text(table(self.config.get("loss")).get("name")) or text(self.card.get("loss"))

    @property
    def student_name(self) -> str:
        """`small-cnn+aux-bn`."""
        student = table(self.config.get("student"))
        kept = [name for name, options in table(student.get("conversions")).items() if options is not False]
        return shortened("+".join([text(student.get("model")) or text(self.card.get("model")) or "?", *kept]), LINE)

    @property
    def seed(self) -> int | None:
        return whole(self.config.get("seed"))

    @property
    def training_seed(self) -> int | None:
        """The seed that the net was trained with; the evaluation's own where that does not say."""
        trained = whole(table(self.card.get("trained")).get("seed")) if self.evaluated else None
        return self.seed if trained is None else trained

    @property
    def epochs(self) -> int | None:
        return whole(self.config.get("epochs"))

    @property
    def kept_epoch(self) -> int | None:
        """Whose weights the student has, counted from 1, where the run says so."""
        found = whole(self.card.get("chosen_epoch"))
        return None if found is None else found + 1

    @property
    def sizes(self) -> dict[str, Size]:
        """Of the student, under "", and of the teachers by their roles, as far as the run measured them."""
        sizes = table(self.manifest.get("sizes"))
        student = {"": sizes["student"]} if "student" in sizes else {}
        named = student | table(sizes.get("teachers"))
        return {role: size_of(table(named[role])) for role in list(named)[:64] if table(named[role])}

    @property
    def seconds(self) -> float | None:
        return number(self.manifest.get("seconds"), 0)


def size_of(source: dict[str, Any]) -> Size:
    """What a manifest or an export says of a net's size."""
    latency = table(source.get("latency"))
    ends = [number(value, 0) for value in items(latency.get("quartiles"))[:2]]
    low, high = ends if len(ends) == 2 else (None, None)
    return Size(
        whole(source.get("parameters")), whole(source.get("bytes")), whole(source.get("macs")),
        number(latency.get("median"), 0), None if low is None or high is None else (low, high),
        whole(latency.get("runs")),
    )  # fmt: skip
