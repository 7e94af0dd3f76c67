"""Checks for authors of plugins: does a component keep the promises that the rest of rkd relies on?

    from rkd.testing import check_attack

    def test_my_attack():
        check_attack(MyAttack(steps=5))

Each `check_...` takes an instance, tries it on tiny nets and images within a second or so, and raises AssertionError
with a sentence that says which promise is broken. rkd's own components go through the same checks. `tiny_...` are the
nets and images they use; nothing here needs pytest.

What a component shows by its name is looked up among the installed plugins, and files of one's own:

    def test_it_can_be_cited():
        check_method(load_catalog(["my_method.py"]), "mine")
"""

from rkd.registry.catalog import Catalog, Entry, load_catalog

from .attack import check_attack, check_objective
from .catalog import check_entry, check_method
from .data import check_augment, check_corruption, check_dataset
from .kit import Verdict, check_component, check_plugin
from .nets import check_conversion, check_model
from .outputs import check_exporter, check_teacher_source, check_tracker
from .state import untouched
from .tiny import (
    LinearNet,
    OneStep,
    StubTeacher,
    TinyNet,
    TinyParts,
    tiny_batch,
    tiny_dataset,
    tiny_net,
    tiny_run,
    tiny_step,
    tiny_teachers,
)
from .train import check_extension, check_loss, check_scheduler, check_trains

__all__ = [
    "Catalog",
    "Entry",
    "LinearNet",
    "OneStep",
    "StubTeacher",
    "TinyNet",
    "TinyParts",
    "Verdict",
    "check_attack",
    "check_augment",
    "check_component",
    "check_conversion",
    "check_corruption",
    "check_dataset",
    "check_entry",
    "check_exporter",
    "check_extension",
    "check_loss",
    "check_method",
    "check_model",
    "check_objective",
    "check_plugin",
    "check_scheduler",
    "check_teacher_source",
    "check_tracker",
    "check_trains",
    "load_catalog",
    "tiny_batch",
    "tiny_dataset",
    "tiny_net",
    "tiny_run",
    "tiny_step",
    "tiny_teachers",
    "untouched",
]
