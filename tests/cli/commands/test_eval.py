"""`rkd eval` of runs and weights files."""

from __future__ import annotations

import json
import math
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rkd.engine import backends
from rkd.evaluation.transfer import identity
from rkd.plugins.attacks.pgd import Pgd
from rkd.registry.catalog import load_catalog
from rkd.registry.recipes import toml
from rkd.workflow.nets import load_run


@pytest.mark.slow
def test_a_run_gives_its_numbers_again(rkd, finished) -> None:
    run, first = finished
    said = rkd("eval", run, "--json")
    assert said.exit_code == 0, said.stderr
    student = first.json["student"]
    for key in ("samples", "clean", "attacks", "w_robust", "nrr", "worst_case", "interval_95", "warnings"):
        assert said.json[key] == student[key], key
    assert said.json["threat"]["eps"] == pytest.approx(38 / 255)
    assert said.json["parameters"] == student["parameters"]


@pytest.mark.slow
def test_table(rkd, finished) -> None:
    run, _ = finished
    said = rkd("eval", run)
    lines = said.stdout.splitlines()
    assert lines[0] == f"{run}: small-cnn, 2,182 parameters"
    assert lines[1] == "50 test images of digits, Linf eps 38/255; values in %"
    assert [line.split("  ")[0] for line in lines[3:]] == ["clean", "FGSM", "PGD", "worst case"]
    assert re.search(r"PGD +\d+\.\d +\d+\.\d - \d+\.\d +\d+\.\d +\d+\.\d", lines[5])


@pytest.mark.slow
def test_other_attacks_radius_and_images(rkd, finished) -> None:
    run, _ = finished
    words = ("eval", run, "--attack", "pgd-sat,cw", "--attack", "fgsm", "--eps", "8/255", "--limit", "80", "--json")
    found = rkd(*words, "--set", "evaluate.options.pgd-sat.steps=3").json
    assert list(found["attacks"]) == ["pgd-sat", "cw", "fgsm"]
    assert found["threat"] == {"norm": "Linf", "eps": pytest.approx(8 / 255), "step_size": pytest.approx(2 / 255)}
    assert found["samples"] == 80


def test_options_by_the_attacks_name_or_for_all(rkd, finished) -> None:
    run, _ = finished
    words = ("eval", run, "--attack", "pgd,fgsm,pgd-sat", "--limit", "8", "--checks", "off", "--json")
    said = rkd(*words, "--set", "attack.pgd.steps=3", "--set", "attack.steps=2")
    searches = said.json["searches"]
    assert [searches[name]["options"]["steps"] for name in ("pgd", "pgd-sat")] == [3, 2]
    assert "attack.steps=2 is for pgd, pgd-sat; for one of them type attack.NAME.steps=2" in said.stderr


@pytest.mark.slow
def test_clean_alone(rkd, finished) -> None:
    run, _ = finished
    assert rkd("eval", run, "--attack", "none", "--json").json["attacks"] == {}


