"""Pages from templates: everything is escaped unless a module of this room made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rkd.core.errors import RkdError
from rkd.core.types import attack_name, fraction
from rkd.storage.files import write_atomic

from . import values
from .draw import Picture


def render_page(template: str, **content: Any) -> str:
    """A page of `templates/` with its content. It needs nothing beside itself: no file, no network, no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (values.percent, values.between, values.duration, values.plain, values.grouped, attack_name)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"fraction": fraction, "radius": values.radius}
    return environment.get_template(template).render(**content)


def write_page(path: Path, html: str) -> None:
    """Raises RkdError."""
    write_atomic(path, html.encode())


def write_pictures(folder: Path, pictures: list[Picture], prefix: str = "") -> list[Path]:
    """Each picture as `PREFIXname.svg` and `PREFIXname.png`. Raises RkdError."""
    if folder.is_symlink():
        raise RkdError(f"{folder} is a link to somewhere else: nothing is written there; remove it first")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RkdError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    written = []
    for picture in pictures:
        for ending, content in (("svg", picture.svg), ("png", picture.png)):
            written.append(folder / f"{prefix}{picture.name}.{ending}")
            write_atomic(written[-1], content)
    return written
