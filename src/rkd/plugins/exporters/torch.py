"""The student as a program of torch.export, and its weights: plain PyTorch runs it, without rkd and the net's code."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from rkd.plugin import Artefact, Exported, hookimpl

PROGRAM, WEIGHTS = "model.pt2", "model.safetensors"

USAGE = f"""import torch

net = torch.export.load("{PROGRAM}").module()  # normalisation inside
images = torch.rand(4, {{shape}})  # yours: float32 in [0, 1], any number at once
with torch.no_grad():
    print(net(images).argmax(1))"""


@dataclass
class TorchProgram:
    """A torch.export program (model.pt2) and the weights (model.safetensors), for plain PyTorch."""

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        torch.export.save(student.program(), folder / PROGRAM)
        save_file({name: t.contiguous().clone() for name, t in student.net.arch.state_dict().items()}, folder / WEIGHTS)
        return Artefact(
            torch.export.load(folder / PROGRAM).module(),
            (PROGRAM,),
            f"torch {torch.__version__}",
            USAGE.format(shape=", ".join(map(str, student.card.shape))),
            (f"{WEIGHTS} holds the weights alone, under their names in the architecture {student.card.model}.",),
        )


@hookimpl
def rkd_exporters():
    return {"torch": TorchProgram}