@pytest.mark.slow
def test_it_leaves_the_run_as_it_was(rkd, finished) -> None:
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    rkd("eval", run, "--seed", "5")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def weights(finished) -> Path:
    """A student's weights as other people's scripts write them."""
    run, _ = finished
    state = load_file(run / "student.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "weights.pt")
    return Path("weights.pt")


FILE = ("--model", "small-cnn", "--dataset", "digits", "--set", "model.width=4", "--attack", "fgsm,pgd")


@pytest.mark.slow
def test_a_weights_file(rkd, finished, weights: Path) -> None:
    _, first = finished
    said = rkd("eval", weights, *FILE, "--normalize", "data", "--limit", "50", "--json")
    assert said.exit_code == 0, said.stderr
    assert said.json["attacks"] == first.json["student"]["attacks"]
    assert "normalize" not in said.stderr
    assert said.json["normalization"]["choice"] == "data"
    said = rkd("eval", weights, *FILE, "--json")
    assert said.exit_code == 2 and "cannot be told: of 512 training images" in said.stderr, "the net is a poor one"
    assert "type --normalize=none, or --normalize=data" in said.stderr


def test_a_weights_file_does_not_say_what_it_is(rkd, weights: Path) -> None:
    said = rkd("eval", weights)
    assert said.exit_code == 2
    assert "give --model and --dataset" in said.stderr


def refused(rkd, *words: str | Path) -> str:
    said = rkd("eval", *words)
    assert said.exit_code == 2
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    return said.stderr


def test_weights_of_another_architecture(rkd, weights: Path) -> None:
    said = refused(rkd, weights, "--model", "resnet20", "--dataset", "digits")
    assert "weights.pt (for resnet20) does not fit this architecture" in said
    said = refused(rkd, weights, "--model", "small-cnn", "--dataset", "digits")
    assert "(4, 1, 3, 3) in the file and (16, 1, 3, 3) in the net" in said


@pytest.mark.parametrize("name", ["junk.pt", "junk.safetensors"])
def test_a_corrupt_file(rkd, name: str) -> None:
    Path(name).write_bytes(b"junk" * 100)
    assert f"{name} is not a readable" in refused(rkd, name, "--model", "resnet20", "--dataset", "digits")


def test_no_file(rkd) -> None:
    assert refused(rkd, "no.pt", "--model", "mlp", "--dataset", "digits") == "error: there is no weights file no.pt\n"
    assert "nothing is not a run's folder" in refused(rkd, "nothing")


@pytest.mark.slow
def test_an_unfinished_run(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "config.toml").write_text((run / "config.toml").read_text())
    assert "did not finish" in refused(rkd, folder)


def test_a_damaged_run(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in ("config.toml", "student.json"):
        (folder / name).write_text((run / name).read_text())
    (folder / "student.safetensors").write_bytes((run / "student.safetensors").read_bytes()[:200])
    assert "is not a readable safetensors file" in refused(rkd, folder)
    (folder / "student.json").write_text(json.dumps({"model": "small-cnn"}))
    assert "is not a student's card" in refused(rkd, folder)


def test_data_of_another_shape(rkd, finished) -> None:
    run, _ = finished
    images, labels = np.full((40, 1, 12, 12), 200, np.uint8), np.arange(40) % 5
    np.savez("other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    said = refused(rkd, run, "--dataset", "npz:other.npz")
    assert "is for images (1, 8, 8) and 10 classes; data set 'npz:other.npz' has (1, 12, 12) and 5" in said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--eps", "-1"), "--eps: Input should be greater than 0"),
        (("--norm", "L2", "--eps", "-1"), "--eps: Input should be greater than 0"),
        (("--eps", "8"), "--eps: images lie in [0, 1]"),
        (("--limit", "100000"), "--limit: 100000 is above"),
        (("--batch-size", "0"), "--batch-size: Input should be greater"),
        (("--curve", "0"), "--curve: Input should be greater than 0"),
        (("--seed", "-1"), "--seed: Input should be greater"),
        (("--attack", "none,pgd"), "--attack none stands alone"),
        (("--eps", "8"), "at most 1, got 8"),
        (("--eps", "much"), "expected a number such as 0.3 or 8/255"),
        (("--limit", "100000"), "above the 359 test images"),
        (("--limit", "0"), "--limit: Input should be greater than or equal to 1"),
        (("--attack", "pgdd"), "there is no attack 'pgdd'. Did you mean pgd"),
        (("--attack", "PGD-SAT"), "there is no attack 'PGD-SAT'. Did you mean pgd-sat"),
        (("--set", "evaluate.options.pgd.stpes=1"), "there is no such option. Did you mean steps"),
        (("--set", "attack.stpes=1"), "attack.stpes: no attack of this evaluation has such an option (fgsm, pgd)"),
        (("--set", "attack.cw.steps=1"), "evaluate.options.cw: 'cw' is not among evaluate.attacks"),
        (("--set", "loss.T=1"), "--set loss: here there is evaluate.options.NAME.KEY, model.KEY and data.KEY"),
        (("--model", "mlp"), "--model, --normalize, --strip and --classes belong to weights files"),
    ],
)
def test_mistakes(rkd, finished, words: tuple[str, ...], problem: str) -> None:
    run, _ = finished
    assert problem in refused(rkd, run, *words)


def test_a_setting_that_nobody_typed_keeps_its_name(rkd, finished, tmp_path: Path) -> None:
    run, _ = finished
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = (other / "config.toml").read_text()
    assert "limit = 50\n" in text
    (other / "config.toml").write_text(text.replace("limit = 50\n", "limit = 5000\n"))
    assert "evaluate.limit: 5000 is above" in refused(rkd, other, "--eps", "8/255")


# Beyond the table


@pytest.mark.slow
def test_everything_that_can_be_asked(rkd, finished) -> None:
    run, _ = finished
    words = ("eval", run, "--rounded", "--curve", "--per-class", "--corruptions", "--transfer", run, "--limit", "30")
    said = rkd(*words, "--attack", "fgsm,pgd", "--checks", "off")
    assert said.exit_code == 0, said.stderr
    for text in (
        "8 bits", "worst class", "ECE", "Accuracy in % by class", "Accuracy in % under PGD against eps (Linf)",
        "19/255", "9.5/255", "rkd's own corruptions, not CIFAR-10-C", "gaussian-noise",
        "made by PGD on the net of the row",
    ):  # fmt: skip
        assert text in said.stdout, text
    assert "30 images: the worst case lies between" in said.stderr


@pytest.mark.slow
def test_the_json_of_all_that(rkd, finished) -> None:
    run, _ = finished
    found = rkd("eval", run, "--attack", "pgd", "--rounded", "--curve", "19/255,38/255", "--limit", "40", "--json").json
    assert found["curve"]["attack"] == "pgd"
    assert found["curve"]["eps"] == pytest.approx([0, 19 / 255, 38 / 255])
    assert found["curve"]["accuracy"][-1] == found["attacks"]["pgd"], "the same seed and images: the same number"
    assert 0 <= found["rounded"]["pgd"] - found["attacks"]["pgd"] < 0.2
    assert found["checks"]["samples"] == 32
    assert len(found["per_class"]["clean"]) == 10
    assert found["worst_class"]["pgd"] == min(a for a in found["per_class"]["pgd"] if a is not None)
    search = found["searches"]["pgd"]
    assert search["implementation"] == "rkd.plugins.attacks.pgd.Pgd"
    assert search["options"]["steps"] == 10
    assert search["eps"] == pytest.approx(38 / 255)
    assert (search["forwards"], search["backwards"]) == (10 * search["attacked"], 10 * search["attacked"])
    assert search["fooled"] == round(40 * (found["clean"] - found["attacks"]["pgd"]))


@pytest.mark.slow
def test_the_worst_case_is_a_re_evaluation_of_the_images(rkd, finished) -> None:
    """Attacks outside the threat model are shown, and leave the worst case alone."""
    run, _ = finished
    words = ("eval", run, "--limit", "40", "--checks", "off", "--json")
    plain = rkd(*words, "--attack", "pgd").json
    more = rkd(*words, "--attack", "pgd,cw,jsma", "--set", "evaluate.options.cw.eps=1.0").json
    assert more["worst_case"] == plain["attacks"]["pgd"]
    assert more["attacks"]["cw"] < plain["attacks"]["pgd"]
    assert "not part of the worst case" in more["searches"]["cw"]["notes"][0]
    assert "keeps to no ball" in more["searches"]["jsma"]["notes"][0]
    said = rkd("eval", run, "--limit", "10", "--checks", "off", "--attack", "jsma")
    assert "JSMA: keeps to no ball: not part of the worst case" in said.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attacks", "drawn"),
    [
        ("cw-l2,fgsm,pgd", "pgd"), ("deepfool,fgsm", "fgsm"), ("cw-l2", "cw-l2"), ("fab-t,pgd", "pgd"),
        ("fab-t,fgsm", "fgsm"), ("fab-t", "fab-t"), ("noise,fgsm,pgd", "pgd"), ("fab-t,noise", "noise"),
    ],
)  # fmt: skip
def test_the_curve_is_of_an_attack_that_searches_in_a_ball(rkd, finished, attacks: str, drawn: str) -> None:
    run, _ = finished
    short = ("--set", "evaluate.options.cw-l2.steps=2") if "cw-l2" in attacks else ()
    said = rkd(
        "eval", run, "--attack", attacks, "--curve", "1/255", "--limit", "6", "--checks", "off", "--json", *short
    )
    assert said.exit_code == 0, said.stderr
    assert said.json["curve"]["attack"] == drawn


