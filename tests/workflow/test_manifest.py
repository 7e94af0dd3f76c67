"""A run's manifest, and what a resumed run is compared by."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import RkdError
from rkd.registry.catalog import Catalog
from rkd.storage.runfolder import RunFolder
from rkd.workflow.manifest import COMPARED, differences, earlier_manifest, environment_of, sizes_of, try_to_write


def test_the_environment(catalog: Catalog) -> None:
    environment = environment_of(catalog, torch.device("cpu"), 2)
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert set(COMPARED) <= set(environment["versions"])
    assert environment["hardware"]["device"] == "cpu" and environment["hardware"]["processes"] == 2
    assert "rkd-toolkit/attacks.pgd" in environment["plugins"]


def manifest() -> dict[str, Any]:
    return {
        "teachers": {"robust": "abc"}, "versions": dict.fromkeys(COMPARED, "1"),
        "hardware": {"cpu_threads": 2, "device": "cpu", "processes": 1},
    }  # fmt: skip


def test_a_run_that_is_the_same_is_continued_without_a_word() -> None:
    assert differences(manifest(), manifest()) == []
    assert differences({}, manifest()) == [], "nothing is known of the earlier part"


def test_other_software_and_hardware_are_told() -> None:
    now = copy.deepcopy(manifest())
    now["versions"]["torch"] = "2"
    now["hardware"]["processes"] = 4
    (note,) = differences(manifest(), now)
    assert "torch 1 -> 2, processes 1 -> 4; it may end with other last bits" in note


def test_other_teachers_are_an_error() -> None:
    now = manifest() | {"teachers": {"robust": "xyz"}}
    with pytest.raises(RkdError, match="the robust teacher's weights have changed"):
        differences(manifest(), now)


def test_what_cannot_be_read_of_an_earlier_manifest_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert earlier_manifest(folder) == {}
    for content, kept in (
        ([1], {}),
        ({"versions": 3, "resumed": 1, "process": "5 on x"}, {"resumed": 1, "process": "5 on x"}),
    ):
        folder.write_json(folder.manifest, content)
        assert earlier_manifest(folder) == kept


def test_a_manifest_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    try_to_write(RunFolder(tmp_path / "nowhere"), {"status": "failed"})


def test_a_net_that_cannot_be_measured_costs_no_run() -> None:
    class Fails(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not here\nnor there")

    assert sizes_of(Fails(), (1, 8, 8)) == {"student": {"error": "RuntimeError: not here"}, "teachers": {}}
    sizes = sizes_of(torch.nn.Flatten(), (1, 8, 8))
    assert sizes["student"]["macs"] == 0 and sizes["student"]["latency"]["median"] >= 0
