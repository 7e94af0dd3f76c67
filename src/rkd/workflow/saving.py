"""What `rkd eval --save` keeps: a folder that is there whole or not at all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rkd.core.errors import RkdError
from rkd.evaluation.result import Evaluation
from rkd.evaluation.transfer import identity
from rkd.nets.net import Net
from rkd.registry.recipes import toml
from rkd.storage.files import whole_folder
from rkd.storage.runfolder import RunFolder

from .plan import Plan


@dataclass(frozen=True)
class Subject:
    """A net to be evaluated. `options`: its model's; `trained`: its run's settings, for the card; `size`: `parameters`
    and what else is known of a net that is more than its module's weights."""

    name: str
    model: str
    net: Net
    plan: Plan
    options: Mapping[str, Any]
    trained: Mapping[str, Any] = field(default_factory=dict)
    size: Mapping[str, Any] | None = None


def save_evaluation(
    path: Path, subject: Subject, summary: Mapping[str, Any], result: Evaluation, further: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:  # fmt: skip
    """evaluation.json, the images of the gallery, net.json (which net it was), evaluation.toml (the settings, with
    those of `further` figures) and the manifest. Raises RkdError."""
    try:
        with whole_folder(path) as work:
            folder = RunFolder(work)
            folder.write_json(folder.evaluation, summary)
            save_gallery(folder, result)
            folder.write_json(folder.net_card, _card(subject, summary["parameters"]))
            folder.write_text(folder.evaluation_settings, toml(_settings(subject.plan, further)))
            folder.write_json(folder.manifest, manifest)
    except FileExistsError:
        raise RkdError(f"{path} has been filled by others in the meantime; choose another --save folder") from None
    except OSError as error:
        raise RkdError(f"cannot make the folder {path}: {error.strerror}; choose another --save folder") from None


def save_gallery(folder: RunFolder, result: Evaluation) -> None:
    """The images that an evaluation keeps for the report, if any."""
    if result.gallery is not None:
        images = {"clean": result.gallery.clean, "adversarial": result.gallery.adversarial}
        folder.save_weights(folder.examples, images)


def _card(subject: Subject, parameters: int) -> dict[str, Any]:
    net = subject.net
    return {
        "format": 1,
        "name": Path(subject.name).resolve().name,
        "source": subject.name,
        "model": subject.model,
        "options": dict(subject.options),
        "parameters": parameters,
        "weights": identity(net),
        "shape": list(subject.plan.data.shape),
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "trained": dict(subject.trained),
    }


def _settings(plan: Plan, further: Mapping[str, Any]) -> dict[str, Any]:
    settings = plan.config.model_dump(include={"seed", "device", "evaluate"})
    settings["evaluate"] |= further
    settings["data"] = {"name": plan.config.data.name} | plan.config.data.options
    settings["threat"] = asdict(plan.data.threat)
    return settings