@pytest.mark.slow
def test_saved(rkd, finished) -> None:
    run, _ = finished
    said = rkd("eval", run, "--attack", "pgd", "--save", "kept", "--json")
    kept = json.loads(Path("kept/evaluation.json").read_text())
    assert kept == said.json
    images = load_file("kept/examples.safetensors")
    assert images["clean"].shape == images["adversarial"].shape == (16, 1, 8, 8)
    assert float((images["clean"] - images["adversarial"]).abs().max()) <= 38 / 255 + 1e-6
    assert len(kept["examples"]) == 16
    said = rkd("eval", run, "--attack", "pgd", "--save", "kept")
    assert said.exit_code == 2
    assert "kept exists already" in said.stderr


@pytest.mark.slow
def test_saved_says_of_which_training_it_is_a_draw(rkd, finished) -> None:
    """A run of another seed has the same key, one of other settings has not: `rkd compare` goes by it."""
    run, _ = finished
    for name, change in (("same", {"seed": 5}), ("other", {"epochs": 77})):
        copied = Path(name)
        shutil.copytree(run, copied)
        config = tomllib.loads((copied / "config.toml").read_text())
        (copied / "config.toml").write_text(toml(config | change))
    for net in (run, "same", "other"):
        words = ("--attack", "none", "--limit", "10", "--no-report", "--save", f"kept-{Path(net).name}")
        assert rkd("eval", net, *words).exit_code == 0
    kept = [f"kept-{name}" for name in (Path(run).name, "same", "other")]
    first, same, other = (json.loads(Path(name, "net.json").read_text())["trained"] for name in kept)
    assert first["settings"] == same["settings"] != other["settings"]
    assert (same["seed"], other["epochs"]) == (5, 77)
    found = rkd("compare", *kept, "--json").json
    assert [len(group["runs"]) for group in found["groups"]] == [2, 1]


