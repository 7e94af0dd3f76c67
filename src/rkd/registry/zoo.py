"""Teachers that can be had: what is known of each, and where it is. Catalogues are TOML files, a table a teacher.

    [wang2023-cifar10-linf-wrn28-10]
    summary = "Wang et al. 2023, WRN-28-10 on 1M generated images"
    data = "cifar10"
    threat = "Linf 8/255"
    architecture = "WRN-28-10 (SiLU)"
    model = "dm-wrn28-10"
    url = "https://HOST/PATH/w.pt"
    clean = 0.9244

What a table leaves out is not known. Nothing here is fetched: `rkd.storage.remote` does that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rkd.core.errors import ConfigError
from rkd.storage.text import parse_toml, read_text

TOLERANCE = 0.01
"""By how much a clean accuracy on the whole test set may differ from the published one: libraries decode, resize and
round a little differently."""


class ZooTeacher(BaseModel):
    """A trained net that its authors published. Accuracies are shares, on the whole test set of `data`.

    `data`: rkd's name of the data set, or the authors' where rkd has none; `threat`: what it was trained to withstand;
    `architecture`: as its authors call it; `model`, `options`, `strip`, `normalize`: how rkd builds it and what it
    expects, as in a teacher's table; no `model`: rkd has no such architecture. `url`: of the file, https or hf:;
    without one, `page` is where a person gets it. `key`: which of the sets of weights in the file. `source`: where
    these facts are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str
    data: str
    role: Literal["robust", "clean"] = "robust"
    threat: str = ""
    architecture: str
    model: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    strip: str = ""
    normalize: str = "auto"
    url: str = ""
    page: str = ""
    key: str = ""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    size: int | None = Field(default=None, gt=0)
    licence: str = ""
    clean: float | None = Field(default=None, gt=0, le=1)
    autoattack: float | None = Field(default=None, ge=0, le=1)
    tolerance: float = Field(default=TOLERANCE, gt=0, lt=1)
    paper: str = ""
    source: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _somewhere(self) -> "ZooTeacher":
        if not (self.url or self.page):
            raise ValueError("url or page must say where it is")
        if self.url and not self.url.startswith(("https://", "hf:", "http://127.0.0.1:", "http://localhost:")):
            raise ValueError("url must begin with https:// or hf:")
        if "#" in self.url:
            raise ValueError("url has a part behind #: that is key, or sha256")
        return self

    @property
    def address(self) -> str:
        """`url` with key and hash, as in `MODEL@ADDRESS`."""
        more = "&".join(filter(None, (self.key, f"sha256={self.sha256}" if self.sha256 else "")))
        return f"{self.url}#{more}" if more else self.url

    @property
    def host(self) -> str:
        """Who has it."""
        return "huggingface.co" if self.url.startswith("hf:") else urlsplit(self.url or self.page).netloc

    @property
    def accuracies(self) -> str:
        """The published ones, in words."""
        return f"{_share(self.clean)} clean, {_share(self.autoattack)} under AutoAttack"

    def how(self, name: str) -> str:
        """What to type to have it teach."""
        if self.url and self.model:
            return f"--teacher {self.role}=zoo:{name}"
        if self.model:
            return f"--teacher {self.role}={self.model}@FILE"
        return ""

    def problem(self, name: str) -> str:
        """Why it cannot be had by its name, and what can be done; empty where it can."""
        if not self.model:
            return (
                f"zoo:{name} is a {self.architecture}, for which rkd has no model; a plugin (hook rkd_models) may "
                f"bring one. Its weights: {self.url or self.page}"
            )
        if not self.url:
            return (
                f"zoo:{name} cannot be fetched from here: {self.host} gives it to people alone. Get the file from "
                f"{self.page} and type {self.how(name)}"
            )
        return ""

    def facts(self, name: str) -> dict[str, str]:
        """All that is known, and what is not, in words."""
        found = {
            "role": self.role,
            "data": self.data,
            "trained against": self.threat or ("nothing" if self.role == "clean" else "unknown"),
            "architecture": f"{self.architecture} ({f'rkd: {self.model}' if self.model else 'rkd has no such model'})",
            "clean accuracy": _share(self.clean)
            + (f" (rkd allows {100 * self.tolerance:.3g} % more or less)" if self.clean is not None else ""),
            "under AutoAttack": _share(self.autoattack),
            "normalisation": {"auto": "as the file says, or compared"}.get(self.normalize, self.normalize),
            "address": self.url or "none that a program may fetch",
            "page": self.page,
            "set of weights": self.key,
            "size": "unknown" if self.size is None else f"{self.size:,} bytes",
            "SHA-256": self.sha256 or f"unknown{': what is fetched first is told, and kept to' if self.url else ''}",
            "licence": self.licence or "unknown: ask its authors",
            "paper": self.paper,
            "facts from": self.source,
            "note": self.note,
            "to type": self.how(name),
        }
        return {name: text for name, text in found.items() if text}


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.4g} %"


def read_zoo(path: Path | str) -> dict[str, ZooTeacher]:
    """The teachers of a catalogue, by name: what `rkd_zoo` returns. Raises ConfigError."""
    try:
        return zoo(parse_toml(read_text(Path(path))))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None


def zoo(tables: Mapping[str, Any]) -> dict[str, ZooTeacher]:
    """Tables by name to teachers by name. Raises ConfigError that names each table and field that is wrong."""
    teachers, problems = {}, []
    for name, table in tables.items():
        try:
            teachers[name] = ZooTeacher.model_validate(table)
        except ValidationError as error:
            for one in error.errors():
                where = ".".join(map(str, (name, *one["loc"])))
                problems.append(f"{where}: {one['msg'].removeprefix('Value error, ')}")
    if problems:
        raise ConfigError(problems)
    return teachers
