"""What every test of the kit needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def says(check: Callable[[], None], word: str) -> None:
    with pytest.raises(AssertionError) as error:
        check()
    assert word in str(error.value)