@pytest.mark.slow
def test_saved_is_all_that_a_page_needs(rkd, finished) -> None:
    run, _ = finished
    words = ("--attack", "fgsm,pgd", "--curve", "--transfer", run, "--corruptions", "--limit", "30", "--checks", "off")
    said = rkd("eval", run, *words, "--seed", "7", "--save", "kept")
    assert said.exit_code == 0 and f"report: {Path('kept/report.html')}" in said.stderr
    settings = tomllib.loads(Path("kept/evaluation.toml").read_text())
    assert settings["seed"] == 7 and settings["data"] == {"name": "digits"}
    assert settings["threat"]["eps"] == pytest.approx(38 / 255)
    rules = settings["evaluate"]
    assert (rules["attacks"], rules["limit"], rules["checks"]) == (["fgsm", "pgd"], 30, "off")
    assert (rules["corruptions"], rules["transfer"]) == ("own", [str(run)])
    card = json.loads(Path("kept/net.json").read_text())
    assert (card["name"], card["source"], card["model"], card["options"]["width"]) == (
        "first",
        str(run),
        "small-cnn",
        4,
    )
    assert card["weights"] == identity(load_run(run, load_catalog()).net)
    assert card["trained"]["method"] == "pgd-at" and card["trained"]["epochs"] == 1
    manifest = json.loads(Path("kept/manifest.json").read_text())
    assert manifest["command"][:2] == ["rkd", "eval"] and "torch" in manifest["versions"]
    assert manifest["data"]["fingerprint"] == json.loads((run / "manifest.json").read_text())["data"]["fingerprint"]
    page = Path("kept/report.html").read_text()
    for words in ("What was evaluated", "Transfer", "Corrupted images", "Accuracy against eps", "Gallery", "madry2018"):
        assert words in page, words
    Path("kept/report.html").unlink()
    assert rkd("report", "kept").stderr == "" and Path("kept/report.html").read_text() == page
    said = rkd("compare", run, "kept", "--json").json
    assert [(one["run"], list(one["attacks"])) for one in said["runs"]] == [
        ("first", ["fgsm", "pgd"]), ("first (kept)", ["fgsm", "pgd"])
    ]  # fmt: skip
    assert "is not a run's folder: it is an evaluation saved by `rkd eval`" in refused(rkd, "kept")
    assert "papernot" in rkd("cite", "kept").stdout or "madry2018" in rkd("cite", "kept").stdout


