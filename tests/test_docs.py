"""The docs say what the code does: generated pages are current, names and commands in the README exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import rkd
from rkd.cli import cli
from rkd.core.hooks import RunHooks, hookimpl
from rkd.core.trainer import fit
from rkd.registry.catalog import load_catalog
from rkd.registry.recipes import recipes
from rkd.testing import OneStep, check_attack, tiny_batch, tiny_run
from rkd.training.tracking import Tracker, Tracking

from .core.losses import Adversarial, Clean

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_reference_is_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / "reference.md").read_text() == generate.reference(), "run python docs/generate.py"


def test_the_readme_names_every_method():
    catalog = load_catalog()
    for kind in ("loss", "attack", "objective", "scheduler", "student"):
        for entry in catalog.all():
            if entry.kind == kind and entry.plugin.distribution == "rkd-toolkit":
                assert f"`{entry.name}`" in README, f"the README does not name the {kind} {entry.name}"


def test_recipes_begin_with_what_they_are_and_how_to_run_them():
    for name, text in recipes().items():
        first, second = text.splitlines()[:2]
        assert first.startswith("# ") and len(first) < 130, name
        assert second.startswith(f"# rkd run {name}"), name


def test_every_command_has_help():
    for name in cli.list_commands(None):
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0 and result.output.startswith("Usage:"), name


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_files_and_tests_that_a_page_names_exist(page):
    text = page.read_text()
    missing = [
        name
        for name in re.findall(r"\b(?:tests|benchmarks|examples|src)/[\w/-]+\.py", text)
        if not (ROOT / name).exists()
    ]
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    missing += [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests]
    assert missing == []


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def test_each_hook_of_a_run_has_an_example_that_runs(tmp_path):
    """Every method under a heading of docs/hooks.md is called in a tiny training."""
    text = (ROOT / "docs" / "hooks.md").read_text()
    hooks = {name for name in vars(RunHooks) if name.startswith("rkd_")}
    sections = dict(re.findall(r"^## (rkd_\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == hooks
    whole = {}
    exec(_blocks("hooks.md")[0], whole)
    extensions = {"stamp": whole["rkd_extensions"]()["stamp"]()}
    for hook, section in sections.items():
        (example,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        assert f"def {hook}(self" in example
        scope = {"hookimpl": hookimpl}
        exec("class Example:\n" + textwrap.indent(example, "    "), scope)
        extensions[hook] = scope["Example"]()
    run = tiny_run(Adversarial(), attack=OneStep(), extensions=extensions)
    run.hooks.hook.rkd_notice(run=run, text="hello")
    fit(run)
    assert run.eval_net() is run.student.net
    results = {"student": {"clean": 0.9, "worst_case": 0.5, "attacks": {"pgd": 0.5}}, "report": tmp_path}
    run.hooks.hook.rkd_run_end(run=run, results=results)
    run.hooks.hook.rkd_run_stopped(run=run, error=KeyboardInterrupt())
    assert "weight_norm" in run.state.history[0] and extensions["rkd_notice"].notices == ["hello"]
    assert 0 < float(extensions["rkd_attack_end"].largest) < 0.1
    assert extensions["rkd_run_end"].table == {"clean": 0.9, "worst case": 0.5, "pgd": 0.5}


def test_the_tracker_of_the_docs_runs(tmp_path):
    scope = {}
    exec(_blocks("trackers.md")[0], scope)
    (tmp_path / "config.toml").write_text("seed = 1")
    tracking = Tracking("csv", scope["rkd_trackers"]()["csv"](every=1))
    run = tiny_run(Clean(), extensions={"csv": tracking})
    run.folder = tmp_path
    fit(run)
    lines = (tmp_path / "points.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in lines if ",loss," in line] == [
        "step,1,loss",
        "step,2,loss",
        "epoch,1,loss",
    ]
    assert isinstance(tracking.tracker, Tracker)


def test_the_architecture_names_files_and_functions_that_exist():
    """`file.py` and `file.py:name` or `file.py:Class.name` in docs/architecture.md, below src/rkd."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)*\.py)(?::([\w.]+))?`", text)
    assert len(named) > 50
    missing = []
    for file, name in named:
        path = ROOT / file if file.startswith("tests/") else ROOT / "src" / "rkd" / file
        if not path.is_file():
            missing.append(file)
        elif name and not _defines(ast.parse(path.read_text()), name):
            missing.append(f"{file}:{name}")
    assert missing == []


def _defines(tree, name):
    first, _, rest = name.partition(".")
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)}
        if first in names:
            return not rest or _defines(node, rest)
    return False


@pytest.mark.slow
def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/python.md one after another, on a few images and for one epoch."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    x, y = tiny_batch(64, seed=2).x, torch.arange(64) % 4
    if find_spec("pandas") is None:
        blocks = [block.replace("run.frame", "run.history") for block in blocks]
    names = {"x_train": x[:48], "y_train": y[:48], "x_test": x[48:], "y_test": y[48:]}
    try:
        for block in blocks:
            exec(block.replace("epochs=20", "epochs=1").replace('"pgd-sat"', '"fgsm"'), names)
    finally:
        rkd.forget_registered()
    assert (tmp_path / "small.pt").exists() and len(names["losses"].seen) == 1


@pytest.mark.slow
def test_the_method_and_the_attack_of_the_how_tos_keep_their_promises(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    method, checks = _blocks("howto/method.md")
    (tmp_path / "pull.py").write_text(method)
    tests, attack = {}, {}
    exec(checks, tests)
    tests["test_promises"]()
    tests["test_it_trains"]()
    exec(_blocks("howto/attack.md")[0], attack)
    check_attack(attack["Walk"]())
