"""rkd: adversarially robust knowledge distillation. Public names load on first use, so `import rkd` is cheap."""

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "AttackPlan": "rkd.core.step",
    "Batch": "rkd.core.types",
    "ConfigError": "rkd.core.errors",
    "DataError": "rkd.core.errors",
    "Evaluation": "rkd.evaluation.result",
    "Family": "rkd.registry.hooks",
    "Refused": "rkd.core.errors",
    "RkdError": "rkd.core.errors",
    "Step": "rkd.core.step",
    "ThreatModel": "rkd.core.types",
    "attack_plan": "rkd.api",
    "evaluate": "rkd.api",
    "forget_registered": "rkd.api",
    "hookimpl": "rkd.core.hooks",
    "keep_freed_memory": "rkd.profiling.allocator",
    "load_run": "rkd.api",
    "load_student": "rkd.api",
    "make_dataset": "rkd.data.arrays",
    "ops": "rkd.ops",
    "register": "rkd.api",
    "train": "rkd.api",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rkd' has no attribute {name!r}")
    module = _PUBLIC[name]
    if module.endswith(f".{name}"):
        return importlib.import_module(module)
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
