"""What is not computing: rkd's machinery, its start, memory given anew, threads that wait: docs/results/overhead.md.

    python benchmarks/overhead.py [--threads 1] [--rounds 5] [--table docs/results/overhead.md]

Times of a process's own (user and system), which another process beside it hardly changes; starts, and steps in several
threads, are wall-clock times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from in_turn import machine, make_images
from speed import rkd_step

NETS = (("mobilenetv2", 64), ("resnet20", 128), ("resnet18", 32))


def hollow(module: Any) -> None:
    """Let a net keep all its layers and compute next to nothing: what is left of a step is rkd's own."""
    import torch

    weight = next(module.parameters())

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ torch.ones(x.shape[1], 10) * (0.01 * weight.sum())

    module.forward = forward


WAITING = {
    "actively, 300,000 rounds (GNU's default)": {"GOMP_SPINCOUNT": "300000"},
    "30,000 rounds, then asleep (rkd's)": {"GOMP_SPINCOUNT": "30000"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""How OpenMP's threads wait for one another."""


def used() -> tuple[float, int, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_minflt, time.perf_counter()


def work(job: dict[str, Any]) -> None:
    """Steps in this process; one line of JSON with their CPU seconds, page faults and seconds, medians."""
    if job["allocator"]:
        from rkd.profiling.allocator import keep_freed_memory

        assert keep_freed_memory()
    import torch

    torch.set_num_threads(job["threads"])
    if job["hollow"]:
        from rkd.nets import net as nets

        original = nets.Net.__init__

        def init(self: Any, arch: Any, *arguments: Any) -> None:
            hollow(arch)
            original(self, arch, *arguments)

        nets.Net.__init__ = init  # type: ignore[method-assign]
    step = rkd_step(job)
    step()
    found = []
    for _ in range(job["rounds"]):
        before = used()
        step()
        found.append([b - a for a, b in zip(before, used(), strict=True)])
    print(json.dumps([statistics.median(values) for values in zip(*found, strict=True)]))


def ask(job: dict[str, Any], waiting: dict[str, str] | None = None) -> list[float]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    environment |= {"OMP_NUM_THREADS": str(job["threads"])} | (waiting or {})
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def start(command: list[str], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, default=Path("docs/results/overhead.md"))
    parser.add_argument("--images", type=Path, default=Path("runs/speed/random.npz"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(json.loads(arguments.worker))
        return
    make_images(arguments.images)
    common = {
        "images": str(arguments.images.absolute()), "threads": arguments.threads, "rounds": arguments.rounds,
        "steps": 10, "engine": "plain", "kind": "fp32", "teacher": "resnet20", "allocator": True, "hollow": False,
    }  # fmt: skip
    lines = ["| method | ResNet-20 step, CPU s | with hollow nets, CPU s | share |", "|---|---:|---:|---:|"]
    for method in ("rslad", "mtard"):
        job = common | {"method": method, "student": "resnet20", "batch": 128}
        whole, rest = ask(job)[0], ask(job | {"hollow": True})[0]
        lines.append(f"| {method.upper()} | {whole:.2f} | {rest:.4f} | {100 * rest / whole:.2f} % |")
    lines += ["", "| student | batch | allocator | CPU s a step | page faults a step |", "|---|---:|---|---:|---:|"]
    for student, batch in NETS:
        job = common | {"method": "rslad", "student": student, "batch": batch, "rounds": 3}
        for name, kept in (("glibc's default", False), ("rkd's", True)):
            seconds, faults, _ = ask(job | {"allocator": kept})
            lines.append(f"| {student} | {batch} | {name} | {seconds:.2f} | {faults:,.0f} |")
    lines += ["", "| OpenMP's threads wait | ResNet-20 step, s | beside a busy process, s |", "|---|---:|---:|"]
    job = common | {"method": "rslad", "student": "resnet20", "batch": 128, "threads": os.cpu_count() or 1}
    for name, waiting in WAITING.items():
        alone = ask(job, waiting)[2]
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside = ask(job | {"rounds": 3}, waiting)[2]
        finally:
            busy.kill()
            busy.wait()
        lines.append(f"| {name} | {alone:.2f} | {beside:.2f} |")
    rkd = str(Path(sys.executable).with_name("rkd"))
    starts = {"rkd --help": [rkd, "--help"], "import rkd": [sys.executable, "-c", "import rkd"],
              "python alone": [sys.executable, "-c", ""]}  # fmt: skip
    lines += ["", "| start | s |", "|---|---:|"]
    lines += [f"| `{name}` | {start(command, 10):.3f} |" for name, command in starts.items()]
    here = machine()
    lines += ["", f"{here['cpu']}, {arguments.threads} of {here['cores']} cores, load {here['load']:.1f}; medians."]
    text = arguments.table.read_text() if arguments.table.is_file() else "<!-- table -->\n<!-- end -->\n"
    before, _, rest_of_page = text.partition("<!-- table -->")
    _, _, after = rest_of_page.partition("<!-- end -->")
    arguments.table.write_text(before + "\n".join(["<!-- table -->", *lines, "<!-- end -->"]) + after)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
