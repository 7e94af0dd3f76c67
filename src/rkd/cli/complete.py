"""Completion of values: names of components, recipes and runs.

No plugin is imported for it, unless others are installed than the last time: torch takes seconds.
"""

import re
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def values(*kinds: str, zoo: bool = False, recipes: bool = False, runs: bool = False) -> Completion:
    """Completes components of these kinds, `zoo:NAME`, shipped recipes, and runs by name; files too where recipes or
    runs are meant. What stands before the last comma, plus or equals sign stays."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from rkd.workflow.folders import known_names

        last = re.split(r"[,+=]", incomplete)[-1]
        before = incomplete.removesuffix(last)
        wanted = ("student",) if kinds == ("model",) and before.endswith("+") else kinds
        known = [name for kind in wanted for name in known_names().get(kind, ())]
        if zoo and last.startswith("z"):  # else some fifty names would stand before the runs
            known += [f"zoo:{name}" for name in known_names().get("zoo", ())]
        if recipes:
            from rkd.registry.recipes import recipes as shipped

            known += shipped()
        if runs:
            out = Path(context.params.get("out") or "runs")
            known += sorted({path.parent.name for file in ("config", "evaluation") for path in out.glob(f"*/{file}.*")})
        items = [CompletionItem(before + name) for name in known if name.startswith(last)]
        return items + ([CompletionItem(incomplete, type="file")] if recipes or runs else [])

    return complete
