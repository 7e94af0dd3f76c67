"""The pretend device, for tests that ask for it."""

from __future__ import annotations

import pytest
import torch

from .. import pretend_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if pretend_device.UNSUPPORTED is not None:
        pytest.skip(pretend_device.UNSUPPORTED)
    device = pretend_device.register()
    monkeypatch.setattr(torch, "Event", pretend_device.PretendEvent)
    return device
