"""Teachers: found, or prepared once and kept; and what a weights file's net was fed with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rkd.core.errors import Refused, RkdError, WeightsError
from rkd.data.dataset import fetch
from rkd.registry.catalog import Catalog, load_catalog
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import save_weights
from rkd.workflow.plan import Plan, Silent
from rkd.workflow.preparing.teachers import ResolvedTeacher, load_teachers, prepare
from rkd.workflow.resolve import resolve
from rkd.workflow.train import train_run

CATALOG = load_catalog()
QUICK = {"model": "small-cnn", "width": 4}


class Listener(Silent):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def training(self, title: str) -> dict[str, Any]:
        self.trained.append(title)
        return {}


def table(**changes: Any) -> dict[str, Any]:
    """A run with one clean teacher that takes a second to prepare."""
    return {
        "loss": {"name": "kd"},
        "student": dict(QUICK),
        "epochs": 1,
        "batch_size": 128,
        "teachers": [{"reference": "small-cnn", "options": {"width": 4}, "train": {"epochs": 1}}],
        "evaluate": {"attacks": ["fgsm"], "limit": 30},
        **changes,
    }


def find(listener: Silent | None = None, **changes: Any) -> tuple[Plan, ResolvedTeacher]:
    plan = resolve(table(**changes), CATALOG)
    (found,) = load_teachers(plan, CATALOG, listener or Silent())
    return plan, found


def ready(listener: Listener, **changes: Any) -> ResolvedTeacher:
    plan, found = find(listener, **changes)
    return prepare(found, plan, CATALOG, listener, train_run) if found.missing else found


@pytest.mark.slow
def test_a_teacher_is_prepared_once(cache: Path) -> None:
    listener = Listener()
    plan, missing = find(listener)
    assert missing.missing
    assert not cache.exists(), "looking writes nothing"
    found = prepare(missing, plan, CATALOG, listener, train_run)
    assert listener.trained == ["clean teacher small-cnn"]
    assert not found.missing
    assert found.reference.role == found.teacher.role == "clean"
    assert set(found.results["student"]["attacks"]) == {"fgsm"}
    again = ready(listener)
    assert len(listener.trained) == 1, "the second time it comes from the cache"
    assert again.source == found.source
    x = fetch(plan.data.test, torch.arange(20)).x
    with torch.no_grad():
        assert torch.equal(again.teacher.logits(x), found.teacher.logits(x))
    folder = next(p for p in (cache / "teachers").iterdir() if p.is_dir())
    assert RunFolder.open(folder).weights.is_file(), "it is an ordinary run"
    assert [p.name for p in (cache / "teachers").iterdir() if ".part" in p.name] == []


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"epochs": 9, "batch_size": 32, "loss": {"name": "kd", "T": 9.0}}, True),
        ({"student": {"model": "mlp"}}, True),
        ({"evaluate": {"attacks": ["cw"], "limit": 10}}, True),
        ({"seed": 1}, False),
        ({"threat": {"eps": 0.1}}, False),
        ({"preparation_epochs": 1}, True),
        ({"preparation_epochs": 2}, False),
        ({"data": {"name": "digits", "validation": 0.2}}, False),
        ({"teachers": [{"reference": "small-cnn", "options": {"width": 4}, "train": {"epochs": 2}}]}, False),
        ({"teachers": [{"reference": "small-cnn", "options": {"width": 5}, "train": {"epochs": 1}}]}, False),
    ],
    ids=str,
)
def test_what_makes_another_teacher(changes: dict, same: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the teacher's own training does not see makes none."""
    from rkd.workflow.preparing import teachers

    places = []

    def look(table: Any, reference: Any, plan: Any) -> Path:
        places.append(real(table, reference, plan))
        return places[-1]

    real = teachers._place
    monkeypatch.setattr(teachers, "_place", look)
    find()
    find(**changes)
    assert (places[0] == places[1]) is same


@pytest.mark.slow
def test_what_a_killed_process_left_is_no_teacher(cache: Path) -> None:
    listener = Listener()
    ready(listener)
    folder = next(p for p in (cache / "teachers").iterdir() if p.is_dir())
    (folder / "evaluation.json").unlink()
    ready(listener)
    assert len(listener.trained) == 2
    assert (folder / "evaluation.json").is_file()


