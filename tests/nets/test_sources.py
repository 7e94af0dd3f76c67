"""Sources of teachers and conversions of students: the built-in ones keep to the interfaces."""

from __future__ import annotations

import pytest

from rkd.nets.sources import Conversion, TeacherReference, TeacherSource
from rkd.nets.student import NetStudent
from rkd.registry.catalog import load_catalog
from rkd.testing import tiny_net

CATALOG = load_catalog()


@pytest.mark.parametrize("name", CATALOG.names("teacher"))
def test_sources(name: str) -> None:
    assert isinstance(CATALOG.create("teacher", name), TeacherSource)


@pytest.mark.parametrize("name", CATALOG.names("student"))
def test_conversions(name: str) -> None:
    conversion = CATALOG.create("student", name)
    assert isinstance(conversion, Conversion)
    assert isinstance(conversion(NetStudent(tiny_net())), NetStudent)


def test_a_reference_is_a_value() -> None:
    assert TeacherReference("resnet8", "robust") == TeacherReference("resnet8", "robust", None, None, {})
