"""What the options of `rkd run` mean as settings."""

from __future__ import annotations

import pytest

from rkd.cli.settings import option_table, run_table
from rkd.core.errors import ConfigError
from rkd.registry.catalog import load_catalog


def test_a_student_with_weights() -> None:
    table = option_table({"student": "resnet18+aux-bn@some/w+1.pt#ema"})
    assert table["student"] == {"model": "resnet18", "weights": "some/w+1.pt#ema", "conversions": {"aux-bn": {}}}
    with pytest.raises(ConfigError, match="empty part"):
        option_table({"student": "resnet18@"})


def test_with_takes_extensions_and_trackers() -> None:
    table = run_table(None, {"extension": ("ema", "tensorboard", "no-such")}, [], load_catalog())
    assert table == {"extensions": {"ema": {}, "no-such": {}}, "trackers": {"tensorboard": {}}}


def test_settings_of_a_teacher_by_its_role() -> None:
    table = run_table(None, {"teacher": ("mlp@w.pt",)}, ["teachers.clean.normalize=half"], load_catalog())
    assert table["teachers"] == [{"reference": "mlp@w.pt"}, {"role": "clean", "normalize": "half"}]
    with pytest.raises(ConfigError, match=r"teachers\.ROLE\.KEY=VALUE"):
        run_table(None, {}, ["teachers.clean=half"], load_catalog())


def test_a_run_that_says_nothing_of_what_is_trained_is_the_first_run() -> None:
    catalog = load_catalog()
    first = run_table(None, {}, [], catalog)
    assert first == run_table("first-run", {}, [], catalog)
    assert (first["baseline"], first["data"]["name"]) == ({"loss": "pgd-at"}, "digits")
    table = run_table(None, {"seed": 3, "baseline": "trades"}, ["optimizer.lr=0.2"], catalog)
    assert table["loss"] == first["loss"] and table["seed"] == 3 and table["baseline"] == {"loss": "trades"}
    assert run_table(None, {"baseline": "none"}, [], catalog)["baseline"] is False
    for options, settings in (({"loss": "rslad"}, []), ({"teacher": ("wrn34",)}, []), ({}, ["student.width=4"])):
        assert "baseline" not in run_table(None, options, settings, catalog)
