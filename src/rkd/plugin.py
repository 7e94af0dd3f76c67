"""The public door for plugins: a method, attack, model, data set, ... imports what it needs from here alone.

    from rkd.plugin import Step, hookimpl, ops

Names in `__all__` are kept or deprecated as the policy in CONTRIBUTING.md says; everything else in rkd, but for `rkd`
itself and `rkd.testing`, is private and may move between two versions.
"""

from . import ops
from .core.attack import Patches, PlainProbe, Target
from .core.errors import ConfigError, DataError, Refused, RkdError, UnknownName, WeightsError
from .core.hooks import hookimpl
from .core.interfaces import Attack, Loss, Objective, Probe, Scheduler, Student, Teacher
from .core.random import Noise, forked, key
from .core.run import Run
from .core.step import AttackPlan, Step
from .core.traits import AttackTraits, LossTraits, traits_of
from .core.types import Batch, Companion, DerivedView, Mode, Norm, QueryKind, Schedule, Shape, ThreatModel, View, at
from .data.arrays import compact, customary_threat, fingerprint, fingerprint_of, make_dataset, spread, statistics
from .data.augment import Augment, FiniteAugment
from .data.dataset import ArraySplit, Dataset, DatasetSource, MixedSplit, Split, check_images
from .data.prefetch import free_memory
from .evaluation.corruptions import Corruption, at_severity
from .evaluation.evaluate import HasNotes
from .evaluation.model import Finite
from .evaluation.transfer import identity
from .export.formats import Artefact, Exported, Exporter, quiet, translated
from .export.onnx import NORMALIZES_INSIDE, OnnxNet
from .nets.batchnorm import Router, add_auxiliary
from .nets.fitting import built_for, load_into, net_from_file, take_normalization, without_download
from .nets.net import Accelerator, Net, Outputs
from .nets.resize import Resize
from .nets.sources import Conversion, Model, TeacherReference, TeacherSource
from .nets.student import NetStudent, move_average
from .nets.weights import read_weights
from .ops import Reduction, value_and_grad
from .registry.hooks import Family, HasParts, Parts
from .registry.schedules import check_range, parse_schedule
from .registry.zoo import ZooTeacher, read_zoo
from .storage.card import read_card
from .storage.optional import optional
from .storage.pixels import kept_pixels
from .storage.remote import hub_file
from .storage.runfolder import RunFolder
from .storage.text import did_you_mean, expanded, fraction, parse_json, read_text, shown
from .training.tracking import Tracker

__all__ = [  # noqa: RUF022  grouped by what a plugin does
    # Registration, and what every component may use
    "Batch",
    "Family",
    "Mode",
    "Noise",
    "Norm",
    "Schedule",
    "Shape",
    "ThreatModel",
    "View",
    "at",
    "check_range",
    "forked",
    "fraction",
    "hookimpl",
    "key",
    "ops",
    "optional",
    "parse_schedule",
    # Errors, and the words of their messages
    "ConfigError",
    "DataError",
    "Refused",
    "RkdError",
    "UnknownName",
    "WeightsError",
    "did_you_mean",
    "shown",
    # Losses, schedulers, extensions, trackers
    "Companion",
    "DerivedView",
    "Loss",
    "LossTraits",
    "Reduction",
    "Run",
    "Scheduler",
    "Step",
    "Student",
    "Teacher",
    "Tracker",
    # Attacks and objectives
    "Accelerator",
    "Attack",
    "AttackPlan",
    "AttackTraits",
    "Finite",
    "HasNotes",
    "HasParts",
    "Objective",
    "Parts",
    "Patches",
    "PlainProbe",
    "Probe",
    "QueryKind",
    "Target",
    "identity",
    "traits_of",
    "value_and_grad",
    # Data, augmentations, corruptions
    "ArraySplit",
    "Augment",
    "Corruption",
    "Dataset",
    "DatasetSource",
    "FiniteAugment",
    "MixedSplit",
    "Split",
    "at_severity",
    "check_images",
    "compact",
    "customary_threat",
    "fingerprint",
    "fingerprint_of",
    "free_memory",
    "kept_pixels",
    "make_dataset",
    "spread",
    "statistics",
    # Models, conversions, sources of teachers
    "Conversion",
    "Model",
    "Net",
    "NetStudent",
    "Outputs",
    "Resize",
    "Router",
    "RunFolder",
    "TeacherReference",
    "TeacherSource",
    "ZooTeacher",
    "add_auxiliary",
    "built_for",
    "expanded",
    "hub_file",
    "load_into",
    "move_average",
    "net_from_file",
    "parse_json",
    "read_card",
    "read_text",
    "read_weights",
    "read_zoo",
    "take_normalization",
    "without_download",
    # Exporters
    "Artefact",
    "Exported",
    "Exporter",
    "NORMALIZES_INSIDE",
    "OnnxNet",
    "quiet",
    "translated",
]
