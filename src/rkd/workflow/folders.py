"""Where things lie: the cache, and runs and saved evaluations by path or name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rkd.core.errors import ConfigError, RkdError
from rkd.registry.catalog import load_catalog
from rkd.registry.config import RunConfig, parse
from rkd.registry.hooks import Family
from rkd.registry.plugins import Plugins, installed
from rkd.registry.recipes import read_recipe
from rkd.storage.files import cache_folder as cache_folder
from rkd.storage.files import write_atomic
from rkd.storage.runfolder import RunFolder, safe_name
from rkd.storage.text import command, did_you_mean, parse_json, read_text
from rkd.storage.text import file_of as file_of

if TYPE_CHECKING:
    from rkd.distributed.ranks import Ranks

RUNS = "runs"
"""Folder of new runs unless told otherwise."""


@contextlib.contextmanager
def throwaway(ranks: Ranks | None = None) -> Iterator[Path]:
    """A folder that is removed afterwards, and inside a cache of its own: teachers that are prepared there are not
    found later. What a try cannot spoil, images that were decoded and downloads, is that of the usual cache."""
    first = ranks is None or ranks.first
    folder = Path(tempfile.mkdtemp(prefix="rkd-")) if first else None
    folder = ranks.from_first(folder) if ranks else folder
    assert folder is not None
    usual = os.environ.get("RKD_CACHE")
    if first:
        (folder / "cache").mkdir()
        for shared in (cache_folder().absolute() / name for name in ("decoded", "downloads")):
            with contextlib.suppress(OSError):  # a cache that cannot be written, a system without links
                shared.mkdir(parents=True, exist_ok=True)
                (folder / "cache" / shared.name).symlink_to(shared)
    os.environ["RKD_CACHE"] = str(folder / "cache")
    try:
        yield folder
    finally:
        if usual is None:
            del os.environ["RKD_CACHE"]
        else:
            os.environ["RKD_CACHE"] = usual
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def known_names() -> dict[str, list[str]]:
    """Names of all installed components by kind, examples in place of families: as kept in the cache while the same
    plugins are installed, since to load them takes seconds."""
    found = [[entry.name, entry.value, version] for (_, version), entry in installed(Plugins())]
    path = cache_folder() / "names.json"
    with contextlib.suppress(OSError, RkdError, ValueError, LookupError, TypeError):
        kept = parse_json(read_text(path))
        if kept["installed"] == found:
            return {str(kind): [str(name) for name in names] for kind, names in kept["names"].items()}
    names: dict[str, list[str]] = {}
    for entry in load_catalog().all():
        family = isinstance(entry.component, Family)
        names.setdefault(entry.kind, []).extend(entry.component.examples if family else [entry.name])
    with contextlib.suppress(OSError, RkdError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"installed": found, "names": names}).encode())
    return names


def find_run(text: str, out: str = RUNS, evaluations: bool = False) -> Path:
    """A run by its folder, or by its name under `out`; with `evaluations` also what `rkd eval --save` wrote.

    Raises RkdError.
    """
    places = (Path(text), Path(out) / text)
    names = ("config.toml", "evaluation.json") if evaluations else ("config.toml",)
    for path in places:
        if any((path / name).is_file() for name in names):
            return path
    for path in places:
        if (path / "evaluation.json").is_file():
            raise RkdError(
                f"{path} is not a run's folder: it is an evaluation saved by `rkd eval`, and holds no net. "
                f"`{command('report', path)}` shows it, `rkd compare` puts it beside others"
            )
        if (path / "sweep.toml").is_file():
            raise RkdError(f"{path} is a sweep, not a run's folder; `{command('compare', path)}` shows its runs")
    known = list(dict.fromkeys(path.parent.name for name in names for path in sorted(Path(out).glob(f"*/{name}"))))
    runs = f" Runs in {out}: {', '.join(known)}." if known else ""
    raise RkdError(f"{text} is not a run's folder, nor a name under {out}.{did_you_mean(text, known)}{runs}")


def find_results(text: str, out: str = RUNS) -> list[Path]:
    """A run or a saved evaluation, as `find_run`; of a sweep all runs that it has begun. Raises RkdError."""
    for path in (Path(text), Path(out) / text):
        if (path / "sweep.toml").is_file():
            if not (runs := sorted(config.parent for config in path.glob("*/config.toml"))):
                raise RkdError(f"{path} is a sweep without a run; `{command('sweep', path)}` carries it out")
            return runs
    return [find_run(text, out, evaluations=True)]


def new_run_folder(table: Mapping[str, Any], name: str | None, out: str) -> Path:
    """Where a run goes: `name` in `out`, else a free name made of the recipe's, or of method, student, data and seed.

    Raises RkdError for a name that is no folder's.
    """
    if name is not None:
        return Path(out) / safe_name(name)
    usual = RunConfig()

    def section(key: str) -> Mapping[str, Any]:
        inner = table.get(key)
        return inner if isinstance(inner, Mapping) else {}

    conversions = section("student").get("conversions")
    kept = [k for k, options in conversions.items() if options is not False] if isinstance(conversions, Mapping) else []
    student = "+".join([str(section("student").get("model", usual.student.model)), *kept])
    parts = [section("loss").get("name", usual.loss.name), student, section("data").get("name", usual.data.name)]
    base = str(table.get("name") or f"{'-'.join(map(str, parts))}-s{table.get('seed', usual.seed)}")
    base = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", base).strip("-.")[:120] or "run"
    number = 1
    while (path := Path(out) / (base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return path


def restarted_run(name: str | None, out: str, ranks: Ranks) -> Path | None:
    """The unfinished run that these processes began before torchrun restarted them (`--max-restarts`), if any."""
    if not ranks.attempt:
        return None
    for path in [Path(out) / safe_name(name)] if name is not None else sorted(Path(out).glob("*")):
        folder = RunFolder(path)
        if not folder.config.is_file() or folder.evaluation.is_file():
            continue
        if folder.manifest.is_file() and folder.read_json(folder.manifest).get("launch") == ranks.launch:
            return path
    return None


def new_folder(path: Path, option: str) -> Path:
    """Make an empty folder, unless it is there, as a killed evaluation leaves it. Raises RkdError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or any(path.iterdir()):
            raise FileExistsError
    except FileExistsError:
        raise RkdError(f"{path} exists already; choose another {option} folder") from None
    except OSError as error:
        raise RkdError(f"cannot make the folder {path}: {error.strerror}; choose another {option} folder") from None
    return path


