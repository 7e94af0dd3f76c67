"""What a process knows of components."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import RkdError, UnknownName
from rkd.registry.session import Session


class Mine:
    """A loss."""

    def __call__(self, step: object) -> dict[str, object]:
        return {}


class Other(Mine):
    """Another one."""


def test_registered_names_live_in_their_session() -> None:
    session, elsewhere = Session(), Session()
    session.register("loss", "mine", Mine)
    assert session.catalog().find("loss", "mine").component is Mine
    assert session.catalog().find("loss", "python/mine").component is Mine
    with pytest.raises(UnknownName):
        elsewhere.catalog().find("loss", "mine")
    session.register("loss", "mine", Other)
    assert session.catalog().find("loss", "mine").component is Other, "a cell that is run again"
    session.forget()
    with pytest.raises(UnknownName):
        session.catalog().find("loss", "mine")


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [("los", "mine", "there is no kind 'los'"), ("loss", "trades", "rkd-toolkit provides a loss 'trades' already"),
     ("loss", "object:mine", "what begins with object:"), ("loss", " mine", "is no name"), ("loss", 3, "must name")],
)  # fmt: skip
def test_what_cannot_be_registered(kind: str, name: str, problem: str) -> None:
    with pytest.raises(RkdError, match=problem):
        Session().register(kind, name, Mine)


def test_files_are_read_anew(tmp_path: Path) -> None:
    file, session = tmp_path / "mine.py", Session()
    code = "from rkd.plugin import hookimpl\n@hookimpl\ndef rkd_losses():\n    return {'NAME': dict}\n"
    for name in ("one", "two"):
        file.write_text(code.replace("NAME", f"{name}-loss"))
        assert f"{name}-loss" in session.catalog([file]).names("loss")
    file.write_text("1 / 0")
    with pytest.raises(RkdError, match=r"the plugin file .* could not be loaded: ZeroDivisionError"):
        session.catalog([file])
