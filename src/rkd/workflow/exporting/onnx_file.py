"""Evaluating an ONNX file, rkd's or another's: without gradients, or with those of the run that it was made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rkd.core.errors import Refused, RkdError
from rkd.core.traits import traits_of
from rkd.data.dataset import Dataset
from rkd.distributed.ranks import ALONE, Ranks
from rkd.export.measure import StraightThrough, plans_of
from rkd.export.onnx import NORMALIZES_INSIDE, OnnxNet
from rkd.nets.first_look import answers, doubts, first_images
from rkd.nets.net import Net, Outputs
from rkd.nets.sources import TeacherReference
from rkd.profiling.size import latency_of
from rkd.registry.catalog import Catalog
from rkd.registry.config import TeacherConfig, section
from rkd.storage.text import parse_json

from ..evaluate import CHECKED, EvalRequest, curve_attack, evaluate_subject, plan_of_request, subject_of_run
from ..nets import check_fits, settle
from ..plan import Reporter, Silent
from ..saving import Subject
from .export import BLACK_BOX, with_black_box


def evaluate_onnx(
    request: EvalRequest, catalog: Catalog, reporter: Reporter | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """As `rkd.workflow.evaluate.evaluate_request`, of an ONNX file.

    With a `source` the data, ball and attacks are that run's; attacks by gradients get the file's logits with the
    gradients of the run's net (`rkd.export.measure`), and one is made on that net and tried on the file.
    """
    reporter = reporter or Silent()
    reporter.doing(f"reading {request.net} and the data")
    request = replace(request, engine="plain")  # copies of a net are made of its modules
    source = None
    if request.source is not None:
        request = with_black_box(request, request.source)
        source = subject_of_run(replace(request, net=str(request.source)), catalog)
        plan = source.plan
    else:
        attacks = [BLACK_BOX] if request.attacks is None else request.attacks
        # Self-checks by attacks whose outcome is known would need gradients, too.
        request = replace(request, attacks=attacks, checks="quick" if request.checks == "full" else request.checks)
        plan = plan_of_request({}, request, catalog)
        if blind := [name for name, each in plan.evaluation.items() if not traits_of(each.attack).black_box]:
            raise RkdError(
                f"{request.net} gives no gradients, which {', '.join(blind)} needs: take attacks without (square, "
                "noise, transfer), or --source RUN, the run that the file was made of"
            )
    file = OnnxNet(request.net)
    net = _net(file, request, plan.data, bool(plan.evaluation), reporter)
    if source is not None and plan.evaluation:
        plan.evaluation = plans_of(source.net, plan.evaluation, curve_attack(plan.evaluation))
        net = Net(StraightThrough(net, source.net))
    size = {"parameters": file.parameters_in_file(), "bytes": Path(request.net).stat().st_size,
            "latency": latency_of(file, plan.data.shape)}  # fmt: skip
    subject = Subject(request.net, "onnx", net.eval().requires_grad_(False), plan, {}, size=size)
    return evaluate_subject(subject, request, catalog, reporter, ranks)


def _net(file: OnnxNet, request: EvalRequest, data: Dataset, must: bool, reporter: Reporter) -> Net:
    """The file as a net for the data: images in [0, 1] to a logit for each class of the data. Raises RkdError."""
    if not file.takes(data.shape):
        raise Refused(f"{request.net} takes no images {data.shape} of {data.name!r}")
    table = {"classes": request.classes.strip("[]").split(",")} if request.classes else {}
    places = tuple(section(TeacherConfig, table, "--classes").classes) or _places(file, data, reporter)
    net = Net(nn.Sequential(file, Outputs(places)) if places else file)
    check_fits(net, request.net, data)
    choice = request.normalize
    if file.metadata.get("input") == NORMALIZES_INSIDE and choice == "auto":
        choice = "none"
        reporter.message(f"{request.net}: its normalisation is inside, as it says")
    reference = TeacherReference(request.net, "net", "onnx", request.net)
    settled = settle(net, reference, choice, data, "--normalize", must=must)
    for note in settled.notes:
        reporter.message(note)
    said = settled.answers or answers(net, first_images(data.train, "cpu", CHECKED))
    if doubt := doubts(said, request.net, data.classes, None, "", places):
        reporter.warning(doubt)
    return net


def _places(file: OnnxNet, data: Dataset, reporter: Reporter) -> tuple[int, ...]:
    """The outputs in the order of the data's classes, where the file names its own in another order."""
    try:
        named = parse_json(file.metadata.get("classes", "[]"))
    except ValueError:
        return ()
    own = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    places = Outputs.by_name(own, data.classes)
    if places == tuple(range(len(own))):
        return ()
    if places:
        reporter.message(f"{file.path}: its outputs are taken in the order of the data's classes, by name: {places}")
    return places
