"""A folder as a repository of the Hugging Face hub has it: config.json, model.safetensors and the card.

A student of timm's is written as timm reads it (see timm.py). Any other has no library on the hub that would build it:
its folder holds a program of torch.export beside the weights, which plain PyTorch runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rkd.plugin import Artefact, Exported, hookimpl

from .timm import PREFIX, Timm
from .torch import TorchProgram


@dataclass
class HuggingFace:
    """config.json and model.safetensors for the Hugging Face hub: timm's of a timm student, else with a program."""

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        card = student.card
        if card.model.startswith(PREFIX):
            return Timm()(student, folder)
        config = {
            "architectures": [card.model],
            "model_type": "rkd",
            "options": dict(card.options),
            "shape": list(card.shape),
            "id2label": dict(enumerate(card.classes)),
            "num_classes": len(card.classes),
            "mean": card.mean,
            "std": card.std,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return TorchProgram()(student, folder)


@hookimpl
def rkd_exporters():
    return {"hf": HuggingFace}
