"""`rkd.evaluate` of any module: what comes out, what is left alone, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rkd
from rkd.testing import tiny_batch, tiny_net, untouched

from .workflow.objects import SHORT, Taught, halves, small

EPS = 8 / 255


def data(net: nn.Module, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x = tiny_batch(count, seed=4).x
    with torch.no_grad():
        return x, net.eval()(x).argmax(1)


def test_any_module() -> None:
    net = tiny_net()
    pair = data(net)
    with untouched(net):
        result = rkd.evaluate(net, pair, ["fgsm", "pgd-sat"], eps=EPS, rounded=True)
    found = result.summary()
    assert found["clean"] == 1
    assert 0 < found["attacks"]["pgd-sat"] <= found["attacks"]["fgsm"] < 1
    assert abs(found["rounded"]["pgd-sat"] - found["attacks"]["pgd-sat"]) < 0.1
    assert [w["check"] for w in found["warnings"]] == ["few-samples"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_precision(dtype: torch.dtype) -> None:
    """The module gets images of its own type, the attack sees float32."""
    net = tiny_net()
    pair = data(net)
    expected = rkd.evaluate(net, pair, ["pgd"], eps=EPS).accuracy("pgd")

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net().to(dtype)

        def forward(self, x):
            assert x.dtype == dtype
            return self.net.arch((x - self.net.mean) / self.net.std)

    strict = Strict().eval()
    with untouched(strict):
        result = rkd.evaluate(strict, pair, ["pgd"], eps=EPS)
    assert result.accuracy("pgd") == pytest.approx(expected, abs=0 if dtype is torch.float64 else 0.15)


@pytest.mark.slow
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_under_callers_that_want_no_gradients(around) -> None:
    net = tiny_net()
    pair = data(net)
    expected = rkd.evaluate(net, pair, ["pgd"], eps=EPS, checks="full")
    with around():
        result = rkd.evaluate(net, pair, ["pgd"], eps=EPS, checks="full")
    assert torch.equal(result.attacks["pgd"], expected.attacks["pgd"])
    assert result.warnings == expected.warnings


@pytest.mark.slow
def test_full_checks_flag_a_defended_net() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x):
            return self.net((x * 32).round() / 32)

    net = Rounded().eval()
    checks = {doubt.check for doubt in rkd.evaluate(net, data(net), ["pgd"], eps=EPS, checks="full").warnings}
    assert {"zero-gradient", "no-effect", "unbounded"} <= checks
    assert not {d.check for d in rkd.evaluate(net, data(net), ["pgd"], eps=EPS, checks="off").warnings} & {
        "zero-gradient", "unbounded",
    }  # fmt: skip


ITERATED = ["pgd-sat", "cw", "apgd-ce", "apgd-t", "fab-t"]


class Grey(nn.Module):
    """Two classes by the mean grey: no image of `greys` falls at a radius below 1/100."""

    def forward(self, x):
        grey = 60 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack((-grey, grey), 1)


def greys() -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(24) % 2
    return 0.5 + 0.02 * (2 * y - 1).view(-1, 1, 1, 1) + 0.1 * (tiny_batch(24, seed=3).x - 0.5), y


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.01 / 255, 1 / 255])
def test_a_radius_at_which_nothing_falls(eps: float) -> None:
    """No reproach for a sound net; a net that rounds, or whose softmax is saturated, still gets it."""

    class Rounded(Grey):
        def forward(self, x):
            return super().forward((x * 255).round() / 255)

    class Saturated(Grey):
        def forward(self, x):
            return 1e4 * super().forward(x)

    def silent(net: nn.Module) -> set[str]:
        result = rkd.evaluate(net.eval(), greys(), ITERATED, eps=eps)
        assert all(result.accuracy(name) == 1 for name in ITERATED)
        return {doubt.finding.split()[0] for doubt in result.warnings if doubt.check == "no-effect"}

    assert silent(Grey()) == set()
    assert silent(Rounded()) == set(ITERATED)
    assert {"pgd-sat", "apgd-ce"} <= silent(Saturated())


def test_journal(tmp_path: Path) -> None:
    net = tiny_net()
    rkd.evaluate(net, data(net), ["pgd"], eps=EPS, journal=tmp_path / "j")
    assert not (tmp_path / "j").exists(), "taken away at the end"


def test_an_image_set_the_worst_case_is_right_about() -> None:
    """More attacks never raise it, and it is what all leave standing."""
    net = tiny_net()
    pair = data(net)
    names = ["fgsm", "pgd-sat", "cw", "apgd-dlr"]
    worst = [rkd.evaluate(net, pair, names[:k], eps=EPS, checks="off").worst() for k in range(1, 5)]
    for more, fewer in zip(worst[1:], worst[:-1], strict=True):
        assert not (more & ~fewer).any()
    assert int(worst[-1].sum()) <= int(worst[0].sum())


def test_progress_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for progress, lines in ((None, 0), (False, 0), (True, 1)):
        out = tmp_path / str(progress)
        rkd.train(student=small(), data=halves(), loss="ce", out=out, progress=progress, **SHORT)
        assert capsys.readouterr().err.count("epoch 2/2") == lines


class Wrong(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


X, Y = torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("net", "pair", "options", "problem"),
    [
        (None, (X, Y), {"eps": 0}, "eps must be above 0"),
        (None, (X, Y), {"eps": -0.1}, "eps must be above 0"),
        (None, (X, Y), {"eps": float("nan")}, "eps must be above 0"),
        (None, (X, Y), {"eps": "8/255"}, "eps must be a number, such as 8 / 255; got '8/255'"),
        (None, (X, Y), {"threat": rkd.ThreatModel("L3", 1.0)}, "one of Linf, L2, .*; got 'L3'"),  # type: ignore[arg-type]
        (None, (X, Y), {"eps": 8}, "a radius in Linf is at most 1, got 8; 8/255 is meant"),
        (None, (X, Y + 4), {}, "a label is 4, but the net knows 4 classes"),
        (None, (X, Y - 1), {}, "a label is -1"),
        (None, (X * 255, Y), {}, "must lie in \\[0, 1\\]"),
        (None, (X - 0.5, Y), {}, "must lie in \\[0, 1\\]"),
        (None, (X * float("nan"), Y), {}, "not numbers"),
        (None, (X[:0], Y[:0]), {}, "no images"),
        (None, (X, Y[:4]), {}, "8 images but 4 labels"),
        (None, (X, Y + 0.5), {}, "labels must be whole numbers"),
        (None, (X, torch.eye(8)), {}, "labels must be whole numbers \\(N,\\), got \\(8, 8\\); take labels.argmax"),
        (None, (X.tolist(), Y), {}, "expected a pair .* got Tensor"),
        (None, (X.permute(0, 2, 3, 1), Y), {}, "looks like \\(N, H, W, C\\); take images.permute"),
        (None, (X, Y.tolist()), {}, "labels must be a tensor, got list"),
        (None, X, {}, "a pair \\(images, labels\\) .*; got Tensor"),
        (None, (X, Y), {"limit": 9}, "between 1 and 8"),
        (None, (X, Y), {"limit": 2.5}, "between 1 and 8"),
        (None, (X, Y), {"batch_size": 0}, "batch size must be a whole number of at least 1, got 0"),
        (None, (X, Y), {"checks": "everything"}, "checks is one of off, quick, full; got 'everything'"),
        (None, (X, Y), {"engine": "fast"}, "engine is one of auto, bfloat16, plain; got 'fast'"),
        (None, (X, Y), {"device": "abacus"}, "the device 'abacus' cannot be used"),
        (None, (X, Y), {"attacks": ["pgdd"]}, "there is no attack 'pgdd'"),
        (None, (X, Y), {"attacks": None}, "attacks are names, .*for clean accuracy alone; got None"),
        (None, (X, Y), {"attacks": [1]}, "an attack is a name, a function .*; got int"),
        (None, (X, Y), {"attacks": {"mine": rkd.Batch}}, "got the class Batch: give an instance"),
        (None, (X, Y), {"attacks": lambda x, y: x}, "takes 2 arguments; of torchattacks"),
        (
            None,
            (X, Y),
            {"attacks": lambda model, x, y: x[:, :2]},
            r"must return images \(., 3, 8, 8\), it returned \(., 2,",
        ),
        (None, (X, Y), {"attacks": lambda model, x, y: x + 0.5}, "outside"),
        (None, (X, Y), {"attacks": ["pgd", "pgd"]}, "two attacks are called 'pgd'"),
        (None, (X, Y), {"threat": "Linf"}, "threat must be a ThreatModel.*got 'Linf'"),
        (None, (X, Y), {"eps": True}, "eps must be a number.*got True"),
        (lambda x: x, (X, Y), {}, "expected \\(8"),
        (lambda x: x.flatten(1)[:4, :5], (X, Y), {}, "returned \\(4, 5\\) for 8 images"),
        (lambda x: x.flatten(1)[:, :5] * float("nan"), (X, Y), {}, "NaN or infinity"),
        (lambda x: x.flatten(1).argmax(1), (X, Y), {}, "float tensor of logits, got torch.int64"),
        (lambda x: x.mean((1, 2, 3)), (X, Y), {}, "returned \\(8,\\) for 8 images; expected \\(8, K\\)"),
        (lambda x: x.mul_(0.5).flatten(1)[:, :5], (X.clone(), Y), {}, "changes the images .* x -= mean"),
        (lambda x: x.flatten(1)[:, :1], (X, Y + 1), {}, "but the net knows 1 class$"),
        (lambda x: x[:, :2] @ torch.rand(3, 3), (X, Y), {}, "cannot take images \\(3, 8, 8\\)"),
        (None, (X, Y), {"device": 3}, "device is a name.*got 3"),
        (None, (X, Y), {"journal": 3}, "journal is a folder's path; got 3"),
        (lambda x, more: x, (X, Y), {}, r"cannot take images \(3, 8, 8\): TypeError: .*'more'"),
    ],
)
def test_wrong_use_gets_one_clear_message(net, pair, options, problem: str) -> None:
    torch.manual_seed(0)  # a net that gets nothing right is not attacked
    module = tiny_net() if net is None else Wrong(net)
    with pytest.raises(rkd.RkdError, match=problem):
        rkd.evaluate(module, pair, **{"attacks": ["fgsm"], "eps": EPS, **options})


def test_settings_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(rkd.RkdError, match=r"settings are a table.*got list"):
        rkd.train(settings=[1], out=tmp_path / "it")  # type: ignore[arg-type]


def test_a_quantised_net_is_not_sent_to_attacks_by_gradients() -> None:
    class Quantised(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1)[:, :5] * 8).round()

    net = Quantised()
    found = rkd.evaluate(net, (X, net(X).argmax(1)), ["fgsm", "pgd"], eps=EPS, checks="full")
    doubts = {warning.check: warning.advice for warning in found.warnings}
    assert {"zero-gradient", "unbounded"} <= doubts.keys()
    assert not [check for check, advice in doubts.items() if "autoattack" in advice or "cw" in advice]


def test_a_component_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr("rkd.api.train_run", lambda table, *more, **settings: asked.append(table) or {})
    rkd.train(settings={"loss": "rslad", "student": "resnet8", "epochs": 2}, out=tmp_path / "it")
    rkd.train("digits-rslad", {"loss": {"name": "trades", "beta": 3}}, out=tmp_path / "it")
    assert asked[0] == {"loss": {"name": "rslad"}, "student": {"model": "resnet8"}, "epochs": 2}
    assert asked[1]["loss"] == {"name": "trades", "beta": 3}


def test_what_is_no_module() -> None:
    with pytest.raises(rkd.RkdError, match=r"must be a torch.nn.Module, got function"):
        rkd.evaluate(lambda x: x.flatten(1), (X, Y))  # type: ignore[arg-type]


def test_one_attack_by_its_name() -> None:
    assert list(rkd.evaluate(tiny_net(), (X, Y), "fgsm", checks="off").attacks) == ["fgsm"]


def test_whatever_holds_the_images() -> None:
    """The same numbers from tensors, arrays, a Dataset, a DataLoader and (train, test)."""
    net = tiny_net()
    x, y = data(net)
    pairs = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=7, shuffle=True)
    forms: list[object] = [(x, y), (x.numpy(), y.numpy()), pairs, loader, ((x, y), pairs)]
    found = [rkd.evaluate(net, form, "pgd", eps=EPS, checks="off").attacks["pgd"] for form in forms]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_registered_by_hand(tmp_path: Path) -> None:
    from dataclasses import dataclass

    @dataclass
    class Mine(Taught):
        alpha: float = 0.5

    try:
        assert rkd.register("loss", "mine", Mine) is Mine
        rkd.train(
            out=tmp_path / "it", student=small(), teachers={"robust": small()}, data=halves(),
            loss={"name": "mine", "alpha": 0.25}, **SHORT,
        )  # fmt: skip
        run = rkd.load_run(tmp_path / "it")
        assert run.config["loss"] == {"name": "mine", "alpha": 0.25}
        assert run.manifest["objects"]["loss"]["class"].endswith("Mine")
    finally:
        rkd.forget_registered()
    with pytest.raises(rkd.RkdError, match="there is no loss 'mine'"):
        rkd.train(out=tmp_path / "other", loss="mine", data=halves())
    with pytest.raises(rkd.RkdError, match="rkd-toolkit provides a loss 'trades' already"):
        rkd.register("loss", "trades", Taught)
    with pytest.raises(rkd.RkdError, match=r"there is no kind 'los'\. Did you mean loss"):
        rkd.register("los", "mine", Taught)
    with pytest.raises(rkd.RkdError, match="must name a class, a function or a Family"):
        rkd.register("loss", "mine", 3)


def test_a_plugin_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rkd.plugin import hookimpl, ops\n"
        "class Plain:\n"
        '    """Cross-entropy."""\n'
        "    roles = ()\n"
        "    def __call__(self, step):\n"
        "        return {'ce': ops.cross_entropy(step.student('clean'), step.y)}\n"
        "@hookimpl\n"
        "def rkd_losses():\n"
        "    return {'plain': Plain}\n"
    )
    rkd.train(out=tmp_path / "it", student=small(), data=halves(), loss="plain", plugins=[file], **SHORT)
    assert set(rkd.load_run(tmp_path / "it").manifest["objects"]) == {"student", "data"}
    with pytest.raises(rkd.RkdError, match="plugins is a list of files"):
        rkd.train(out=tmp_path / "other", loss="plain", plugins=str(file))
