"""How names are written."""

from __future__ import annotations

import pytest

from rkd.core.types import attack_name


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("pgd-sat", "PGD-SAT"),
        ("cw-30", "CW-30"),
        ("fab-t", "FAB-T"),
        ("mifgsm", "MI-FGSM"),
        ("autoattack", "AutoAttack"),
        ("autoattack-reference", "AutoAttack-reference"),
        ("noise", "noise"),
        ("somebodys-pgd", "somebodys-PGD"),
        ("file/pgd", "file/pgd"),
    ],
)
def test_names_of_attacks(name: str, written: str) -> None:
    assert attack_name(name) == written
