"""Generated images beside real ones: what is read, what is refused, and what it takes of memory."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rkd.core.errors import ConfigError, DataError, UnknownName
from rkd.data.dataset import MixedSplit
from rkd.plugins.datasets.digits import Digits
from rkd.plugins.datasets.generated import Generated
from rkd.registry.catalog import Catalog
from rkd.testing import check_dataset
from rkd.workflow.build import build
from rkd.workflow.resolve import resolve

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(50) % 10


def write(folder: Path, **arrays) -> str:
    np.savez(folder / "g.npz", **{"image": PIXELS, "label": LABELS, **arrays})
    return str(folder / "g.npz")


def of(path: str, **options) -> Generated:
    return Generated(path, base="digits", **options)


@pytest.mark.parametrize("image", [PIXELS, PIXELS.transpose(0, 3, 1, 2), PIXELS[..., 0]], ids=["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_images_and_labels_are_those_of_the_file(image: np.ndarray, kind: type, tmp_path: Path) -> None:
    data = of(write(tmp_path, image=image, label=LABELS.astype(kind)))()
    assert isinstance(data.train, MixedSplit)
    index = torch.tensor([49, 0, 7, 7])
    assert torch.equal(data.train.generated.pixels(index)[:, 0], torch.from_numpy(PIXELS)[index, :, :, 0])
    assert torch.equal(data.train.generated.labels, torch.from_numpy(LABELS))


def test_colours(tmp_path: Path) -> None:
    real, made = (np.random.default_rng(seed).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8) for seed in (1, 2))
    labels = np.arange(20) % 2
    np.savez(tmp_path / "real.npz", x_train=real, y_train=labels, x_test=real, y_test=labels)
    for image in (made, made.transpose(0, 3, 1, 2)):
        data = Generated(write(tmp_path, image=image, label=labels), base="npz:real.npz", dir=str(tmp_path))()
        found = data.train.images(torch.arange(40))
        expected = torch.from_numpy(np.concatenate([real, made]).transpose(0, 3, 1, 2)).float() / 255
        assert torch.equal(found, expected) and found.is_contiguous()


def test_all_else_is_that_of_the_real_data(tmp_path: Path) -> None:
    data, real = of(write(tmp_path), fraction=0.5)(), Digits()()
    check_dataset(data)
    for name in ("shape", "classes", "mean", "std", "threat", "defaults", "teachers", "notes"):
        assert getattr(data, name) == getattr(real, name)
    assert len(data.train) == len(real.train) + 50 and len(data.test) == len(real.test)


def test_prepared_teachers_are_those_of_these_images(tmp_path: Path) -> None:
    """Another share, other pixels or other labels: another fingerprint."""
    marks = [of(write(tmp_path), fraction=share)().fingerprint for share in (0.5, 0.5, 0.7)]
    marks += [of(write(tmp_path, **other))().fingerprint for other in ({"image": PIXELS // 2}, {"label": LABELS[::-1]})]
    assert marks[0] == marks[1] and len(set(marks)) == 4


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": PIXELS[:, :7]}, r"\(N, 8, 8, 1\) or \(N, 1, 8, 8\) as uint8.*\(50, 7, 8, 1\)"),
        ({"image": PIXELS.repeat(3, 3)}, r"\(50, 8, 8, 3\)"),
        ({"image": PIXELS / 255}, "float64"),
        ({"image": np.asfortranarray(PIXELS)}, "must hold images"),
        ({"label": LABELS + 1}, "from 1 to 10, but the data set that the images join has 10 classes"),
        ({"label": LABELS - 1}, "from -1 to 8"),
        ({"label": LABELS[:, None]}, "integers"),
        ({"label": LABELS / 10}, "integers"),
        ({"label": LABELS[:49]}, "50 images and 49 labels"),
        ({"image": PIXELS[:0], "label": LABELS[:0]}, "0 images"),
    ],
)
def test_other_shapes_and_classes_are_refused(arrays: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        of(write(tmp_path, **arrays))()


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = Path(write(tmp_path)).read_bytes()
    for name, content, says in (
        ("missing.npz", None, "does not exist"),
        ("cut.npz", whole[:-40], "not a whole"),
        ("text.npz", b"hello", "not a whole"),
        ("pickle.npz", pickle.dumps({}), "not a whole"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            of(str(tmp_path / name))()
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(DataError, match="single array"):
        of(str(tmp_path / "one.npy"))()
    np.savez_compressed(tmp_path / "small.npz", image=PIXELS, label=LABELS)
    with pytest.raises(DataError, match=r"image is compressed.*numpy\.savez"):
        of(str(tmp_path / "small.npz"))()
    with pytest.raises(DataError, match=r"lacks x and y; the arrays there: image, label"):
        of(write(tmp_path), arrays=("x", "y"))()
    np.savez(tmp_path / "objects.npz", image=PIXELS, label=np.array([{}] * 50))
    with pytest.raises(DataError, match="cannot be read"):
        of(str(tmp_path / "objects.npz"))()


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    data = of(str(path))()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="become shorter: image 49"):
        data.train.generated.images(torch.tensor([49]))


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        Generated("g.npz", fraction=1.5)
    with pytest.raises(UnknownName, match=r"'digit' is none of .*Did you mean digits"):
        Generated(write(tmp_path), base="digit")()


def test_the_batches_of_a_run_hold_both(catalog: Catalog, tmp_path: Path) -> None:
    """By the settings that a user types; validation sees real images alone."""
    table = {
        "loss": {"name": "ce"},
        "student": {"model": "small-cnn", "width": 4},
        "data": {"name": f"generated:{write(tmp_path)}", "base": "digits", "fraction": 0.3, "validation": 0.1},
        "batch_size": 40,
    }
    run = build(resolve(table, catalog), catalog, {})
    batch = next(run.loader.batches(0))
    real = len(run.loader.split.real)
    assert real == round(0.9 * len(Digits()().train)) and int((batch.index >= real).sum()) == 12
    assert len(run.validate.split) == len(Digits()().train) - real


@pytest.mark.slow
def test_a_million_images_take_little_memory() -> None:
    """On a sparse file, in batches of 128; the whole would be 3 GB."""
    path = Path(__file__).parents[2] / "benchmarks" / "generated.py"
    spec = importlib.util.spec_from_file_location("generated_memory", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.added_memory(1_000_000, 100) < 200
