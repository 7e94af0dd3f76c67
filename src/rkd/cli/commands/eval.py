"""`rkd eval`: clean and attacked accuracy of a run's student, of a weights file or of an ONNX file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rkd.core.errors import ConfigError, RkdError

from ..complete import values
from ..options import App, json_option, pass_app, plugin_option, split_attacks, verbosity_options
from ..processes import in_processes, is_one_of_several


@click.command("eval", short_help="Evaluate a run or a weights file under attack.")
@click.argument("net", metavar="RUN_OR_WEIGHTS", type=click.Path(), shell_complete=values(zoo=True, runs=True))
@click.option("--model", metavar="NAME", help="Architecture of a weights file.", shell_complete=values("model"))
@click.option("--dataset", metavar="NAME", help="Data set; a run's own unless given.", shell_complete=values("dataset"))
@click.option("--data-dir", metavar="DIR", help="Where the data set's files are.")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="Attack; repeatable. `none`: clean alone.",
              shell_complete=values("attack"))  # fmt: skip
@click.option("--eps", metavar="E", help="Radius, such as 8/255; a run's or the data set's own unless given.")
@click.option("--norm", type=click.Choice(["Linf", "L2", "L1", "L0", "L0-values"]), help="The ball's norm; another "
              "one than the run's needs --eps.")  # fmt: skip
@click.option("--limit", type=int, help="Number of test images, the same ones for every net; all unless given.")
@click.option("--rounded", is_flag=True, help="Also the accuracy after rounding adversarial images to 8 bits.")
@click.option("--curve", is_flag=False, flag_value="usual", metavar="EPS,EPS,...", help="Robust accuracy against eps; "
              "without radii, at parts and multiples of eps.")  # fmt: skip
@click.option("--checks", type=click.Choice(["off", "quick", "full"]), default="full", show_default=True,
              help="Self-checks of the numbers; `full` runs attacks whose outcome is known on a few "
              "images.")  # fmt: skip
@click.option("--per-class", is_flag=True, help="Show the accuracy of each class.")
@click.option("--corruptions", is_flag=False, flag_value="own", metavar="DIR", help="Accuracy under common "
              "corruptions: of a folder such as CIFAR-10-C, else rkd's own.")  # fmt: skip
@click.option("--transfer", "others", multiple=True, metavar="RUN", help="Another run: a matrix of who falls to whose "
              "adversarial images; repeatable.", shell_complete=values(runs=True))  # fmt: skip
@click.option("--source", metavar="RUN", shell_complete=values(runs=True), help="The run that an ONNX file was made "
              "of, or one like it: lends gradients, and images to transfer.")  # fmt: skip
@click.option("--save", metavar="DIR", type=click.Path(), help="A new folder for the result, some images and a page; "
              "`rkd report` and `rkd compare` take it.")  # fmt: skip
@click.option("--report/--no-report", default=True, help="Write report.html into the --save folder.")
@click.option("--engine", type=click.Choice(["auto", "bfloat16", "plain"]), help="auto (the default): autoattack "
              "searches on a folded and fused copy of the net, and confirms on the net; bfloat16: in reduced "
              "precision besides, where the processor has it; plain: on the net as it is.")  # fmt: skip
@click.option("--batch-size", type=int)
@click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Divide the images among "
              "so many processes of this machine. On a CPU small nets gain by it.")  # fmt: skip
@click.option("--seed", type=int, help="Seed of the attacks; a run's own unless given.")
@click.option("--device", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1, ...")
@click.option("--normalize", metavar="HOW", default="auto", show_default=True, help="What a weights file's net "
              "expects: data (the data set's mean and std), none (images in [0, 1]), half, cifar10, cifar100, "
              "imagenet, or MEAN,.../STD,...; auto: what the file says, else whichever of data and none is clearly "
              "better on training images.")  # fmt: skip
@click.option("--strip", metavar="PREFIX", default="", help="Beginning of the names in a weights file that is taken "
              "off; FILE#KEY chooses one of several nets in it.")  # fmt: skip
@click.option("--classes", metavar="N,N,...", help="For each class of the data the output of a weights file's net "
              "for it, where it has more, or another order.")  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting, as in recipes: "
              "attack.KEY=VALUE, attack.NAME.KEY=VALUE, data.KEY=VALUE; model.KEY=VALUE; repeatable.")  # fmt: skip
@json_option
@verbosity_options
@plugin_option
@pass_app
def evaluate(
    app: App, net: str, sets: Sequence[str], processes: int, per_class: bool, report: bool, **options: Any
) -> None:
    """Clean and attacked accuracy of a finished run's student, of a weights file or its address (with --model and
    --dataset), of a published teacher (zoo:NAME), or of an ONNX file (with --dataset, or with --source).

    Attacks, radius and test images are a run's own unless given, so that its numbers come out again.
    """
    app.load_torch()
    from rkd.registry.normalization import known_normalization
    from rkd.workflow.choosing.zoo import is_published
    from rkd.workflow.evaluate import EvalRequest, evaluate_request
    from rkd.workflow.exporting.onnx_file import evaluate_onnx
    from rkd.workflow.folders import RUNS, RunFolder, file_of

    from ..progress import Display
    from ..signals import Interrupts
    from ..tables import show_evaluation, show_further
    from .report import report_at_end

    path = file_of(net)
    is_file, is_onnx = path.is_file() or is_published(net), path.suffix == ".onnx"
    if options["source"] and not (is_file and is_onnx):
        raise RkdError(f"--source belongs to ONNX files; {path} is none")
    if is_onnx:
        check_onnx(path, options)
    elif net.startswith("zoo:"):
        if options["model"]:
            raise RkdError(f"--model belongs to weights files; the catalogue says what {net} is")
    elif is_file and not (options["model"] and options["dataset"]):
        missing = [f"--{name}" for name in ("model", "dataset") if not options[name]]
        file = path if path.is_file() else net
        raise RkdError(f"{file} is a weights file, which does not say what it is for: give {' and '.join(missing)}")
    if options["model"] and not (is_file or path.exists()) and not (Path(RUNS) / net).is_dir():
        raise RkdError(f"there is no weights file {path}")
    try:
        known_normalization(options["normalize"])
    except ValueError as error:
        raise RkdError(f"--normalize: {error}") from None
    if not is_file and (options["model"] or options["normalize"] != "auto" or options["strip"] or options["classes"]):
        raise RkdError(f"--model, --normalize, --strip and --classes belong to weights files; {path} is none")
    if processes > 1 and not is_one_of_several():
        click.get_current_context().exit(in_processes(app.words, processes))
    ranks = app.meet()
    catalog = app.catalog()
    options["attacks"] = split_attacks("--attack", options["attacks"])
    settings = eval_settings(sets)
    request = EvalRequest(net, **options, settings=settings, command=("rkd", *app.words))
    interrupts = Interrupts()
    with interrupts.noted(), app.terminal.guarded():
        evaluated = evaluate_onnx if is_onnx else evaluate_request
        result = evaluated(request, catalog, Display(app.terminal, interrupts), ranks)
    app.leave()
    if not app.speaks:
        return
    if app.json:
        app.terminal.json(result)
    else:
        app.terminal.result(f"{result['net']}: {result['model']}, {result['parameters']:,} parameters", "bold")
        show_evaluation(result, result["threat"], result["data"], app.terminal)
        show_further(result, per_class, app.terminal)
    if options["save"] and report:
        for line in report_at_end(RunFolder(options["save"]), catalog, app)[1]:
            app.terminal.message(line)


def check_onnx(path: Path, options: Mapping[str, Any]) -> None:
    """Raise RkdError for an ONNX file that is not there, lacks data, or is given what belongs to weights files."""
    if not path.is_file():
        raise RkdError(f"there is no file {path}")
    if not (options["dataset"] or options["source"]):
        raise RkdError(f"{path} does not say what it is for: give --dataset, or --source RUN for a run's data")
    if wrong := [f"--{name}" for name in ("model", "strip") if options[name]]:
        raise RkdError(f"{' and '.join(wrong)} belong to weights files; {path} holds its architecture")


def eval_settings(sets: Sequence[str]) -> dict[str, Any]:
    """The tables of `--set`: `evaluate` and `data` as in recipes, `model` of a weights file, and `attack`, whose
    options are by an attack's name or for all that have them. Raises ConfigError."""
    from rkd.registry.recipes import assignments

    table = assignments(sets)
    if wrong := sorted(table.keys() - {"evaluate", "model", "data", "attack"}):
        known = "evaluate.options.NAME.KEY, model.KEY and data.KEY, and attack.KEY or attack.NAME.KEY"
        raise ConfigError([f"--set {key}: here there is {known}" for key in wrong])
    if single := [key for key, value in table.items() if not isinstance(value, Mapping)]:
        raise ConfigError([f"--set {key}=...: expected --set {key}.KEY=VALUE" for key in single])
    return table
