"""`rkd recipes`: the shipped recipes."""

import click

from rkd.core.errors import UnknownName
from rkd.storage.text import did_you_mean

from ...complete import values
from ...options import App, json_option, pass_app


@click.command("recipes", short_help="List or print the shipped recipes.")
@click.argument("name", required=False, shell_complete=values(recipes=True))
@json_option
@pass_app
def recipes(app: App, name: str | None) -> None:
    """List the shipped recipes, or print one: `rkd recipes NAME > mine.toml`."""
    from rkd.registry.recipes import recipes as shipped

    texts = shipped()
    if name is not None and name not in texts:
        raise UnknownName(f"there is no recipe {name!r}.{did_you_mean(name, texts)} Shipped: {', '.join(texts)}")
    if app.json:
        chosen = texts if name is None else {name: texts[name]}
        app.terminal.json({"recipes": [{"name": n, "summary": _summary(t), "text": t} for n, t in chosen.items()]})
    elif name is not None:
        app.terminal.result(texts[name].rstrip("\n"))
    else:
        app.terminal.table(["recipe", ("what it is", "wrap")], [[n, _summary(text)] for n, text in texts.items()])
        app.terminal.message("\n`rkd recipes NAME` prints one, `rkd run NAME` runs it", hint=True)


def _summary(text: str) -> str:
    """The first line of comment."""
    return next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")), "")
