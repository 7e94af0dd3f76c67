"""The model card of an export: the README.md that Hugging Face shows, with the attacker and the limits in it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..storage.text import attack_name, fraction

COLUMNS = {
    "clean": "clean",
    "transferred": "transferred",
    "straight_through": "straight through",
    "black_box": "black-box",
    "worst_case": "worst case",
}
"""Accuracies of an artefact, and how they are headed."""

LIMITS = (
    "Robustness was measured against the attacks named above and in this ball alone; another attacker, another norm or "
    "a larger radius may do better.",
    "The numbers hold for images like those of the data set; nothing was measured on others.",
    "Latency depends on the machine; it is for comparing the rows with one another.",
)


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown with the metadata of the Hugging Face hub, of what export.json holds."""
    sections = [_head(facts), _intro(facts), _table(facts), _attacks(facts), _usage(facts), _training(facts),
                _limits(facts), _files(facts)]  # fmt: skip
    return "\n".join(line for section in sections for line in [*section, ""]).rstrip() + "\n"


def _head(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "---"
    yield f"library_name: {'timm' if facts['to'] == 'timm' else 'onnx' if facts['to'] == 'onnx' else 'pytorch'}"
    yield "pipeline_tag: image-classification"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("adversarial-robustness", "knowledge-distillation", "rkd"))
    yield "---"


def _intro(facts: Mapping[str, Any]) -> Iterator[str]:
    threat, size = facts["threat"], facts["rows"][0]["size"]
    yield f"# {facts['run']}"
    yield ""
    yield (
        f"A {facts['model']} with {size['parameters']:,} parameters, trained on {facts['data']['name']} to stay right "
        f"under attack: {threat['norm']}, eps = {fraction(threat['eps'])} of images in [0, 1]."
    )


def _table(facts: Mapping[str, Any]) -> Iterator[str]:
    rows = facts["rows"]
    columns = [name for name in COLUMNS if any(name in row["accuracy"] for row in rows)]
    whole = rows[0]["whole_test_set"]["samples"]
    yield "## Accuracy"
    yield ""
    yield (
        f"In %, on {rows[0]['samples']:,} test images, with 95 % intervals; the second column on all {whole:,}. "
        "`float` is the net that was trained; the rows below are the files here as they were read back and run."
    )
    yield ""
    heads = ["", f"clean, all {whole:,}", *(COLUMNS[name] for name in columns), "size", "MACs", "latency"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        accuracies = [_percent(row, name) for name in columns]
        cells = [row["name"], f"{100 * row['whole_test_set']['clean']:.2f}", *accuracies, *_size(row["size"])]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        "transferred: images made on the float net; straight through: the file's own logits, with the float net's "
        "gradients; black-box: without gradients, on the file alone; worst case: right clean and under all of these. "
        f"Latency: median and quartiles in ms, one image, one thread, {rows[0]['size']['latency']['runs']} runs."
    )
    if facts["changes"]:
        yield ""
        yield from (f"- {text}" for text in facts["changes"])


def _percent(row: Mapping[str, Any], name: str) -> str:
    if name not in row["accuracy"]:
        return ""
    low, high = row["interval_95"][name]
    return f"{100 * row['accuracy'][name]:.2f} ({100 * low:.1f} - {100 * high:.1f})"


def _size(size: Mapping[str, Any]) -> list[str]:
    latency = size["latency"]
    low, high = latency["quartiles"]
    return [
        f"{size['bytes']:,} B",
        f"{size['macs']:,}",
        f"{latency['median']:.3f} ({low:.3f} - {high:.3f})",
    ]


def _attacks(facts: Mapping[str, Any]) -> Iterator[str]:
    row = facts["rows"][-1]
    if not row["searches"]:
        return
    yield "## Attacks"
    yield ""
    yield "| attack | accuracy in % | implementation | options | objective | ball |"
    yield "|---|---|---|---|---|---|"
    for name, search in row["searches"].items():
        options = ", ".join([*(f"{key}={value}" for key, value in search["options"].items()), *search["notes"]])
        ball = f"{search['norm']} {fraction(search['eps'])}" if search["eps"] is not None else "none"
        accuracy = f"{100 * row['attacks'][name]:.2f}"
        cells = (attack_name(name), accuracy, f"`{search['implementation']}`", options, search["objective"], ball)
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _usage(facts: Mapping[str, Any]) -> Iterator[str]:
    row = facts["rows"][-1]
    channels, height, width = facts["shape"]
    yield "## Use"
    yield ""
    yield "```python"
    yield row["usage"]
    yield "```"
    yield ""
    yield f"Images: float32 of {channels} x {height} x {width} in [0, 1], in the order channels, height, width."
    yield f"Classes, in the order of the logits: {', '.join(facts['classes'][:1000])}."
    for entry in facts["rows"][1:]:
        yield ""
        yield " ".join([
            f"`{', '.join(entry['files'])}` was read back with {entry['runtime']}; its logits differ from the net's by "
            f"at most {entry['difference']:.1e} of the largest.", *entry["about"],
        ])  # fmt: skip


def _training(facts: Mapping[str, Any]) -> Iterator[str]:
    loss, own = facts["loss"], facts["own_evaluation"]
    yield "## Training"
    yield ""
    options = ", ".join(f"{key}={value}" for key, value in loss.items() if key != "name")
    method = f"{loss.get('name')} ({options})" if options else str(loss.get("name"))
    yield f"- Method: {method}, {facts['epochs']} epochs, seed {facts['seed']}"
    yield f"- Data: {facts['data']['name']}, fingerprint {facts['data']['fingerprint']}"
    mean, std = (", ".join(f"{value:.6g}" for value in facts[key]) for key in ("mean", "std"))
    yield f"- Images are normalised with mean {mean} and standard deviation {std}"
    for teacher in facts["teachers"]:
        worst = teacher["worst_case"]
        robust = f", worst case {100 * worst:.2f} %" if worst is not None else ""
        large = teacher["size"].get("parameters")
        parameters = f", {large:,} parameters" if large else ""
        yield (
            f"- {teacher['role']} teacher: {teacher['model']}{parameters}; "
            f"clean {100 * teacher['clean']:.2f} %{robust} on {teacher['samples']:,} images"
        )
    if own.get("attacks"):
        said = ", ".join(f"{attack_name(name)} {100 * value:.2f} %" for name, value in own["attacks"].items())
        yield f"- At the end of the training, on {own['samples']:,} images: clean {100 * own['clean']:.2f} %, {said}"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"- Exported with {versions}"


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield from (f"- {text}" for text in LIMITS)


def _files(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| file | sha256 |"
    yield "|---|---|"
    digests: Sequence[tuple[str, str]] = list(facts["sha256"].items())
    yield from (f"| {name} | `{digest}` |" for name, digest in digests)
