"""`rkd teachers`: those that can be had, and teachers side by side before a student is trained with one of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ..complete import values
from ..options import App, json_option, pass_app, plugin_option, verbosity_options
from ..settings import run_table
from . import run as train

if TYPE_CHECKING:
    from ..terminal import Column, Terminal

OF_THE_RUN = (
    "recipe", "dataset", "data_dir", "download", "student", "attack", "objective", "scheduler", "augment", "extension",
    "batch_size", "grad_accumulation", "seed", "device", "precision", "engine", "sets",
)  # fmt: skip
"""Parameters of `rkd run` that say something about data, teachers or a step of the student."""

BY = {
    "teachers": "no teacher that is robust beyond chance gets right",
    "references": "no reference net gets right",
    "file": "the file lists",
}
"""How the unlearnable images were found."""


@click.group("teachers", short_help="Find, fetch and compare teachers.")
def teachers() -> None:
    """Published teachers that can be had, and teachers compared before a student is trained with one of them."""


@teachers.command("list", short_help="List the published teachers of the catalogue.")
@click.option("--data", metavar="NAME", help="Those for one data set alone, such as cifar10.")
@json_option
@plugin_option
@pass_app
def list_known(app: App, data: str | None) -> None:
    """List the catalogue: what `--teacher zoo:NAME` fetches, then what a person has to get, or rkd has no model for."""
    from rkd.core.errors import RkdError
    from rkd.workflow.choosing.zoo import listed

    with app.terminal.guarded():
        catalog = app.catalog()
        rows, known = listed(catalog, data), sorted({row["data"] for row in listed(catalog)})
    if not rows:
        raise RkdError(f"no teacher in the catalogue is for {data!r}; there are some for {', '.join(known)}")
    if app.json:
        app.terminal.json({"teachers": rows})
    else:
        show_list(rows, app.terminal)


def show_list(rows: list[dict[str, Any]], terminal: Terminal) -> None:
    """A table of what can be had by name, and one of the others."""
    from ..terminal import percent

    def cell(share: float | None) -> str:
        return "?" if share is None else percent(share)

    titles = {True: "--teacher zoo:NAME fetches", False: "by hand, or no model in rkd: rkd teachers show NAME"}
    for ready, title in titles.items():
        lines = [
            [row["name"], row["threat"], cell(row["clean"]), cell(row["autoattack"]), "yes" if row["cached"] else ""]
            for row in rows if row["ready"] is ready
        ]  # fmt: skip
        if lines:
            columns: list[Column] = [("name", "wrap"), "against", ("clean", "right"), ("AA", "right"), "here"]
            terminal.table(columns, lines, title)
            terminal.result()
    terminal.result("clean, AA: % right on the whole test set, and under AutoAttack, as published", wrap=True)


@teachers.command("show", short_help="Show all that is known of a teacher of the catalogue.")
@click.argument("name", shell_complete=values("zoo"))
@json_option
@plugin_option
@pass_app
def show_known(app: App, name: str) -> None:
    """Show what is known of a published teacher, what is not, and what to type."""
    from .lookup.info import show as show_facts

    with app.terminal.guarded():
        item = app.catalog().find("zoo", name.removeprefix("zoo:")).facts()
    if app.json:
        app.terminal.json(item)
    else:
        show_facts(item, app.terminal)


@teachers.command("fetch", short_help="Download teachers into the cache.")
@click.argument("references", metavar="NAME|ADDRESS...", nargs=-1, required=True, shell_complete=values("zoo"))
@json_option
@verbosity_options
@plugin_option
@pass_app
def fetch(app: App, references: tuple[str, ...]) -> None:
    """Download teachers of the catalogue, or files by their address (https://..., hf:OWNER/NAME/FILE), into the cache.

    What is there already is checked. Afterwards runs need no network.
    """
    app.load_torch()
    from rkd.workflow.choosing import zoo

    from ..progress import Display

    with app.terminal.guarded():
        catalog, display = app.catalog(), Display(app.terminal)
        found = [zoo.fetch(reference, catalog, display) for reference in references]
    if app.json:
        app.terminal.json({"files": found})
        return
    for one in found:
        app.terminal.result(f"{one['file']}  SHA-256 {one['sha256']}", wrap=True)
        if "evaluate" in one:
            app.terminal.message(f"to evaluate it: {one['evaluate']}", hint=True)


@teachers.command("rank", short_help="Measure teachers and rank them by a published rule.")
@click.option("--teacher", multiple=True, required=True, metavar="[ROLE=]REF", help="A trained teacher, as in `rkd "
              "run`: MODEL@WEIGHTS, zoo:NAME or a finished run's folder; twice or more.",
              shell_complete=values("model", zoo=True, runs=True))  # fmt: skip
@click.option("--loss", metavar="NAME", help="The student's method; rslad unless given.", shell_complete=values("loss"))
@click.option("--reference", "references", multiple=True, metavar="REF", help="A trained net of the student's "
              "architecture, such as the run of an earlier student: images that all of these get wrong under PGD are "
              "the unlearnable ones, as in the paper (its code takes 60); repeatable.",
              shell_complete=values(runs=True))  # fmt: skip
@click.option("--unlearnable", metavar="FILE", type=click.Path(), help="The unlearnable images: a JSON list of "
              "positions among the training images, or what --json printed.")  # fmt: skip
@click.option("--train-limit", type=click.IntRange(1), metavar="N", help="Training images that are attacked; 10,000, "
              "or all where there are fewer, unless given.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Test images; all unless given.")
@click.option("--steps", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Steps of PGD.")
@click.option("--seconds", type=click.FloatRange(0), default=2.0, show_default=True, help="How long a step of the "
              "student is timed with each teacher, about.")  # fmt: skip
@json_option
@verbosity_options
@plugin_option
@pass_app
def rank(app: App, recipe: str | None, teacher: tuple[str, ...], sets: tuple[str, ...], references: tuple[str, ...],
         unlearnable: str | None, train_limit: int | None, limit: int | None, steps: int, seconds: float,
         **options: Any) -> None:  # fmt: skip
    """Clean and robust accuracy, calibration, entropy and cost of teachers, and their order by a published rule.

    RECIPE and options are those of the `rkd run` that the teacher is for. Nothing is trained or prepared.

    The rule (Lee and Chung, ICML 2026): the teacher with the highest entropy on the robustly unlearnable training
    images gives the most robust student. The paper finds them with nets of the student's architecture, over methods
    and seeds: --reference or --unlearnable. Without either they are the images that all given teachers get wrong
    under PGD: cheaper, and not the paper's set. In rkd's own study on digits the rule did not hold; docs/evaluation.md
    and docs/results/teachers.md say how far it carries.
    """
    app.load_torch()
    from rkd.core.errors import RkdError
    from rkd.workflow.choosing.rank import rank_teachers

    from ..progress import Display

    if references and unlearnable:
        raise RkdError("--reference and --unlearnable both say which images are unlearnable: give one of them")
    catalog = app.catalog()
    table = run_table(recipe, options | {"teacher": teacher}, sets, catalog)
    with app.terminal.guarded():
        found = rank_teachers(
            table, catalog, Display(app.terminal), references=references, unlearnable=unlearnable,
            train_limit=train_limit, limit=limit, steps=steps, seconds=seconds,
        )  # fmt: skip
    if app.json:
        app.terminal.json(found)
    else:
        show(found, app.terminal)
    for warning in found["warnings"]:
        app.terminal.warning(warning)
    if found["refused"]:
        app.terminal.warning(f"no ranking: {found['refused']}")


rank.params = [p for p in train.run.params if p.name in OF_THE_RUN] + rank.params


def show(found: dict[str, Any], terminal: Terminal) -> None:
    """The teachers in their order, and what the order is by."""
    from ..tables import threat_text
    from ..terminal import percent

    attack = f"PGD-{found['steps']}"
    title = (
        f"Teachers for {found['student']} by {found['loss']} on {found['data']}, {threat_text(found['threat'])}: "
        f"{found['test_images']:,} test images, {found['train_images']:,} training images; in %"
    )
    names = ["rank", "entropy", "clean", attack, "train clean", f"train {attack}", "ECE", f"ECE {attack}", "ms a step"]
    columns: list[Column] = ["teacher", *((name, "right") for name in names)]
    rows = []
    for one in sorted(found["teachers"], key=lambda one: one["rank"] or math.inf):
        shares = ("clean", "robust", "train_clean", "train_robust", "ece", "ece_robust")
        entropy = "" if one["entropy"] is None else f"{one['entropy']:.3f} ± {one['entropy_error']:.3f}"
        rows.append([one["teacher"], str(one["rank"] or "-"), entropy, *(percent(one[share]) for share in shares),
                     f"{1000 * one['step_seconds']:,.1f}"])  # fmt: skip
    terminal.table(columns, rows, title)
    terminal.result()
    where = found["unlearnable"]
    terminal.result(
        f"entropy: mean and standard error, in nats, on {where['images']:,} of {where['of']:,} training images, those "
        f"that {BY[where['by']]}",
        wrap=True,
    )  # fmt: skip
    if found["ranking"]:
        terminal.result(
            "rank: by the rule that the highest entropy there gives the most robust student (arXiv 2605.21999); on "
            "digits it did not hold (docs/results/teachers.md)",
            wrap=True,
        )
