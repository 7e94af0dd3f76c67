"""Every command line of README.md, CONTRIBUTING.md and docs/ is understood: options exist, values have their form, and
of runs the data (tiny), teachers, plugin files and settings fit together. The slow tests carry out what is cheap.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from rkd.cli import cli
from rkd.cli.options import App
from rkd.cli.settings import run_table
from rkd.registry.catalog import Catalog, load_catalog
from rkd.workflow.resolve import resolve
from rkd.workflow.sweeps.sweep import begin, read_sweep

from .cli.conftest import TINY, invoke
from .plugins.test_datasets import idx, some, write_cifar, write_mnist

ROOT = Path(__file__).parent.parent
GENERATED = ("methods", "attacks", "models", "commands.md")
"""Written by docs/generate.py when the site is built."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if page.relative_to(ROOT / "docs").parts[0] not in GENERATED
]

NOT_INSTALLED = {"hello": "hello.py", "mine": "rkd-mine/rkd_mine.py"}
"""Losses of packages that the pages install, and a file in place of each."""

Words = list[str]


def fences(page: Path, *languages: str) -> Iterator[str]:
    for language, body in re.findall(r"^(?:`{3,})(\w*)\n(.*?)^`{3,}$", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield body


def commands(page: Path) -> Iterator[Words]:
    """The words after `rkd` of each command in a page's blocks of commands; for `...` those of the command before."""
    for body in fences(page, "", "bash", "console"):
        before: Words = []
        for line in body.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                command = re.sub(r"\s#\s.*", "", part.removeprefix("$ ").strip())
                if not re.match(r"(\w+=\S* )*(rkd [a-z-]|torchrun .* -m rkd )", command) or "$" in command:
                    continue
                words = shlex.split(command)
                words = words[words.index("rkd") + 1 :]
                for loss, file in NOT_INSTALLED.items():
                    if loss in words and words[0] == "run" and "--plugin" not in words:
                        words += ["--plugin", file]
                if "..." in words:
                    at = words.index("...")
                    words[at : at + 1] = before[at:]
                yield words
                before = words


LINES = {tuple(words): page.relative_to(ROOT).as_posix() for page in PAGES for words in commands(page)}
"""Each command once, with a page that has it."""
CHEAP = ("compare", "eval", "report", "sweep")


def lines(*names: str) -> pytest.MarkDecorator:
    """Parametrizes a test with all commands, or with those of these names."""
    chosen = [words for words in LINES if not names or words[0] in names]
    return pytest.mark.parametrize("words", chosen, ids=[f"{LINES[words]}: {' '.join(words)}" for words in chosen])


def parsed(words: Words) -> click.Context:
    """The context of the command that the words name: its options exist, and their values have the right form."""
    context = click.Context(cli, info_name="rkd", obj=App())
    while isinstance(context.command, click.Group):
        name, *words = words
        command = context.command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
        else:
            context = command.make_context(name, words, parent=context)
    return context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds everything that the pages name."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RKD_CACHE", str(folder / "cache"))
        said = invoke("run", "--loss", "pgd-at", *TINY, "--evaluate", "pgd-sat,cw", "--name", "my-run", "-q")
        assert said.exit_code == 0, said.stderr
        for other in (
            "a",
            "b",
            "student-s0",
            "student-s1",
            "mtard-anl-small-cnn-digits-s0",
            "iad-small-cnn-digits-s0",
            "teacher",
            "phone",
            "alone",
        ):
            shutil.copytree("runs/my-run", f"runs/{other}")
        Path("benchmarks").mkdir()
        shutil.copy(ROOT / "benchmarks" / "methods-digits.toml", "benchmarks")
        Path("sweep.toml").write_text('[set]\nloss = "pgd-at"\n[grid]\nseed = "0..2"\n')
        for sweep in ("first", "study", "MY-SWEEP"):
            begin(read_sweep(Path("sweep.toml")), Path("runs") / sweep)
            for point in ("seed=0", "loss=rslad_seed=0", "loss=pgd-at_seed=0"):
                shutil.copytree("runs/my-run", f"runs/{sweep}/{point}")
        for saved in ("rslad-aa", "pgd-at-aa"):
            shutil.copytree("runs/my-run", saved)
        write_mnist(Path("DATA"))
        write_cifar(Path("DATA"), patch)
        write_cifar(Path("DATA"), patch, "CIFAR100")
        for prefix in ("train", "t10k"):  # more of them than the pages evaluate
            images, labels = some(1000, 28, 28)
            Path(f"DATA/MNIST/raw/{prefix}-images-idx3-ubyte").write_bytes(idx(images))
            Path(f"DATA/MNIST/raw/{prefix}-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
        for folder_of_images in ("PHOTOS", "CIFAR"):
            write_photos(Path(folder_of_images), 250)
        images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
        images[:, labels] = 255
        np.savez("DATA.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        for page in PAGES:
            for body in fences(page, "python"):
                if name := re.match(r'"""(\w+): ', body):
                    Path(f"{name[1].lower()}.py").write_text(body)
        shutil.copy(ROOT / "examples" / "rkd-hello" / "rkd_hello.py", "hello.py")
        assert invoke("plugins", "new", "mine", "--kind", "loss").exit_code == 0
        for file in ("trades.pt", "weights.pt"):
            Path(file).touch()
        yield folder


def write_photos(root: Path, tests: int) -> None:
    """Six training images of each of two classes, and so many for the test."""
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(tests if part == "test" else 6):
                pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


@lines()
def test_is_understood(words: tuple[str, ...], place: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    understood(list(words), catalog)


@pytest.mark.slow
@lines(*CHEAP)
def test_is_carried_out(words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    name, rest = words[0], list(words)
    if name == "eval" and Path(words[1]).parts[0] == "runs" and not words[1].endswith(".onnx"):
        rest = without(rest, "--processes", "--save", "--limit", "--checks", "--corruptions")
        carried_out([*rest, *weak(rest)])
    elif name == "sweep":
        carried_out([*without(rest, "--submit", "--partition", "--minutes"), "--dry-run"])
    elif name != "eval":
        carried_out(rest)


def understood(words: Words, catalog: Catalog) -> None:
    if words[0].startswith("-") or words[0] in ("list-plugins", "info", "cite", "recipes"):
        carried_out(words)
        return
    context = parsed(words)
    options, name = context.params, context.info_name
    files = context.ensure_object(App).files
    if name == "submit":
        understood(words[words.index("--") + 1 :], catalog)
    elif name in ("run", "bench"):
        check_run(options, load_catalog(files) if files else catalog)
    elif name == "rank":
        for teacher in options["teacher"]:
            check_run({**options, "teacher": (teacher,)}, catalog)


def check_run(options: dict[str, Any], catalog: Catalog) -> None:
    """The settings make a plan: components, options, data, radius and teachers fit together."""
    if options.get("resume"):
        assert Path(options["resume"]).is_dir()
        return
    resolve(run_table(options["recipe"], options, options["sets"], catalog), catalog)


def weak(words: Words) -> Words:
    """Makes an evaluation a matter of a second."""
    settings = {"autoattack": ("steps", "queries"), "square": ("queries",), "pgd": ("steps",), "cw": ("steps",)}
    wanted = {key for name, keys in settings.items() for key in keys if name in " ".join(words)}
    limits = ["--limit", "8", "--checks", "off"]
    return limits + [word for key in sorted(wanted) for word in ("--set", f"attack.{key}=2")]


def without(words: Words, *options: str) -> Words:
    """The words but for some options and their values."""
    kept = list(words)
    for option in options:
        if option in kept:
            at = kept.index(option)
            takes = at + 1 < len(kept) and not kept[at + 1].startswith("-")
            del kept[at : at + 1 + takes]
    return kept


def carried_out(words: Words) -> None:
    if at := [i for i, word in enumerate(words) if "*" in word]:
        words = [*words[: at[0]], *map(str, sorted(Path().glob(words[at[0]]))), *words[at[0] + 1 :]]
    said = invoke(*words)
    assert said.exit_code == 0, said.stderr
