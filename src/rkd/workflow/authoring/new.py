"""`rkd plugins new`: a package with one plugin, its test, and what a package needs besides."""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from rkd import __version__
from rkd.core.errors import RkdError
from rkd.storage.files import whole_folder
from rkd.storage.text import did_you_mean, shown

LICENCE = "MIT"

USES = {
    "loss": "rkd run --loss __NAME__",
    "attack": "rkd run --loss trades --attack __NAME__",
    "objective": "rkd run --loss trades --attack pgd --objective __NAME__",
    "scheduler": "rkd run --loss rslad --scheduler __NAME__",
    "model": "rkd run --student __NAME__",
    "student": "rkd run --student small-cnn+__NAME__",
    "teacher": "rkd run --teacher robust=__NAME__:MODEL",
    "dataset": "rkd run --dataset __NAME__",
    "augment": "rkd run --augment __NAME__",
    "corruption": "rkd eval RUN --corruptions",
    "extension": "rkd run --with __NAME__",
    "exporter": "rkd export RUN --to __NAME__",
    "tracker": "rkd run --with __NAME__",
    "zoo": "rkd teachers show __NAME__-resnet18",
}
"""Kind -> a command that uses what the template registers. A further kind is a line here, and two files `KIND.plugin`
and `KIND.test` among the templates."""


def new_plugin(name: str, kind: str, place: Path, licence: str = LICENCE) -> Path:
    """Write the package of a plugin called `name` into a new folder in `place`. Returns that folder.

    Raises RkdError for a name that is none, a kind without a template, or a folder that exists.
    """
    if kind not in USES:
        raise RkdError(
            f"there is no template for the kind {kind!r}.{did_you_mean(kind, USES)} Kinds: {', '.join(USES)}"
        )
    short = name.removeprefix("rkd-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short) or len(short) > 40:
        raise RkdError(f"{shown(name)} is no name for a plugin: small letters, digits and hyphens, such as my-{kind}")
    if not licence or not licence.isprintable() or '"' in licence:
        raise RkdError(f"--licence {shown(licence)}: expected an SPDX name, such as MIT or Apache-2.0")
    words = {
        "__NAME__": short,
        "__KIND__": kind,
        "__CLASS__": "".join(word.capitalize() for word in short.split("-")),
        "__FUNCTION__": short.replace("-", "_"),
        "__DISTRIBUTION__": f"rkd-{short}",
        "__MODULE__": f"rkd_{short.replace('-', '_')}",
        "__ENTRY__": short,
        "__DESCRIPTION__": f"The {kind} {short} for rkd",
        "__LICENCE__": licence,
        "__VERSION__": ".".join(__version__.split(".")[:2]),
        "__SHOWN__": f"{short}-resnet18" if kind == "zoo" else short,
        "__USE__": USES[kind],
    }
    folder = place / words["__DISTRIBUTION__"]
    if folder.exists():
        raise RkdError(f"{folder} exists already: choose another name, or another place with --out DIR")
    module = words["__MODULE__"]
    files = {
        f"{module}.py": f"{kind}.plugin",
        f"tests/test_{module}.py": f"{kind}.test",
        "pyproject.toml": "pyproject.toml.package",
        "README.md": "README.md.package",
        ".github/workflows/test.yml": "test.yml.package",
        ".gitignore": "gitignore.package",
    }
    try:
        with whole_folder(folder) as work:
            for file, template in files.items():
                target = work / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(filled(template, words), encoding="utf-8")
    except OSError as error:
        raise RkdError(
            f"cannot write {folder}: {error.strerror or error}; choose another place with --out DIR"
        ) from None
    return folder


def filled(template: str, words: Mapping[str, str]) -> str:
    """The text of a template with its words put in; a word may hold others."""
    text = (resources.files("rkd") / "templates" / template).read_text(encoding="utf-8")
    for word, value in reversed(list(words.items())):
        text = text.replace(word, value)
    return text
