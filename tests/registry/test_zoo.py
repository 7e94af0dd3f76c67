"""Catalogues of teachers: what is known, what is not, and what cannot be had by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rkd.core.errors import ConfigError, UnknownName
from rkd.registry.catalog import Catalog
from rkd.registry.zoo import ZooTeacher, read_zoo, zoo

LEAST = {"summary": "A net.", "data": "cifar10", "architecture": "WRN-34-10", "page": "https://authors/page"}
SHA256 = "0" * 64


def test_a_catalogue(tmp_path: Path) -> None:
    file = tmp_path / "zoo.toml"
    file.write_text(
        '[a]\nsummary = "A net."\ndata = "cifar10"\narchitecture = "WRN"\npage = "https://p"\nclean = 0.9\n'
    )
    teacher = read_zoo(file)["a"]
    assert (teacher.clean, teacher.autoattack, teacher.size, teacher.sha256) == (0.9, None, None, "")
    with pytest.raises(ConfigError, match=r"none\.toml: .*No such file"):
        read_zoo(tmp_path / "none.toml")
    file.write_text("[a")
    with pytest.raises(ConfigError, match=r"zoo\.toml: "):
        read_zoo(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"page": ""}, "a: url or page must say where it is"), ({"url": "file:///x"}, "a: url must begin with https://"),
     ({"url": "https://h/w.pt#k"}, "that is key, or sha256"), ({"sha256": "12"}, r"a\.sha256: "),
     ({"clean": 92}, r"a\.clean"), ({"size": 0}, r"a\.size"), ({"hash": "1"}, r"a\.hash: Extra inputs")],
)  # fmt: skip
def test_what_is_wrong_with_one(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zoo({"a": {**LEAST, **change}})


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        zoo({"a": {**LEAST, "size": 0}, "b": {**LEAST, "clean": 2}, "c": "text"})
    assert [line.split(":")[0] for line in str(caught.value).split("\n")] == ["a.size", "b.clean", "c"]


def test_what_is_known_and_what_is_not() -> None:
    page = ZooTeacher(**LEAST, model="wrn34-10", note="strong")
    facts = page.facts("a")
    assert facts["clean accuracy"] == facts["size"] == facts["SHA-256"] == "unknown"
    assert facts["licence"] == "unknown: ask its authors" and facts["trained against"] == "unknown"
    assert facts["to type"] == "--teacher robust=wrn34-10@FILE" and facts["note"] == "strong"
    assert page.problem("a") == (
        "zoo:a cannot be fetched from here: authors gives it to people alone. Get the file from https://authors/page "
        "and type --teacher robust=wrn34-10@FILE"
    )
    strange = ZooTeacher(**LEAST, url="https://h/w.pt")
    assert "zoo:a is a WRN-34-10, for which rkd has no model" in strange.problem("a") and not strange.how("a")
    whole = ZooTeacher(**LEAST, model="wrn34-10", url="hf:o/n/w.pt", key="ema", sha256=SHA256, clean=0.5, size=9)
    assert not whole.problem("a") and whole.address == f"hf:o/n/w.pt#ema&sha256={SHA256}"
    assert (whole.host, strange.host, page.host) == ("huggingface.co", "h", "authors")
    assert whole.facts("a")["clean accuracy"] == "50 % (rkd allows 1 % more or less)"
    assert whole.facts("a")["to type"] == "--teacher robust=zoo:a"


def test_the_shipped_catalogue(catalog: Catalog) -> None:
    """Every model is one that rkd has, every address can be read, and whoever cannot be fetched has a page."""
    from rkd.storage.remote import read_remote

    for name in catalog.names("zoo"):
        teacher = catalog.create("zoo", name)
        assert teacher.source, f"{name}: where are its facts from?"
        if teacher.model:
            catalog.create("model", teacher.model, teacher.options)
        if teacher.url:
            read_remote(teacher.address)
        else:
            assert teacher.page and teacher.problem(name)
    assert sum(not catalog.create("zoo", name).problem(name) for name in catalog.names("zoo")) >= 15


def test_found_by_kind_and_name(catalog: Catalog) -> None:
    (entry,) = catalog.find_all("zoo:chen2021-ltd-cifar10-linf-wrn34-10")
    facts = entry.facts()
    assert facts["known"]["under AutoAttack"] == "56.94 %" and facts["module"] == "rkd.plugins.zoo.teachers"
    assert facts["options"] == [] and facts["description"] == entry.summary
    with pytest.raises(
        UnknownName, match=r"no teacher 'fare3-clip' in the catalogue\. Did you mean .*fare2-clip.*list"
    ):
        catalog.find("zoo", "fare3-clip")