def components_of(folder: RunFolder) -> list[tuple[str, str]]:
    """(kind, name) of every component that a run's configuration, or a saved evaluation, names.

    Raises ConfigError for a folder that rkd did not write.
    """
    if folder.is_evaluation:
        names = _evaluated(folder)
    else:
        config = read_recipe(folder.config)
        parse(config)  # every section has its form from here on
        names = _configured(config)
    return list(dict.fromkeys(names))


def _evaluated(folder: RunFolder) -> Iterator[tuple[str, str]]:
    content = folder.read_json(folder.evaluation)
    content = content if isinstance(content, Mapping) else {}
    names, attacks = (content.get("model"), content.get("data")), content.get("attacks")
    if not all(isinstance(name, str) for name in names) or not isinstance(attacks, Mapping):
        raise ConfigError(f"{folder.evaluation} does not say what was evaluated, as those of `rkd eval --save` do")
    yield from zip(("model", "dataset"), map(str, names), strict=True)
    yield from (("attack", name) for name in attacks)


def _configured(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("loss", "attack", "objective"):
        if kind in config:
            yield from ((kind, name) for name in config[kind]["name"].split("+" if kind == "loss" else None))
    for attack in config.get("attacks", {}).values():
        yield "attack", attack["name"]
    for kind in ("scheduler", "augment", "extension", "tracker"):
        yield from ((kind, name) for name, options in config.get(f"{kind}s", {}).items() if options is not False)
    student = config.get("student", {})
    yield "model", student.get("model", "small-cnn")
    yield from (("student", name) for name, options in student.get("conversions", {}).items() if options is not False)
    for teacher in config.get("teachers", []):
        reference = teacher["reference"]
        if reference.startswith("zoo:"):
            yield "zoo", reference.removeprefix("zoo:")
        elif reference.startswith("hf:"):
            continue
        elif "@" in reference or not os.path.isdir(reference):
            yield "model", reference.partition("@")[0]
    yield "dataset", config.get("data", {}).get("name", "digits")
    yield from (("attack", name) for name in config.get("evaluate", {}).get("attacks", []))