@pytest.mark.slow
def test_saved_of_a_weights_file_without_a_page(rkd, weights: Path) -> None:
    said = rkd("eval", weights, *FILE, "--normalize", "data", "--limit", "20", "--save", "kept", "--no-report")
    assert said.exit_code == 0 and not Path("kept/report.html").exists()
    card = json.loads(Path("kept/net.json").read_text())
    assert (card["name"], card["options"], card["trained"]) == ("weights.pt", {"width": 4}, {})
    assert rkd("report", "kept").exit_code == 0
    assert "weights.pt" in rkd("compare", "kept").stdout


def test_a_page_that_fails_leaves_the_result(rkd, finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("rkd.report.build_report", broken)
    run, _ = finished
    said = rkd("eval", run, "--attack", "none", "--checks", "off", "--save", "kept", "--json")
    assert said.exit_code == 0 and said.json["clean"] and "`rkd report kept` tries again" in said.stderr


@pytest.mark.slow
def test_nothing_is_left_in_the_cache(rkd, finished, cache: Path) -> None:
    run, _ = finished
    rkd("eval", run, "--attack", "pgd", "--limit", "30")
    assert not (cache / "evaluations").exists()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(rkd, finished, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = finished
    words = ("eval", run, "--attack", "fgsm,pgd", "--batch-size", "20", "--checks", "off", "--json")
    whole = rkd(*words).json
    pgd = math.ceil(whole["searches"]["pgd"]["attacked"] / 20)
    calls, search = [], Pgd.__call__

    def counted(self, x, target):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(self, x, target)

    monkeypatch.setattr(Pgd, "__call__", counted)
    said = rkd(*words)
    assert said.exit_code == 130
    assert list((cache / "evaluations").rglob("*.safetensors"))
    before = len(calls)
    again = rkd(*words).json
    assert {**again, "seconds": 0, "searches": 0} == {**whole, "seconds": 0, "searches": 0}
    assert len(calls) - before == 1 + pgd - 2, "a rehearsal, and what was not done yet"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--curve", "much"), "expected a number such as 0.3 or 8/255"),
        (("--curve", "8"), "at most 1"),
        (("--curve", "--attack", "none"), "--curve needs an attack"),
        (("--rounded", "--attack", "none"), "--rounded needs an attack"),
        (("--transfer", "{run}", "--attack", "none"), "--transfer needs an attack"),
        (("--attack", ""), "--attack names no attack; for clean accuracy alone type --attack none"),
        (("--attack", "jsma", "--curve"), "needs an attack that keeps to a ball; there is jsma"),
        (("--corruptions", "nowhere"), "there is no folder nowhere"),
        (("--transfer", "nothing"), "nothing is not a run's folder"),
        (("--checks", "some"), "'some' is not one of"),
    ],
)
def test_further_mistakes(rkd, finished, words: tuple[str, ...], problem: str) -> None:
    run, _ = finished
    assert problem in refused(rkd, run, "--limit", "30", *(word.format(run=run) for word in words))


@pytest.mark.slow
def test_a_killed_evaluation_may_be_saved_in_its_folder_the_next_time(
    rkd, finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self, x, target):
        raise KeyboardInterrupt

    run, _ = finished
    kept = tmp_path / "kept"
    words = ("eval", run, "--attack", "pgd", "--limit", "20", "--checks", "off", "--save", kept, "--no-report")
    with monkeypatch.context() as patch:
        patch.setattr(Pgd, "__call__", killed)
        assert rkd(*words).exit_code == 130
    assert rkd(*words).exit_code == 0
    assert (kept / "evaluation.json").is_file()
    assert f"{kept} exists already" in rkd(*words).stderr


