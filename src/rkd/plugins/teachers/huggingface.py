"""Teachers from the Hugging Face hub: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REV` for a branch, tag or commit.

The repository must be one that timm reads: `config.json` names an architecture of timm, its classes and its
normalisation, `model.safetensors` has the weights. Both are fetched once and kept in rkd's cache. Weights of another
architecture are a file of the repository: `MODEL@hf:OWNER/NAME/FILE`. HF_ENDPOINT names another server, HF_TOKEN opens
what is closed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rkd.plugin import (
    ConfigError,
    Dataset,
    Net,
    Refused,
    TeacherReference,
    WeightsError,
    hookimpl,
    hub_file,
    net_from_file,
    parse_json,
    read_text,
)


@dataclass
class HuggingFaceTeacher:
    """hf:OWNER/NAME[@REV]: a net of timm from the Hugging Face hub, by its config.json and model.safetensors."""

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> Net | None:
        if not reference.text.startswith("hf:"):
            return None
        repository = reference.text.removeprefix("hf:")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", repository):
            raise ConfigError(
                f"{reference.text}: expected hf:OWNER/NAME or hf:OWNER/NAME@REV; a file needs its architecture, as in "
                "MODEL@hf:OWNER/NAME/FILE"
            )
        path, notes = hub_file(repository, "config.json")
        try:
            config = parse_json(read_text(path))
        except ValueError as error:
            raise WeightsError(f"{reference.text}: its config.json cannot be read: {error}") from None
        model, mean, std = _known(config, reference.text)
        if len(mean) not in (1, data.shape[0]):
            raise Refused(
                f"{reference.text} is for images of {len(mean)} channels, and those of {data.name!r} have "
                f"{data.shape[0]}"
            )
        weights, more = hub_file(repository, "model.safetensors")
        net = net_from_file(
            str(weights), model, lambda classes: build(model, reference.options, classes), len(data.classes),
            reference.strip, bool(reference.classes),
        )  # fmt: skip
        found = Net(net.arch, mean, std)
        found.notes = (*notes, *more, *net.notes, f"{reference.text}: normalised as its config.json says, {mean}/{std}")
        return found


def _known(config: Any, who: str) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Model, mean and std that a config.json says. Raises WeightsError."""
    try:
        pretrained: Mapping[str, Any] = config.get("pretrained_cfg", config)
        name = config["architecture"]
        mean, std = (tuple(float(value) for value in pretrained[key]) for key in ("mean", "std"))
        if not isinstance(name, str) or not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WeightsError(
            f"{who} is no repository that timm reads: its config.json must say architecture, mean and std. A file of "
            f"it, for an architecture that you know: MODEL@{who}/FILE"
        ) from None
    return f"timm:{name}", mean, std


@hookimpl
def rkd_teachers():
    return {"hf": HuggingFaceTeacher}
