"""rkd's `ddn`, `fmn` and `sigma-zero` beside adv-lib's, on the same net, images and number of steps, in turn:
docs/results/minimal-norm.md.

    python benchmarks/minimal_norm.py RUN [--data-dir DATA] [--samples 200] [--steps 100]

RUN is a finished run of `rkd run`; the images are the first that its net gets right. Needs adv-lib (`pip install
adv-lib`). Both ask the plain net, on one thread. Writes the table to --table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import rkd
from rkd import ops
from rkd.api import attack_plan, catalog
from rkd.core.types import Batch, ThreatModel
from rkd.evaluation.counting import attack_batch
from rkd.profiling.machine import cpu_name
from rkd.registry.recipes import read_recipe
from rkd.storage.runfolder import RunFolder
from rkd.workflow.nets import load_run
from rkd.workflow.resolve import load_data, parse

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib imports it for plots alone
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
ORDER = {"L2": 2, "Linf": math.inf, "L1": 1, "L0-values": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", help="where the run's data set lies, if it is elsewhere now")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--table", type=Path, default=Path("docs/results/minimal-norm.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = read_recipe(RunFolder(arguments.run).config)
    if arguments.data_dir:
        config["data"]["dir"] = arguments.data_dir
    data = load_data(parse({"data": config["data"]}), catalog())
    net = load_run(arguments.run, catalog()).net.eval().requires_grad_(False)
    index = torch.arange(min(2 * arguments.samples, len(data.test)))
    x, y = data.test.images(index), data.test.labels[index]
    with torch.no_grad():
        right = ops.correct(net(x), y).nonzero().squeeze(1)[: arguments.samples]
    batch = Batch(x[right], y[right], index[right])

    from adv_lib.attacks import ddn, fmn
    from adv_lib.attacks.sigma_zero import sigma_zero

    steps = arguments.steps
    pairs: list[tuple[str, str, Callable[[], Tensor]]] = [
        ("ddn", "L2", lambda: ddn(net, batch.x, batch.y, steps=steps, levels=None)),
        *(("fmn", norm, lambda p=p: fmn(net, batch.x, batch.y, norm=p, steps=steps)) for norm, p in ORDER.items()),
        ("sigma-zero", "L0-values", lambda: sigma_zero(net, batch.x, batch.y, num_steps=steps)),
    ]
    rows = []
    for name, norm, theirs in pairs:
        plan = attack_plan(name, steps=steps, bounded=False)

        def ours(plan=plan, norm=norm) -> Tensor:
            return attack_batch(net, batch, plan, ThreatModel(norm, 1.0, 0.1), 0)

        for who, search in (("adv-lib", theirs), ("rkd", ours)):
            rows.append(row(f"{name}, {norm}", who, net, batch, norm, search, steps))
            print(rows[-1], flush=True)
    head = ["attack, norm", "by", "found, %", "mean of found", *(f"{q:.0%}" for q in QUANTILES), "CPU s"]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("adv-lib", "torch"))
    text = f"""# Minimal-norm attacks beside adv-lib

```
python benchmarks/minimal_norm.py RUN --samples {arguments.samples} --steps {steps}
```

RUN: a small-cnn of 7,234 parameters on MNIST, trained for three epochs on 6,000 images against PGD in Linf 0.1.
{len(batch)} test images that it gets right; {steps} forwards with gradient for each image and attack, the two in turn,
one thread. rkd adds a few forwards that confirm. {versions}, rkd {rkd.__version__};
{cpu_name()}; the machine was shared, so CPU seconds (one run each) are rough.

The columns of percentages are the radii within which so many of *all* images fall; a dash: fewer fall.

<!-- table -->
| {" | ".join(head)} |
|---|---|{"---:|" * (len(head) - 2)}
{chr(10).join(rows)}
<!-- end -->

Where adv-lib's `fmn` finds nothing for many images, its first radius ends just short of the boundary and stays there;
`src/rkd/plugins/attacks/fmn.py` tells what rkd does instead.
"""
    arguments.table.write_text(text)


def row(what: str, who: str, net: torch.nn.Module, batch: Batch, norm: str, search: Callable[[], Tensor], steps: int):
    """A line of the table."""
    started = time.process_time()
    found = search()
    seconds = time.process_time() - started
    with torch.no_grad():
        fooled = ~ops.correct(net(found), batch.y)
    far = torch.where(fooled, ops.image_norm(found - batch.x, norm), torch.inf).sort().values
    quantiles = [float(far[math.ceil(q * len(far)) - 1]) for q in QUANTILES]
    shown = [f"{value:.4g}" if math.isfinite(value) else "-" for value in quantiles]
    mean = float(far[far.isfinite()].mean())
    return (
        f"| {what} | {who} | {100 * float(fooled.double().mean()):.4g} | {mean:.4g} | "
        + " | ".join([*shown, f"{seconds:.1f}"])
        + " |"
    )


if __name__ == "__main__":
    main()
