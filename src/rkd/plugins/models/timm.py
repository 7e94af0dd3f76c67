"""Any architecture of timm by its name there: `timm:resnet18`, `timm:vit_tiny_patch16_224`.

timm builds the net for the channels and classes of the data and, where the net takes one, for the image size.
Parameter names are timm's. `pretrained` fetches timm's own weights from the Hugging Face hub and replaces the
head, and the first convolution for other than 3 channels (the tag of a name picks the weights:
`timm:resnet18.a1_in1k`). rkd normalises with the numbers of the data set, not with those of the weights.

Small images: most of timm's nets shrink an image 32 times. Where that leaves nothing, or where patches do not
fit, the images are first resized to the smallest size that works (see `_resized.py`). A net that works on
32x32 is not therefore good there: it sees one position in the end. `resize` sets a larger side, at its cost.

References: wightman2019timm
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rkd.plugin import Family, Shape, UnknownName, WeightsError, did_you_mean, hookimpl

from ._resized import Size, fit


@dataclass
class TimmModel:
    """Any architecture of timm, such as timm:resnet18 or timm:vit_tiny_patch16_224."""

    name: str
    pretrained: bool = False
    resize: int | None = None

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        import timm  # takes seconds

        self._check(timm)
        options: dict[str, Any] = {"pretrained": self.pretrained, "num_classes": classes, "in_chans": shape[0]}

        def build(size: Size) -> nn.Module:
            try:
                return timm.create_model(self.name, img_size=size, **options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
            return timm.create_model(self.name, **options)

        config = timm.get_pretrained_cfg(self.name)
        native = config.input_size[1:] if config else (224, 224)
        return fit(build, shape, classes, f"timm:{self.name}", self.resize, native)

    def _check(self, timm: Any) -> None:
        """Raise for a name that timm does not know, and for weights that it cannot fetch."""
        architecture, _, tag = self.name.partition(".")
        known = timm.list_models()
        if architecture not in known:
            raise UnknownName(
                f"timm {timm.__version__} has no architecture {architecture!r}."
                f"{did_you_mean(architecture, known)} "
                f"(There are {len(known)}: python -c 'import timm; print(timm.list_models())')"
            )
        tagged = timm.list_pretrained(f"{architecture}.*")
        if tag and self.name not in tagged:
            raise UnknownName(
                f"timm has no weights {self.name!r}.{did_you_mean(self.name, tagged)} "
                f"(There are {', '.join(tagged) or 'none'}; leave out the tag to train from scratch.)"
            )
        if self.pretrained:
            try:
                timm.create_model(self.name, pretrained=True)
            except Exception as error:  # the hub's and the network's errors have no common class
                raise WeightsError(
                    f"timm cannot load its weights for {self.name!r}: {error}. "
                    "Without them: pretrained=false; from a file: @FILE behind the name"
                ) from error


@hookimpl
def rkd_models():
    return {"timm:NAME": Family(r"timm:(?P<name>.+)", TimmModel, ("timm:resnet18", "timm:convnext_atto"))}
