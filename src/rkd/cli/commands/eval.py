"""`rkd eval`: clean and attacked accuracy of a run's student, or of a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rkd.core.errors import RkdError

from ..many import among_many, in_processes
from ..shared import RUNS, App, json_option, pass_app, plugin_option, verbosity_options


@click.command("eval", short_help="Evaluate a run or a weights file under attack.")
@click.argument("net", metavar="RUN_OR_WEIGHTS", type=click.Path())
@click.option("--model", metavar="NAME", help="Architecture of a weights file.")
@click.option("--dataset", metavar="NAME", help="Data set; a run's own unless given.")
@click.option("--data-dir", metavar="DIR", help="Where the data set's files are.")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="Attack; repeatable. `none`: clean alone.")
@click.option("--eps", metavar="E", help="Radius, such as 8/255; a run's or the data set's own unless given.")
@click.option(
    "--norm", type=click.Choice(["Linf", "L2"]), help="The ball's norm; another one than the run's needs --eps."
)
@click.option("--limit", type=int, help="Number of test images, the same ones for every net; all unless given.")
@click.option("--rounded", is_flag=True, help="Also the accuracy after rounding adversarial images to 8 bits.")
@click.option(
    "--curve",
    is_flag=False,
    flag_value="usual",
    metavar="EPS,EPS,...",
    help="Robust accuracy against eps; without radii, at parts and multiples of eps.",
)
@click.option(
    "--checks",
    type=click.Choice(["off", "quick", "full"]),
    default="full",
    show_default=True,
    help="Self-checks of the numbers; `full` runs attacks whose outcome is known on a few images.",
)
@click.option("--per-class", is_flag=True, help="Show the accuracy of each class.")
@click.option(
    "--corruptions",
    is_flag=False,
    flag_value="own",
    metavar="DIR",
    help="Accuracy under common corruptions: of a folder such as CIFAR-10-C, else rkd's own.",
)
@click.option(
    "--transfer",
    "others",
    multiple=True,
    metavar="RUN",
    help="Another run: a matrix of who falls to whose adversarial images; repeatable.",
)
@click.option(
    "--save",
    metavar="DIR",
    type=click.Path(),
    help="A new folder for the result, some images and a page; `rkd report` and `rkd compare` take it.",
)
@click.option("--report/--no-report", default=True, help="Write report.html into the --save folder.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "bfloat16", "plain"]),
    help="auto (the default): autoattack searches on a folded and fused copy of the net, and confirms on the net; "
    "bfloat16: in reduced precision besides, where the processor has it; plain: on the net as it is.",
)
@click.option("--batch-size", type=int)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Divide the images among so many processes of this machine. On a CPU small nets gain by it.",
)
@click.option("--seed", type=int, help="Seed of the attacks; a run's own unless given.")
@click.option("--device", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1, ...")
@click.option(
    "--normalize",
    type=click.Choice(["auto", "data", "none"]),
    default="auto",
    show_default=True,
    help="What a weights file's net expects: the data set's mean and std, plain [0, 1] images, or "
    "whichever classifies training images better.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option: attack.NAME.KEY=VALUE, model.KEY=VALUE or data.KEY=VALUE; repeatable.",
)
@json_option
@verbosity_options
@plugin_option
@pass_app
def evaluate(app: App, net: str, **options: Any) -> None:
    """Clean and attacked accuracy of a finished run's student, or of a weights file (with --model and --dataset).

    Attacks, radius and test images are a run's own unless given, so that its numbers come out again.
    """
    from rkd.storage.runfolder import RunFolder

    from ..evaluation import evaluate_net, of_file, of_run
    from ..results import show_evaluation, show_further
    from .report import report_at_end

    path = Path(net)
    is_file = path.is_file()
    if is_file and not (options["model"] and options["dataset"]):
        missing = [f"--{name}" for name in ("model", "dataset") if not options[name]]
        raise RkdError(f"{path} is a weights file, which does not say what it is for: give {' and '.join(missing)}")
    if options["model"] and not path.exists() and not (Path(RUNS) / net).is_dir():
        raise RkdError(f"there is no weights file {path}")
    if not is_file and (options["model"] or options["normalize"] != "auto"):
        raise RkdError(f"--model and --normalize belong to weights files; {path} is none")
    if options["processes"] > 1 and not among_many():
        click.get_current_context().exit(in_processes(app.words, options["processes"]))
    app.meet()
    catalog = app.catalog()
    with app.terminal.guarded():
        subject = of_file(path, options, catalog, app) if is_file else of_run(net, options, catalog)
        result = evaluate_net(subject, options, catalog, app)
    if app.json:
        app.terminal.json(result)
    else:
        app.terminal.result(f"{result['net']}: {result['model']}, {result['parameters']:,} parameters", "bold")
        show_evaluation(result, result["threat"], result["data"], app.terminal)
        show_further(result, options["per_class"], app.terminal)
    if options["save"] and options["report"] and (app.ranks is None or app.ranks.first):
        report_at_end(RunFolder(options["save"]), catalog, app)
