"""The processor's name."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from rkd.profiling import machine


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 85\nmodel name\t: A CPU @ 2.50GHz\nmodel name\t: Another\n", "A CPU @ 2.50GHz"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", None),
        (None, None),
    ],
    ids=["named", "not named", "no such file"],
)
def test_the_processors_name(
    content: str | None, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(machine, "CPUINFO", file)
    assert machine.cpu_name() == (name or platform.machine())


def test_this_machine_has_a_name() -> None:
    assert machine.cpu_name().strip()
