"""The inputs of benchmarks/fuzz.py, a few hundred: each loads or gives one clear error, and touches nothing else.

The big count and its table: docs/reliability.md.
"""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rkd.core.errors import RkdError

FILE = Path(__file__).parents[1] / "benchmarks" / "fuzz_inputs" / "__init__.py"
SLOW = {"report": 3, "command line": 6, "saved evaluation": 5, "commands on it": 8, "sweep folder": 8}


def _inputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_inputs", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_inputs"] = module
    spec.loader.exec_module(module)
    return module


INPUTS = _inputs()


def seen(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size) for path in root.rglob("*") if root / "input" not in path.parents)


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS.READERS)
def test_every_input_loads_or_gives_one_error(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)

    @settings(max_examples=SLOW.get(name, 20), deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        root = tmp_path_factory.mktemp("fuzz")
        (root / "outside").mkdir()
        (root / "outside" / "secret.toml").write_text('secret = "not for other eyes"\n')
        (root / "input").mkdir()
        before = seen(root)
        here = os.getcwd()
        os.chdir(root / "input")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                INPUTS.READERS[name](random.Random(f"{name} {seed}"), root / "input")
        except RkdError as error:
            assert str(error).strip()
        finally:
            os.chdir(here)
        assert seen(root) == before

    run()


@pytest.mark.parametrize("kind", ["code", "page"])
def test_the_fuzzer_finds_what_it_looks_for(kind: str, tmp_path: Path) -> None:
    """A reader that does run code, a page that does hold a script."""
    if kind == "code":
        import pickle

        folder = tmp_path / "input"
        folder.mkdir()
        before = seen(tmp_path)
        pickle.loads(pickle.dumps(INPUTS.Evil(folder)))
        assert seen(tmp_path) != before
    else:
        for bad in (
            "<script>alert(1)</script>",
            '<p onclick="x()">',
            '<a href="javascript:x()">',
            '<img src="http://a">',
        ):
            with pytest.raises(AssertionError):
                INPUTS.Page().feed(f"<html>{bad}</html>")
