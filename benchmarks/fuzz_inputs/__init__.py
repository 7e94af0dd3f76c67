"""Hostile and broken inputs for every reader of rkd, each a function of a random number generator.

A reader is `(rng, folder) -> None`: it writes one input into the empty folder and reads it as rkd does. It returns
where the input was usable and raises RkdError where it was not; anything else is a defect. `benchmarks/fuzz.py` and
`tests/test_fuzz.py` count. `strange` is what all inputs are made of; each other module is for one kind of reader.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from .configs import recipe, settings
from .data import cifar_pickle, corrupted_files, idx_files, image_folder, npz_file, npz_options
from .evaluations import evaluation_commands, evaluation_page
from .plugin_files import plugin_file
from .run_folders import Page, checkpoint, command_line, journal, report_page, run_folder
from .strange import Evil, catalog
from .sweeps import changed_run, sweep_file, sweep_folder
from .weight_files import safetensors_file, torch_file

__all__ = ["READERS", "Evil", "Page", "Reader", "catalog"]

Reader = Callable[[random.Random, Path], None]

READERS: dict[str, Reader] = {
    "recipe": recipe,
    "settings": settings,
    "sweep": sweep_file,
    "sweep folder": sweep_folder,
    ".safetensors": safetensors_file,
    ".pt and its like": torch_file,
    "run folder": run_folder,
    "report": report_page,
    "command line": command_line,
    "saved evaluation": evaluation_page,
    "commands on it": evaluation_commands,
    "checkpoint": checkpoint,
    "changed run": changed_run,
    "journal": journal,
    "MNIST idx": idx_files,
    "CIFAR pickle": cifar_pickle,
    "npz": npz_file,
    "npz options": npz_options,
    "imagefolder": image_folder,
    "CIFAR-10-C": corrupted_files,
    "plugin file": plugin_file,
}
