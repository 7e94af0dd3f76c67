"""The most robust ResNet-18 that so many minutes of one GPU give, on CIFAR-10 without other images.

    python benchmarks/speedrun.py IMAGES [--minutes 5] [--steps N] [--device cuda] [--out runs/speedrun]

IMAGES is a folder of images in class folders (`imagefolder:` of rkd), or a .tar.gz of one. The minutes are those of the
training: its first, short trial (which says how many epochs fit), and everything else up to the trained student, but
not reading the images. Then AutoAttack on --samples test images. With fewer than ten minutes a search has one step
(N-FGSM, de Jorge et al., 2022), from then on three of PGD; averaged weights, smoothed labels, one cycle of the learning
rate, bfloat16, channels last: the settings of the recipes cifar10-n-fgsm and cifar10-pgd-at-strong. Never run on a GPU:
the goals, 48 % under AutoAttack in 5 minutes and 50 % in 15, are set from published trainings. JPEGs cost accuracy.
"""

import argparse
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import torch

import rkd
from rkd.plugins.datasets.imagefolder import ImageFolder


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, help="of the search; 1: N-FGSM")
    parser.add_argument("--epochs", type=int, help="instead of as many as fit")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--attack", default="autoattack", help="of the evaluation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    asked = parser.parse_args(words)
    if asked.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # which algorithm is fastest is measured; bits may differ between runs
    steps = asked.steps or (1 if asked.minutes < 10 else 3)
    attack: dict[str, Any] = {"name": "n-fgsm"} if steps == 1 else {"name": "pgd", "steps": steps, "step_size": "4/255"}
    folder = unpacked(asked.images, asked.out).absolute()
    images = ImageFolder(str(folder))()  # decoded once, into the cache, before the clock starts
    settings = {
        "data": {"name": f"imagefolder:{folder}", "validation": 0},
        "student": {"model": asked.model, "normalize": "none"},
        "loss": {"name": "pgd-at", "label_smoothing": 0.4 if steps == 1 else 0.1},
        "attack": attack | {"mode": "train"},
        "extensions": {"ema": {"decay": 0.999}},
        "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "onecycle(1)"},
        "batch_size": asked.batch,
        "device": asked.device,
        "precision": "bf16",  # nets then run channels last, too
        "validate": {"select": "last"},
        "evaluate": {"attacks": [], "limit": asked.batch, "checks": "off", "examples": 0},
        "checkpoint": {"epochs": 1000, "keep": 1},
    }
    place = asked.out / time.strftime("%Y%m%d-%H%M%S")
    begun = time.perf_counter()
    rkd.train(settings=settings, epochs=2, out=place / "trial")  # in the first, algorithms are chosen
    epoch = rkd.load_run(place / "trial").history[-1]["seconds"]
    left = 60 * asked.minutes - (time.perf_counter() - begun)
    epochs = asked.epochs or max(1, int(0.97 * left / epoch))
    print(f"{epoch:.1f} s an epoch: {epochs} epochs", flush=True)
    rkd.train(settings=settings, epochs=epochs, out=place / "run")
    seconds = time.perf_counter() - begun
    net = rkd.load_student(place / "run").to(asked.device)
    result = rkd.evaluate(net, images, [asked.attack], limit=asked.samples, device=asked.device)
    outcome = result.outcomes[asked.attack]
    found = {
        "minutes": seconds / 60, "epochs": epochs, "seconds of an epoch": epoch, "steps": steps,
        "clean": float(result.clean.double().mean()), "robust": float(outcome.right.double().mean()),
        "samples": len(result.clean), "attack": asked.attack, "torch": torch.__version__,
        "device": torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else asked.device,
    }  # fmt: skip
    (place / "speedrun.json").write_text(json.dumps(found, indent=1))
    print("| " + " | ".join(found) + " |\n" + "|---" * len(found) + "|")
    print(
        "| " + " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in found.values()) + " |"
    )


def unpacked(images: Path, out: Path) -> Path:
    """The folder of class folders, or of train/ and test/; an archive is unpacked under `out` once."""
    if images.is_dir():
        return images
    folder = out / images.name.removesuffix(".gz").removesuffix(".tar")
    if not folder.is_dir():
        half = folder.with_name(f"{folder.name}-half")
        with tarfile.open(images) as archive:
            archive.extractall(half, filter="data")
        half.rename(folder)
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


if __name__ == "__main__":
    main()
