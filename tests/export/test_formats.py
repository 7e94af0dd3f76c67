"""What exporters are given, and how their mistakes are told."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from rkd.core.errors import Refused
from rkd.core.types import ThreatModel
from rkd.export.formats import Exported, quiet, reason_of, translated
from rkd.nets.net import Net
from rkd.storage.card import Card
from rkd.testing import tiny_net

CARD = Card("tiny", {}, (1, 8, 8), ("a", "b", "c"), [0.0], [1.0], ThreatModel())


def student(arch: nn.Module) -> Exported:
    return Exported(Net(arch).eval().requires_grad_(False), CARD, torch.rand(4, 1, 8, 8))


@pytest.mark.slow
def test_a_program_takes_any_batch() -> None:
    what = student(tiny_net(classes=3))
    program: Any = what.program().module()
    for count in (1, 2, 5):
        x = torch.rand(count, 1, 8, 8)
        assert torch.allclose(program(x), what.net(x), atol=1e-6)


@pytest.mark.slow
def test_a_net_that_looks_at_values_is_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 3:6]

    with pytest.raises(Refused, match=r"tiny cannot be exported: torch\.export says .*data-dependent"):
        student(Branches()).program()


def test_the_innermost_reason_is_told() -> None:
    def fails() -> None:
        try:
            raise KeyError("aten.odd")
        except KeyError as error:
            raise ValueError("# decorated\n\nsomething went wrong") from error

    with pytest.raises(Refused, match=r"net cannot be exported: tool says KeyError: 'aten\.odd'"):
        translated(fails, "net", "tool")
    assert reason_of(ValueError("# decorated\n\n** telling")) == "ValueError: telling"


def test_quiet_puts_logging_back(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        with quiet():
            logging.getLogger("x").warning("hidden")
            warnings.warn("hidden", stacklevel=1)
        logging.getLogger("x").warning("shown")
    assert [record.message for record in caplog.records] == ["shown"] and not caught
