"""rkd's `autoattack` beside pyautoattack, on the same net and the same images, in turn: docs/results/autoattack.md.

    python benchmarks/autoattack.py RUN [RUN ...] [--data-dir DATA] [--samples 1000] [--chunk 500] [--engine auto ...]

RUN are finished runs of `rkd run`. Each chunk of images is attacked by pyautoattack, by rkd and once more by
pyautoattack with another seed, so that all three meet the same state of the machine. The two packages live in processes
of their own, started as their users would start them: the `rkd` command sets the memory allocator, a script that calls
pyautoattack does not. Both get --threads of the machine's cores: pyautoattack as threads of one process, rkd as
--processes of them (`rkd eval --processes`). Finished chunks are kept in --out and not done again. Writes the table of
all runs and engines there to --table (a Markdown file).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rkd
from rkd.api import attack_plan, catalog
from rkd.core.types import ThreatModel
from rkd.distributed.ranks import join
from rkd.engine.accelerator import Engine
from rkd.evaluation.evaluate import evaluate
from rkd.evaluation.result import interval
from rkd.evaluation.samples import EvalSettings, choose_samples
from rkd.profiling import allocator
from rkd.profiling.machine import cpu_name
from rkd.registry.recipes import read_recipe
from rkd.storage.runfolder import RunFolder
from rkd.storage.text import fraction
from rkd.workflow.nets import load_run
from rkd.workflow.resolve import load_data, parse

ENGINES = ("plain", "auto", "bfloat16")
OURS, THEIRS, AGAIN = "rkd", "pyautoattack", "pyautoattack, another seed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", help="where the runs' data set lies, if it is elsewhere now")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--eps", type=float, help="another radius than the run's")
    parser.add_argument("--once", action="store_true", help="without another seed of pyautoattack, to save time")
    parser.add_argument("--chunk", type=int, default=500)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores for each of the two")
    parser.add_argument("--processes", type=int, help="of rkd, which share the threads; as many unless given")
    parser.add_argument("--out", type=Path, default=Path("runs/autoattack"))
    parser.add_argument("--table", type=Path, default=Path("docs/results/autoattack.md"))
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["auto"], help="of rkd, one after another")
    parser.add_argument("--table-only", action="store_true", help="attack nothing: the table of the chunks there are")
    arguments = parser.parse_args()
    arguments.processes = arguments.processes or arguments.threads
    if not arguments.table_only:
        for run in arguments.runs:
            measure(run, arguments)
    write(arguments)


def measure(run: Path, arguments: argparse.Namespace) -> None:
    _, data = loaded(run, arguments.data_dir)
    positions = choose_samples(len(data.test), arguments.samples)
    count = -(-len(positions) // arguments.chunk)
    engines = arguments.engine
    numbers = [n for n in range(count) if not all(chunk_file(arguments, run, e, n).is_file() for e in engines)]
    if not numbers:
        return
    parts = positions.split(arguments.chunk)
    with ExitStack() as stack:
        their_package = [stack.enter_context(worker(theirs, run, arguments))]
        this_one = {}
        for engine in engines:
            port, ranks = free_port(), range(arguments.processes)
            this_one[engine] = [stack.enter_context(worker(ours, run, arguments, engine, rank, port)) for rank in ranks]
        for number in numbers:
            part = parts[number]
            theirs_alone = asked(THEIRS, their_package, part, 0, run)
            found = {engine: asked(f"{OURS}, {engine}", this_one[engine], part, 0, run) for engine in engines}
            again = None if arguments.once else asked(AGAIN, their_package, part, 1, run)
            for engine in engines:
                chunk = {"machine": machine(arguments), "net": described(run, arguments)}
                chunk |= {THEIRS: theirs_alone, OURS: found[engine]} | ({AGAIN: again} if again else {})
                path = chunk_file(arguments, run, engine, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(chunk))


def asked(name: str, workers: list[Connection], part: Tensor, seed: int, run: Path) -> dict[str, Any]:
    """What the workers, each its share of the same question, answer; the time is that of the last one."""
    for one in workers:
        one.send((part.tolist(), seed))
    found: dict[str, Any] = max((one.recv() for one in workers), key=lambda answer: answer["seconds"])
    print(f"{run.name}: {name} {sum(found['right'])} of {len(part)}, {found['seconds']:.1f} s", flush=True)
    return found


Attack = Callable[[Tensor, int], dict[str, Any]]
"""Of the samples at these positions, with this seed: which withstand, and more."""


@contextmanager
def worker(
    make: Callable[..., Attack],
    run: Path,
    arguments: argparse.Namespace,
    engine: str = "",
    rank: int | None = None,
    port: int = 0,
) -> Iterator[Connection]:
    """A process that attacks what it is sent, with what `make` makes; as one of several that share it, with `rank`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(make, run, arguments, there, engine, rank, port), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def work(
    make: Callable[..., Attack], run: Path, arguments: argparse.Namespace, questions: Connection, engine: str,
    rank: int | None, port: int,
) -> None:  # fmt: skip
    torch.set_num_threads(arguments.threads)
    if rank is not None:
        torch.set_num_threads(max(1, arguments.threads // arguments.processes))
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": arguments.processes, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    attack = make(run, arguments, engine)
    while True:
        try:
            part, seed = questions.recv()
        except EOFError:
            return
        started = time.perf_counter()
        found = attack(torch.tensor(part), seed)
        questions.send(found | {"seconds": time.perf_counter() - started})


def loaded(run: Path, data_dir: str | None) -> tuple[Any, Any]:
    config = read_recipe(RunFolder(run).config)
    if data_dir:
        config["data"]["dir"] = data_dir
    return load_run(run, catalog()), load_data(parse({"data": config["data"]}), catalog())


def attacker(subject: Any, arguments: argparse.Namespace) -> ThreatModel:
    threat: ThreatModel = subject.card.threat
    return threat.with_eps(arguments.eps) if arguments.eps else threat


def theirs(run: Path, arguments: argparse.Namespace, engine: str) -> Attack:
    subject, data = loaded(run, arguments.data_dir)
    threat = attacker(subject, arguments)

    def attack(part: Tensor, seed: int) -> dict[str, Any]:
        return {"right": reference(subject.net, data.test.images(part), data.test.labels[part], threat, seed)}

    return attack


def reference(net: Any, x: Tensor, y: Tensor, threat: ThreatModel, seed: int = 0) -> list[bool]:
    """Which images withstand the package as it is: version standard, the net in eval mode with frozen weights, on the
    device of the images."""
    from pyautoattack import AutoAttack as Theirs

    it = Theirs(net, norm=threat.norm, eps=threat.eps, seed=seed, device=str(x.device))
    x_adv, _ = it.run_standard_evaluation(x, y)  # 250 images at a time
    with torch.no_grad():
        return ((net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y)).tolist()


def ours(run: Path, arguments: argparse.Namespace, engine: str) -> Attack:
    """As `rkd eval --attack autoattack --processes N` does it."""
    allocator.keep_freed_memory()
    ranks = join()
    subject, data = loaded(run, arguments.data_dir)
    accelerator = Engine(engine, lambda text: print(f"  {text}", flush=True))
    plans, threat = {"autoattack": attack_plan("autoattack")}, attacker(subject, arguments)

    def attack(part: Tensor, seed: int) -> dict[str, Any]:
        settings = EvalSettings(threat=threat, positions=part, accelerator=accelerator, seed=seed, ranks=ranks)
        result = evaluate(subject.net, data.test, plans, settings)
        outcome = result.outcomes["autoattack"]
        return {"right": outcome.right.tolist(), "clean": result.clean.tolist(), "engine": outcome.about["engine"]}

    return attack


def chunk_file(arguments: argparse.Namespace, run: Path, engine: str, number: int) -> Path:
    return folder(arguments, run, engine) / f"{arguments.chunk}-{number:04d}.json"


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def folder(arguments: argparse.Namespace, run: Path, engine: str) -> Path:
    radius = f"-{arguments.eps:.4g}" if arguments.eps else ""
    return arguments.out / f"{run.name}-{engine}{radius}"


def write(arguments: argparse.Namespace) -> None:
    head = "| net | engine | samples | clean | pyautoattack | another seed | rkd | verdicts equal | of another seed | times as fast |"  # noqa: E501
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    about: dict[str, Any] = {}
    for place in sorted(path for path in arguments.out.iterdir() if path.is_dir()):
        chunks = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
        if chunks:
            about = chunks[0]["machine"]
            lines.append(row(chunks))
    text = (
        arguments.table.read_text() if arguments.table.is_file() else "# AutoAttack\n\n<!-- table -->\n<!-- end -->\n"
    )
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end -->")
    machine_line = (
        f"Machine: {about.get('cpu')}, {about.get('threads')} core(s) for each, rkd in {about.get('processes')} "
        f"process(es), load {about.get('load')} at the start, torch {about.get('torch')}, rkd {about.get('rkd')}."
    )
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    arguments.table.write_text(before + "\n".join(["<!-- table -->", *lines, "", machine_line, "<!-- end -->"]) + after)
    print("\n".join([*lines, "", machine_line]))


def row(chunks: list[dict[str, Any]]) -> str:
    def together(name: str, what: str = "right") -> Tensor:
        return torch.cat([torch.tensor(chunk[name][what]) for chunk in chunks])

    def accuracy(right: Tensor) -> str:
        low, high = interval(right)
        return f"{100 * float(right.double().mean()):.1f} ({100 * low:.1f} - {100 * high:.1f})"

    def equal(right: Tensor) -> str:
        return f"{100 * float((reference == right).double().mean()):.1f} %"

    ratios = [chunk[THEIRS]["seconds"] / chunk[OURS]["seconds"] for chunk in chunks]
    total = sum(c[THEIRS]["seconds"] for c in chunks) / sum(c[OURS]["seconds"] for c in chunks)
    reference, found = together(THEIRS), together(OURS)
    again = together(AGAIN) if all(AGAIN in chunk for chunk in chunks) else None
    engine = statistics.mode(chunk[OURS]["engine"].split("; ")[0] for chunk in chunks).split(", ")
    parts = dict.fromkeys(
        part.split(":")[0] for chunk in chunks for part in chunk[OURS]["engine"].split("; ") if ": " in part
    )
    rough = f"; in bfloat16: {', '.join(parts)}" if parts else ""
    cells = [
        chunks[0]["net"], ", ".join(part for part in engine if "times" not in part) + rough, str(len(found)),
        accuracy(together(OURS, "clean")), accuracy(reference), "-" if again is None else accuracy(again),
        accuracy(found), equal(found), "-" if again is None else equal(again),
        f"{total:.1f} ({min(ratios):.1f} - {max(ratios):.1f})",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def described(run: Path, arguments: argparse.Namespace) -> str:
    card = json.loads((run / "student.json").read_text())
    data = Path(card["data"]).name if ":" in card["data"] else card["data"]
    eps = arguments.eps or card["threat"]["eps"]
    return f"{card['model']} {options(card)}on {data}, {card['threat']['norm']} {fraction(eps)}"


def options(card: dict[str, Any]) -> str:
    return "".join(f"{name} {value} " for name, value in card["options"].items() if name in ("width", "depth"))


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    shared = {"threads": arguments.threads, "processes": arguments.processes, "load": round(os.getloadavg()[0], 1)}
    return {"cpu": cpu_name(), "torch": torch.__version__, "rkd": rkd.__version__} | shared


if __name__ == "__main__":
    main()