@pytest.mark.parametrize("engine", ["auto", "bfloat16", "plain"])
def test_how_the_net_runs_in_a_search_can_be_said(rkd, finished, engine: str, monkeypatch) -> None:
    """And is told of the result."""
    asked: list[str] = []
    rule = backends.rule
    monkeypatch.setattr("rkd.engine.accelerator.rule", lambda name, *more: asked.append(name) or rule(name, *more))
    run, _ = finished
    words = ("--attack", "apgd-ce", "--set", "evaluate.options.apgd-ce.steps=2", "--limit", "8", "--checks", "off")
    said = rkd("eval", run, *words, "--engine", engine, "--json")
    assert said.exit_code == 0, said.stderr
    assert set(asked) == ({engine} if engine != "plain" else set())
    ran = json.loads(said.stdout)["searches"]["apgd-ce"]["engine"]
    assert (ran == "plain") is (engine == "plain")


@pytest.mark.slow
def test_the_reference_without_its_extra_is_one_message(rkd, finished, monkeypatch) -> None:
    monkeypatch.setattr("rkd.plugins.attacks.autoattack.find_spec", lambda name: None)
    run, _ = finished
    said = rkd("eval", run, "--attack", "autoattack-reference")
    assert said.exit_code == 2 and not said.stdout
    assert said.stderr.count("\n") == 1 and "pip install 'rkd-toolkit[reference]'" in said.stderr
    assert "autoattack-reference" in rkd("list-plugins").stdout
    assert "rkd-toolkit[reference]" in rkd("info", "autoattack-reference").stdout


@pytest.mark.slow
def test_some_classes_of_a_weights_file(rkd) -> None:
    model = ("--model", "small-cnn", "--set", "model.width=4", "--dataset", "digits", "--normalize", "data")
    arguments = (*model, "--limit", "50", "--attack", "none", "--checks", "off", "--json")
    net = load_catalog().create("model", "small-cnn", {"width": 4})((1, 8, 8), 10).state_dict()
    torch.save(net, "w.pt")
    plain = rkd("eval", "w.pt", *arguments).json
    last = [name for name in net if net[name].shape[:1] == (10,)]
    # Fourteen outputs, of which the first four are for classes that the data lacks; the others stand backwards.
    torch.save({name: torch.cat([value[:4] * 0 + 9, value.flip(0)]) if name in last else value
                for name, value in net.items()}, "more.pt")  # fmt: skip
    refused = rkd("eval", "more.pt", *arguments)
    assert refused.exit_code == 2 and "--classes of rkd eval" in refused.stderr
    said = rkd("eval", "more.pt", *arguments, "--classes", "13,12,11,10,9,8,7,6,5,4")
    assert said.exit_code == 0, said.stderr
    assert said.json["clean"] == plain["clean"]
    for wrong, message in (("1,x", "--classes.classes.1"), ("1,1", "named twice"), ("1,99", "no output 99")):
        refused = rkd("eval", "more.pt", *arguments, "--classes", wrong)
        assert refused.exit_code == 2 and message in refused.stderr, refused.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("none.onnx", "--dataset", "digits"), "there is no file none.onnx"),
        (("net.onnx",), "net.onnx does not say what it is for: give --dataset, or --source RUN"),
        (("net.onnx", "--dataset", "digits", "--model", "mlp"), "--model belong to weights files"),
        (("RUN", "--source", "RUN"), "--source belongs to ONNX files"),
        (("net.onnx", "--dataset", "digits", "--attack", "none"), "onnxruntime cannot read net.onnx"),
    ],
)
def test_onnx_files(words: tuple, problem: str, rkd, finished: tuple) -> None:
    pytest.importorskip("onnxruntime")
    Path("net.onnx").write_text("no model")
    said = rkd("eval", *(finished[0] if word == "RUN" else word for word in words))
    assert said.exit_code == 2 and problem in said.stderr and "Traceback" not in said.stderr
