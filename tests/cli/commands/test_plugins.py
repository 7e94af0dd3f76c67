"""`rkd plugins new`, `test` and `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

STRANGE = (
    "from rkd.plugin import hookimpl\nclass Flat:\n    'Nothing.'\n    def __call__(self, step):\n        return {}\n"
)


def test_from_nothing_to_a_tested_plugin(rkd, empty_folder: Path) -> None:
    """A transcript: written, checked as a file, its mistake found."""
    said = rkd("plugins", "new", "mine", "--kind", "corruption")
    assert said.exit_code == 0 and said.stdout.startswith("wrote rkd-mine: .github/workflows/test.yml, .gitignore, ")
    assert "rkd plugins test rkd-mine/rkd_mine.py" in said.stderr
    file = empty_folder / "rkd-mine" / "rkd_mine.py"
    said = rkd("plugins", "test", file)
    assert (said.exit_code, said.stdout) == (0, "ok      corruption mine\n")
    file.write_text(file.read_text().replace("(0.8, 0.65, 0.5, 0.35, 0.2)", "(0.2, 0.35, 0.5, 0.65, 0.8)"))
    said = rkd("plugins", "test", file, "--json")
    assert said.exit_code == 2 and "1 of 1 components break a promise that rkd relies on" in said.stderr
    assert said.json[0]["status"] == "failed" and "the higher the severity" in said.json[0]["reason"]
    said = rkd("plugins", "test", file, "--kind", "loss")
    assert said.exit_code == 2 and "provides no component of the kind loss" in said.stderr


def test_what_cannot_be_tested(rkd, empty_folder: Path) -> None:
    said = rkd("plugins", "test", "rkd-toolkid")
    assert said.exit_code == 2 and "no plugin is from 'rkd-toolkid'. Did you mean rkd-toolkit" in said.stderr
    (empty_folder / "bad.py").write_text("1 / 0")
    said = rkd("plugins", "test", "bad.py")
    assert said.exit_code == 2 and "bad.py could not be loaded: ZeroDivisionError" in said.stderr
    said = rkd("plugins", "new", "Mine", "--kind", "loss")
    assert said.exit_code == 2 and "is no name for a plugin" in said.stderr


def test_doctor(rkd, empty_folder: Path) -> None:
    (empty_folder / "fine.py").write_text(STRANGE + "@hookimpl\ndef rkd_losses():\n    return {'flat': Flat}\n")
    said = rkd("plugins", "doctor", "--plugin", "fine.py")
    assert said.exit_code == 0 and "nothing is wrong" in said.stderr
    assert "file/fine" in said.stdout and "loss flat" in said.stdout
    (empty_folder / "bad.py").write_text("1 / 0")
    said = rkd("plugins", "doctor", "--plugin", "fine.py", "--plugin", "bad.py", "--json")
    assert said.exit_code == 2 and "1 of " in said.stderr
    found = {one["plugin"]: one for one in said.json}
    assert found["file/fine"]["components"] == {"loss": ["flat"]} and found["file/fine"]["problems"] == []
    assert "could not be loaded: ZeroDivisionError" in found["file/bad"]["problems"][0]


@pytest.mark.slow
def test_doctor_of_the_built_in_ones(rkd) -> None:
    said = rkd("plugins", "doctor", "--all")
    assert said.exit_code == 0, said.stdout
    assert "rkd-toolkit/attacks.pgd" in said.stdout
