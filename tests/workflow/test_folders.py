"""Where things lie, and names that are known without loading plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.workflow.folders import cache_folder, find_results, find_run, throwaway


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("RKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "rkd"


def test_a_sweep_stands_for_its_runs(tmp_path: Path) -> None:
    for place in ("my runs/sweep/sweep.toml", "my runs/sweep/b/config.toml", "my runs/sweep/a/config.toml",
                  "my runs/new/sweep.toml", "my runs/one/config.toml"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    out = tmp_path / "my runs"
    assert find_results("sweep", str(out)) == [out / "sweep" / "a", out / "sweep" / "b"]
    assert find_results(str(out / "one")) == [out / "one"]
    with pytest.raises(RkdError, match=f"a sweep without a run; `rkd sweep '{out}/new'`"):
        find_results("new", str(out))
    with pytest.raises(RkdError, match=f"is a sweep, not a run's folder; `rkd compare '{out}/sweep'`"):
        find_run("sweep", str(out))


def test_a_folder_to_throw_away(cache: Path) -> None:
    """What is prepared in it is gone afterwards, images that were decoded stay."""
    with pytest.raises(ZeroDivisionError), throwaway() as folder:
        assert cache_folder() == folder / "cache" != cache
        (cache_folder() / "teachers").mkdir()
        (cache_folder() / "decoded" / "images").write_text("kept")
        raise ZeroDivisionError
    assert cache_folder() == cache and not folder.exists()
    assert sorted(path.name for path in cache.rglob("*")) == ["decoded", "downloads", "images"]