def test_a_preparation_that_fails_leaves_nothing(cache: Path) -> None:
    with pytest.raises(RkdError) as failed:
        teachers = [{"reference": "small-cnn", "train": {"epochs": 1, "optimizer": {"lr": 1e30}}}]
        ready(Listener(), teachers=teachers)
    # The advice speaks of --lr and so on, which are the student's.
    assert "teacher; its own settings are --set teachers.clean.train.KEY=VALUE" in failed.value.__notes__[0]
    assert [p for p in (cache / "teachers").iterdir() if p.is_dir()] == []


@pytest.mark.slow
def test_a_preparation_that_takes_too_long_is_refused(cache: Path) -> None:
    teachers = [{"reference": "resnet20", "train": {"epochs": 100_000}}]
    with pytest.raises(Refused, match=r"would take .* h .*--teacher-epochs N.*prepare_minutes=MINUTES"):
        ready(Listener(), teachers=teachers)


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_teachers import Listener, ready
listener = Listener()
print(len(listener.trained), ready(listener).source, len(listener.trained))
"""


@pytest.mark.slow
def test_two_processes_prepare_one_teacher_once(cache: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    environment = {**os.environ, "RKD_CACHE": str(cache)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(out.split())
    assert sorted(answer[-1] for answer in answers) == ["0", "1"], "one has trained, the other has waited"
    assert answers[0][1:-1] == answers[1][1:-1]
    assert len([p for p in (cache / "teachers").iterdir() if p.is_dir()]) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(RkdError, match="set RKD_CACHE"):
        ready(Listener())


def test_no_recipe_for_a_strange_role(cache: Path) -> None:
    with pytest.raises(RkdError, match=r"role 'odd' \(there is robust, clean\).*--teacher odd=small-cnn@FILE"):
        find(teachers=[{"reference": "small-cnn", "role": "odd"}])


# Teachers that are there


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    train_run(table(loss={"name": "ce"}, teachers=[]), CATALOG, path)
    return path


@pytest.mark.slow
def test_a_finished_run_teaches(finished: Path) -> None:
    plan, found = find(teachers=[{"reference": str(finished)}])
    assert not found.missing
    assert found.source == str(finished)
    x = fetch(plan.data.test, torch.arange(10)).x
    from rkd.workflow.nets import load_run

    with torch.no_grad():
        assert torch.equal(found.teacher.logits(x), load_run(finished, CATALOG).net(x))


def test_a_run_that_did_not_finish_teaches_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "half")
    (tmp_path / "half" / "student.json").unlink()
    with pytest.raises(RkdError, match="did not finish"):
        find(teachers=[{"reference": str(tmp_path / "half")}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RkdError, match="is not a run"):
        find(teachers=[{"reference": str(tmp_path / "empty")}])


def test_weights_from_a_file(finished: Path, tmp_path: Path) -> None:
    listener = Listener()
    reference = f"small-cnn@{finished / 'student.safetensors'}"
    plan, found = find(listener, teachers=[{"reference": reference, "options": {"width": 4}}])
    x = fetch(plan.data.test, torch.arange(10)).x
    expected = find(teachers=[{"reference": str(finished)}])[1]
    with torch.no_grad():
        assert torch.equal(found.teacher.logits(x), expected.teacher.logits(x))
    assert "normalize=data" in listener.said[0]


def test_weights_that_do_not_fit(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not fit this architecture"):
        find(teachers=[{"reference": f"mlp@{finished / 'student.safetensors'}"}])
    with pytest.raises(WeightsError, match="there is no weights file"):
        find(teachers=[{"reference": f"mlp@{tmp_path / 'nowhere.pt'}"}])


def test_a_teacher_for_other_images(finished: Path, tmp_path: Path, catalog: Catalog) -> None:
    arch = catalog.create("model", "mlp")((1, 8, 8), 7)
    save_weights(tmp_path / "w.safetensors", arch.state_dict())
    with pytest.raises(WeightsError, match="number of classes"):
        find(teachers=[{"reference": f"mlp@{tmp_path / 'w.safetensors'}"}])


# What their answers say


class Warned(Listener):
    """Notes warnings, too."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def warning(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> tuple[Path, dict[str, torch.Tensor]]:
    """A weights file of an MLP that has learned digits, and its weights. It wants images in [0, 1]."""
    data = resolve({}, CATALOG).data
    torch.manual_seed(2)  # one whose normalisation cannot be told; of others it can
    net = catalog.create("model", "mlp")((1, 8, 8), 10)
    batch = fetch(data.train, torch.arange(0, len(data.train), 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, net.state_dict())
    return path, {name: value.clone() for name, value in net.state_dict().items()}


def taught(listener: Listener, path: Path, **more: Any) -> ResolvedTeacher:
    return find(listener, teachers=[{"reference": f"mlp@{path}", **more}])[1]


@pytest.mark.slow
def test_a_good_teacher_is_not_doubted(good: tuple[Path, dict]) -> None:
    listener = Warned()
    taught(listener, good[0], normalize="none")
    assert listener.warned == []


def test_a_normalisation_that_cannot_be_told_is_asked_for(good: tuple[Path, dict]) -> None:
    with pytest.raises(Refused, match=r"cannot be told.*type --set teachers\.clean\.normalize=none"):
        taught(Warned(), good[0])


def test_a_teacher_whose_classes_are_in_another_order(good: tuple[Path, dict], tmp_path: Path) -> None:
    """Its weights fit, and it would teach nonsense to the end of the run."""
    order = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    head = [name for name, value in good[1].items() if len(value) == 10]
    moved = {name: value[order] if name in head else value for name, value in good[1].items()}
    save_weights(tmp_path / "moved.safetensors", moved)
    listener = Warned()
    taught(listener, tmp_path / "moved.safetensors", normalize="none")
    (said,) = listener.warned
    assert "its classes are in another order" in said and "teachers.clean.classes=[9,8,7,6,5,4,3,2,1,0]" in said
    listener = Warned()
    taught(listener, tmp_path / "moved.safetensors", normalize="none", classes=order)
    assert listener.warned == []


def test_an_untrained_teacher_is_warned_of(tmp_path: Path, catalog: Catalog) -> None:
    torch.manual_seed(1)
    state = {
        name: torch.zeros_like(v) for name, v in catalog.create("model", "mlp")((1, 8, 8), 10).state_dict().items()
    }
    save_weights(tmp_path / "w.safetensors", state)
    listener = Warned()
    taught(listener, tmp_path / "w.safetensors")
    assert len(listener.warned) == 1 and "where chance is" in listener.warned[0]


def test_a_run_whose_weights_are_not_those_of_its_card(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "other")
    folder = RunFolder(tmp_path / "other")
    state = {name: torch.zeros_like(value) for name, value in folder.load_weights(folder.weights).items()}
    save_weights(folder.weights, state)
    card = folder.read_json(folder.card)
    card["results"]["clean"] = 0.9
    folder.write_json(folder.card, card)
    listener = Warned()
    find(listener, teachers=[{"reference": str(folder.path)}])
    assert "its own results say 90.0%" in listener.warned[0]


def test_settings_of_a_teacher_by_its_role() -> None:
    amended = {"role": "clean", "options": {"width": 5}, "train": {"epochs": 7}}
    plan = resolve(table(teachers=[{"reference": "small-cnn"}, amended]), CATALOG)
    (teacher,) = plan.config.teachers
    assert (teacher.reference, teacher.options, teacher.train) == ("small-cnn", {"width": 5}, {"epochs": 7})
    usual = resolve(table(teachers=[{"role": "clean", "train": {"epochs": 7}}]), CATALOG)
    assert usual.config.teachers[0].train == {"epochs": 7}, "the data set's usual teacher, with other settings"
    with pytest.raises(RkdError, match=r"teachers\.robust: there is no such teacher"):
        resolve(table(teachers=[{"reference": "small-cnn"}, {"role": "robust", "normalize": "none"}]), CATALOG)


@pytest.mark.parametrize("text", ["mlp@", "@w.pt", "", "hub:"])
def test_an_empty_part_of_a_reference(text: str) -> None:
    """`--teacher mlp@$W` with W unset trained a teacher from scratch."""
    with pytest.raises(RkdError, match="empty part"):
        resolve(table(teachers=[{"reference": text}]), CATALOG)
