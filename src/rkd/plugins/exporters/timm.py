"""A student of timm's as timm keeps its own: config.json and model.safetensors.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads the folder, and `hf-hub:OWNER/NAME` what was pushed. The
normalisation is in config.json as mean and std, where timm's transforms look for it, and so is the size that images
are resized to where the net takes no smaller ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rkd.plugin import Artefact, Exported, Net, Refused, Resize, hookimpl

PREFIX = "timm:"

USAGE = """import timm
import torch

net = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder; hf-hub:OWNER/NAME once it is pushed
data = timm.data.resolve_data_config(model=net)
mean, std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))
images = torch.rand(4, {shape})  # yours: float32 in [0, 1]
{resize}with torch.no_grad():
    print(net((images - mean) / std).argmax(1))"""

RESIZE = """images = torch.nn.functional.interpolate(images, {size}, mode="bilinear", antialias={antialias})
"""


@dataclass
class Timm:
    """timm's config.json and model.safetensors, of a student `timm:NAME`."""

    def __call__(self, student: Exported, folder: Path) -> Artefact:
        card = student.card
        if not card.model.startswith(PREFIX):
            raise Refused(f"{card.model} is no net of timm's; timm reads students called timm:NAME. Type --to hf, "
                          "torch or onnx")  # fmt: skip
        import timm  # takes seconds

        arch, resize = student.net.arch, resizing(student.net.arch)
        size = resize.size if resize else card.shape[1:]
        config = config_of(student, size)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: t.contiguous().clone() for k, t in arch.state_dict().items()}, folder / "model.safetensors")
        try:
            again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except Exception as error:  # timm lets anything out
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Refused(f"timm {timm.__version__} does not read what was written for {card.model}: {reason}. Folders "
                          "are read since timm 1.0.16; newer: pip install -U timm") from error  # fmt: skip
        if resize:
            again.register_forward_pre_hook(resize)
        resized = RESIZE.format(size=tuple(size), antialias=resize.antialias) if resize else ""
        usage = USAGE.format(shape=", ".join(map(str, card.shape)), resize=resized)
        about = ["Its config.json holds mean and std: images are normalised before the net, as with all of timm's."]
        if resize:
            about.append(f"Images are resized to {size[0]} x {size[1]} before the net (bilinear).")
        files = ("model.safetensors", "config.json")
        return Artefact(Net(again, card.mean, card.std), files, f"timm {timm.__version__}", usage, tuple(about))


def resizing(arch: nn.Module) -> Resize | None:
    """What the student resizes images with before its net, if it does."""
    return next((hook for hook in arch._forward_pre_hooks.values() if isinstance(hook, Resize)), None)


def config_of(student: Exported, size: tuple[int, ...]) -> dict[str, Any]:
    """config.json, in the form that timm's own exports have."""
    card = student.card
    arch: Any = student.net.arch
    channels, classes, name = card.shape[0], list(card.classes), card.model.removeprefix(PREFIX).partition(".")[0]
    shaped = {"in_chans": channels} | ({"img_size": list(size)} if takes_size(name, size) else {})
    mean, std = (values * channels if len(values) == 1 else values for values in (card.mean, card.std))
    own = arch.pretrained_cfg
    return {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": arch.num_features,
        "model_args": shaped,
        "label_names": classes,
        "pretrained_cfg": {
            "tag": "rkd",
            "custom_load": False,
            "input_size": [channels, *size],
            "fixed_input_size": "img_size" in shaped,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": mean,
            "std": std,
            "num_classes": len(classes),
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }


def takes_size(name: str, size: tuple[int, ...]) -> bool:
    """Whether an architecture is built for an image size, as transformers are."""
    import timm

    try:
        timm.create_model(name, img_size=tuple(size))
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return False
    return True


@hookimpl
def rkd_exporters():
    return {"timm": Timm}
