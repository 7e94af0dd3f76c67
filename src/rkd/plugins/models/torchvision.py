"""Any classification net of torchvision by its name there: `torchvision:resnet18`, `torchvision:vit_b_16`.

Parameter names are torchvision's. Its nets are made for RGB images of 224x224 pixels; rkd changes three
things:

- another number of channels gets a new first convolution: its weights are the old ones, summed for one
  channel and else repeated, scaled to keep the response, as timm does (so pretrained weights stay of use);
- images that are too small for a net are first resized to the smallest size that works (see `_resized.py`).
  vit and maxvit are built for the image size. `resize` sets a larger side, at its cost;
- googlenet and inception_v3 come without their auxiliary heads, whose outputs no loss here would read.

`pretrained` fetches torchvision's default weights and trains a new head if there are not 1000 classes; a vit
then keeps the image size of its weights. rkd normalises with the numbers of the data set, not with those of
the weights.

References: torchvision2016
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rkd.plugin import Family, Refused, Shape, UnknownName, WeightsError, did_you_mean, hookimpl

from ._resized import Size, fit


@dataclass
class TorchvisionModel:
    """Any classification net of torchvision, such as torchvision:resnet18 or torchvision:vit_b_16."""

    name: str
    pretrained: bool = False
    resize: int | None = None

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        from torchvision import models  # takes seconds

        known = models.list_models(module=models)
        if self.name not in known:
            raise UnknownName(
                f"torchvision has no classification net {self.name!r}.{did_you_mean(self.name, known)} "
                f"(It has {', '.join(known)}.)"
            )
        weights = self._weights(models) if self.pretrained else None
        resize = self.resize
        if weights and self.name.startswith("vit_"):
            side = models.get_model_weights(self.name).DEFAULT.meta["min_size"][0]
            if resize not in (None, side):
                raise Refused(f"the weights of torchvision:{self.name} are for resize={side}, not {resize}")
            resize = side

        def build(size: Size) -> nn.Module:
            net = models.get_model(self.name, weights=None, num_classes=classes, **self._options(size))
            if weights:
                load(net, weights)
                # The weights of googlenet and inception_v3 want a normalisation of their own.
                if shape[0] == 3 and hasattr(net, "transform_input"):
                    net.transform_input = True
            if shape[0] != 3:
                set_channels(net, shape[0])
            return net

        return fit(build, shape, classes, f"torchvision:{self.name}", resize)

    def _options(self, size: Size) -> dict[str, Any]:
        """What this net must be told beside the number of classes."""
        if self.name.startswith("vit_"):
            if size[0] != size[1]:
                raise ValueError("takes square images alone")
            return {"image_size": size[0]}
        if self.name.startswith("maxvit_"):
            return {"input_size": size}
        if self.name in ("googlenet", "inception_v3"):
            return {"aux_logits": False, "init_weights": True}
        return {}

    def _weights(self, models: Any) -> dict[str, torch.Tensor]:
        """torchvision's default weights, by its own loader: some files hold names of old."""
        try:
            return models.get_model(self.name, weights="DEFAULT", progress=False).state_dict()
        except Exception as error:  # the network's errors have no common class
            raise WeightsError(
                f"torchvision cannot load its weights for {self.name!r}: {error}. "
                "Without them: pretrained=false; from a file: @FILE behind the name"
            ) from error


def load(net: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load all weights but those of a head for another number of classes."""
    own = net.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    head = list(own)[-1].rpartition(".")[0]
    missing = [key for key in own if key not in fitting and key.rpartition(".")[0] != head]
    if missing:
        raise WeightsError(f"the weights lack {len(missing)} of the net's {len(own)} tensors, first {missing[0]!r}")
    net.load_state_dict(own | fitting)


def set_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution, of 3 channels, by one of `channels`."""
    convolutions = ((name, part) for name, part in net.named_modules() if isinstance(part, nn.Conv2d))
    name, old = next((name, part) for name, part in convolutions if part.in_channels == 3)
    new = copy.deepcopy(old)
    new.in_channels = channels
    with torch.no_grad():
        if channels == 1:
            weight = old.weight.sum(1, keepdim=True)
        else:
            weight = old.weight[:, torch.arange(channels) % 3] * (3 / channels)
    new.weight = nn.Parameter(weight)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)


@hookimpl
def rkd_models():
    return {
        "torchvision:NAME": Family(
            r"torchvision:(?P<name>\w+)", TorchvisionModel, ("torchvision:resnet18", "torchvision:vit_b_16")
        )
    }
