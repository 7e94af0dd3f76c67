"""Teachers with timm's own weights: `timm:NAME.TAG`, such as `timm:resnet50.a1_in1k`.

The tag of a name says which weights (without one, `timm:NAME` is an architecture that is trained first). timm fetches
them from the Hugging Face hub and keeps them in its cache there. The net normalises as these weights want it, and has
the classes that they have, mostly ImageNet's: `classes` picks those of other data.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rkd.plugin import Dataset, Net, Refused, TeacherReference, hookimpl

NOT_ROBUST = ("adv_in1k", "ap_in1k")
"""Tags of weights from AdvProp and from training against a fixed ensemble: better on clean and corrupted images."""


@dataclass
class TimmTeacher:
    """timm:NAME.TAG: an architecture of timm with the weights of that tag, as timm's authors trained them."""

    def __call__(self, reference: TeacherReference, build: Callable[..., Net], data: Dataset) -> Net | None:
        name = (reference.model or "").removeprefix("timm:")
        if reference.weights or name == reference.model or "." not in name:
            return None
        import timm  # takes seconds

        try:
            config = timm.get_pretrained_cfg(name)
        except RuntimeError:
            config = None  # the model says what is wrong with a name
        net = build(reference.model, {**reference.options, "pretrained": True}, config.num_classes if config else None)
        assert config is not None, "the model refuses unknown weights"
        if len(config.mean) != data.shape[0]:
            raise Refused(
                f"{reference.model}: timm's weights are for images of {len(config.mean)} channels, and those of "
                f"{data.name!r} have {data.shape[0]}"
            )
        found = Net(net.arch, config.mean, config.std)
        notes = [f"{reference.model}: timm's weights, for {config.num_classes} classes, normalised as they want it"]
        if name.endswith(NOT_ROBUST) and reference.role == "robust":
            notes.append(
                f"{reference.model}: trained on adversarial images of a kind that makes no net robust to AutoAttack"
            )
        found.notes = tuple(notes)
        return found


@hookimpl
def rkd_teachers():
    return {"timm-weights": TimmTeacher}
