"""Images made on another net: nets for which the answer is known, and where the other net comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from rkd import ops
from rkd.core.errors import ConfigError, Refused, RkdError
from rkd.core.interfaces import Attack
from rkd.core.random import forked
from rkd.core.step import AttackPlan
from rkd.core.traits import traits_of
from rkd.core.types import Batch, ThreatModel
from rkd.evaluation.evaluate import evaluate, rehearse
from rkd.evaluation.journal import Journal
from rkd.evaluation.samples import EvalSettings
from rkd.nets.net import Net
from rkd.plugins.attacks.pgd import Pgd
from rkd.plugins.attacks.transfer import Transfer
from rkd.plugins.objectives.ce import ce
from rkd.plugins.objectives.margin import Margin
from rkd.registry.catalog import Entry, load_catalog
from rkd.registry.hooks import Parts
from rkd.storage.runfolder import RunFolder
from rkd.storage.serialize import save_weights
from rkd.testing import LinearNet, tiny_batch, tiny_dataset, tiny_net, tiny_step, untouched
from rkd.testing.attack import run_attack
from rkd.training.dry_run import counting
from rkd.workflow.plan import Plan
from rkd.workflow.resolve import Resolver, create_attack, resolve

LINF = ThreatModel("Linf", 8 / 255, 2 / 255)
CATALOG = load_catalog()


@dataclass
class Given(Parts):
    """Parts that are already there."""

    source: nn.Module

    def net(self, reference: str, normalize: str = "auto", options: Mapping[str, Any] | None = None) -> nn.Module:
        return self.source

    def attack(self, name: str, options: Mapping[str, Any] | None = None) -> Attack:
        return CATALOG.create("attack", name, options)


def transfer(source: nn.Module, attack: str = "pgd-sat", **options: Any) -> Transfer:
    made = Transfer("another", attack, options)
    made.assemble(Given(source))
    return made


def seeing(channel: int, sign: int = 1) -> Net:
    """A linear net of two classes that looks at one channel alone."""
    net = tiny_net(LinearNet, classes=2, seed=channel)
    with torch.no_grad():
        net.arch.weight.mul_(sign)
        net.arch.bias.mul_(sign)
        net.arch.weight.view(2, 3, 8, 8)[:, [c for c in range(3) if c != channel]] = 0
    return net


def inner(net: nn.Module) -> Batch:
    """Images away from 0 and 1, that the net gets right."""
    batch = tiny_batch(16)
    x = 0.3 + 0.4 * batch.x
    with torch.no_grad():
        return replace(batch, x=x, y=net(x).argmax(1))


def margins(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return ops.margin(net(x), y)


def test_a_net_that_looks_elsewhere_does_not_notice() -> None:
    net, other = seeing(0), seeing(1)
    batch = inner(net)
    x_adv = run_attack(transfer(other, "fgsm"), net, batch, LINF)
    assert torch.equal(x_adv[:, 0], batch.x[:, 0])
    assert torch.equal(margins(net, x_adv, batch.y), margins(net, batch.x, batch.y))
    moved = (x_adv - batch.x)[:, 1].abs()
    assert torch.allclose(moved, torch.full_like(moved, LINF.eps), atol=1e-6), "but the images are another's worst"


def test_images_made_on_the_opposite_net_help() -> None:
    """Its logits fall where this net's rise: every pixel adds eps times its weight to the margin."""
    net, opposite = seeing(0), seeing(0, -1)
    batch = inner(net)
    x_adv = run_attack(transfer(opposite, "fgsm"), net, batch, LINF)
    gain = LINF.eps * (net.arch.weight[1] - net.arch.weight[0]).detach().abs().sum() / 0.25
    assert torch.allclose(margins(net, x_adv, batch.y) - margins(net, batch.x, batch.y), gain.expand(16), rtol=1e-4)


@pytest.mark.parametrize("name", ["pgd-sat", "cw-30", "mifgsm", "apgd-t", "square"])
def test_with_itself_as_the_source_it_is_the_attack(name: str) -> None:
    """Bit for bit: the same labels, ball, objective and random numbers."""
    net = tiny_net().eval()
    batch = inner(net) if name == "square" else tiny_batch(6)
    options = {"square": {"queries": 60}, "apgd-t": {"steps": 10}}.get(name, {"steps": 5})
    plain = CATALOG.create("attack", name, options)
    objective = CATALOG.create("objective", traits_of(plain).objective)
    made = transfer(net, name, **options)
    assert traits_of(made).objective == traits_of(plain).objective
    assert torch.equal(run_attack(made, net, batch, LINF, objective), run_attack(plain, net, batch, LINF, objective))


def test_the_attacked_net_is_asked_nothing_and_both_stay_as_they_are() -> None:
    net, source = tiny_net(), tiny_net(seed=1).train()
    for mode in ("eval", "train", "frozen"):
        with counting({"net": net, "source": source}) as counts, untouched(net, source, who=mode):
            run_attack(transfer(source, "pgd", steps=4, mode=mode), net, tiny_batch(), LINF)
        assert (counts["net"].forwards, counts["source"].forwards, counts["source"].backwards) == (0, 4, 4)


def test_dropout_of_the_source_leaves_the_global_generator_alone() -> None:
    source = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    attack = transfer(source, "pgd", steps=2, mode="train")
    with untouched(source):
        first, again = (run_attack(attack, tiny_net(), tiny_batch(), LINF) for _ in range(2))
    assert torch.equal(first, again)


def test_a_teachers_objective_is_about_the_source() -> None:
    """KL between teacher and attacked net: on the source, with the step's own teacher."""
    net, source = tiny_net(), tiny_net(seed=1)
    objective = CATALOG.create("objective", "kl-teacher")
    made, plain = transfer(source, "pgd", steps=3), Pgd(steps=3)
    steps = [
        tiny_step(net=attacked, roles=["robust"], attacks={"adv": AttackPlan(attack, objective)})
        for attacked, attack in ((net, made), (source, plain))
    ]
    assert torch.equal(steps[0].image("adv"), steps[1].image("adv"))
    assert steps[0].used.roles == {"robust"}


def test_without_its_parts_it_refuses() -> None:
    with pytest.raises(Refused, match="transfer has no source"):
        run_attack(Transfer("runs/other"), tiny_net(), tiny_batch())
    with pytest.raises(RkdError, match=r"attack\.transfer\.source=RUN"):
        Transfer().assemble(Given(tiny_net()))


def test_a_rehearsal_stops_the_search_on_the_other_net() -> None:
    net, source, data = tiny_net(), tiny_net(seed=1), tiny_dataset()
    plans = {"transfer": AttackPlan(transfer(source, "pgd", steps=1000), ce)}
    with counting({"net": net, "source": source}) as counts:
        rehearse(net, data.train, plans, EvalSettings(threat=LINF))
    assert counts["net"].forwards == 0 and counts["source"].forwards == 2


def test_what_the_evaluation_says_of_it() -> None:
    net, data = tiny_net(), tiny_dataset()
    plans = {"transfer": AttackPlan(transfer(tiny_net(seed=1), "pgd", steps=2, eps=16 / 255), ce)}
    rehearse(net, data.train, plans, EvalSettings(threat=LINF))
    about = evaluate(net, data.test, plans, EvalSettings(threat=LINF)).summary()["searches"]["transfer"]
    assert about["black_box"]
    assert about["eps"] == pytest.approx(16 / 255), "the search's own ball"
    other = {"transfer": AttackPlan(transfer(tiny_net(seed=2), "pgd", steps=2, eps=16 / 255), ce)}
    again = evaluate(net, data.test, other, EvalSettings(threat=LINF)).summary()["searches"]["transfer"]
    assert about["notes"][0].startswith("made on another (weights ")
    assert about["notes"][0].endswith(f") by pgd steps=2 eps={16 / 255}")
    assert about["notes"] != again["notes"], "other weights are another attack"
    assert not traits_of(transfer(tiny_net(), "jsma")).bounded
    assert traits_of(transfer(tiny_net(), "fab-t")).seeks_nearest
    assert not traits_of(transfer(tiny_net(), "pgd")).seeks_nearest


def test_questions_to_the_source_are_counted_apart(tmp_path: Path) -> None:
    """As many as the source runs on, and none to the attacked net; also where a journal remembers them."""
    net, source, data = tiny_net().eval(), tiny_net(seed=1).eval(), tiny_dataset()
    plans = {
        "transfer": AttackPlan(transfer(source, "pgd", steps=3), ce),
        "apgd": AttackPlan(transfer(source, "apgd-t", steps=3), ce),
        "pgd": AttackPlan(Pgd(steps=3), ce),
    }
    with through(source) as counted:
        found = evaluate(net, data.test, plans, EvalSettings(threat=LINF, batch_size=7, journal=Journal(tmp_path)))
    searches = found.summary()["searches"]
    right = int(found.clean.sum())
    assert right > 0
    for name in ("transfer", "apgd"):
        assert (searches[name]["forwards"], searches[name]["backwards"]) == (0, 0)
    assert (searches["transfer"]["other_forwards"], searches["transfer"]["other_backwards"]) == (3 * right, 3 * right)
    assert (searches["pgd"]["forwards"], searches["pgd"]["backwards"]) == (3 * right, 3 * right)
    assert "other_forwards" not in searches["pgd"]
    assert counted[0] == 3 * right + searches["apgd"]["other_forwards"]
    again = evaluate(net, data.test, plans, EvalSettings(threat=LINF, batch_size=7, journal=Journal(tmp_path)))
    assert again.outcomes["apgd"].others == found.outcomes["apgd"].others


@contextmanager
def through(net: nn.Module) -> Iterator[list[int]]:
    """How many images went through a net."""
    counted = [0]

    def note(module: nn.Module, args: tuple[torch.Tensor], logits: object) -> None:
        counted[0] += len(args[0])

    handle = net.register_forward_hook(note)
    try:
        yield counted
    finally:
        handle.remove()


# From a configuration


def finished(path: Path, model: str = "mlp", shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> Path:
    """The folder of a finished run, untrained."""
    with forked(3):
        arch = CATALOG.create("model", model)(shape, classes)
    folder = RunFolder.create(path)
    folder.write_config("")
    folder.save_weights(folder.weights, arch.state_dict())
    card = {"model": model, "options": {}, "shape": shape, "classes": [str(n) for n in range(classes)]}
    card["threat"] = {"norm": "Linf", "eps": 0.1, "step_size": 0.025}
    folder.write_json(folder.card, card | {"mean": [0.25] * shape[0], "std": [0.5] * shape[0]})
    return path


def planned(*attacks: str, **options: dict[str, Any]) -> Plan:
    evaluate = {"attacks": list(attacks or ("transfer",)), "options": options}
    return resolve({"loss": {"name": "ce"}, "student": {"model": "mlp"}, "evaluate": evaluate}, CATALOG)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "other")


def test_a_run_is_the_source(run: Path) -> None:
    options = {"steps": 2, "start": "none"}
    plan = planned("transfer", transfer={"source": str(run), "attack": "pgd", "options": options})
    arch = CATALOG.create("model", "mlp")((1, 8, 8), 10)
    arch.load_state_dict(RunFolder(run).load_weights(RunFolder(run).weights))
    source = Net(arch.eval(), (0.25,), (0.5,))
    batch = tiny_batch(8, plan.data.shape, 10)
    expected = run_attack(Pgd(**options), source, batch, plan.data.threat)
    found = run_attack(plan.evaluation["transfer"].attack, tiny_net(shape=(1, 8, 8), classes=10), batch,
                       plan.data.threat)  # fmt: skip
    assert torch.equal(found, expected)
    assert plan.config.evaluate.options["transfer"]["source"] == str(run)
    assert plan.notes == []


def test_weights_are_the_source(run: Path, tmp_path: Path) -> None:
    """What their net expects is found out, and told; or it cannot be told, as of this net, and is asked for."""
    weights = f"mlp@{run / 'student.safetensors'}"
    with pytest.raises(ConfigError, match=r"cannot be told.*type normalize=none, or normalize=data"):
        planned(transfer={"source": weights})
    plan = planned(transfer={"source": weights, "normalize": "data"})
    for wish, mean in (("none", 0.0), ("data", plan.data.mean[0])):
        plan = planned(transfer={"source": weights, "normalize": wish})
        assert plan.notes == []
        assert float(plan.evaluation["transfer"].attack._net.mean) == pytest.approx(mean)


def test_weights_of_a_model_with_options(tmp_path: Path) -> None:
    arch = CATALOG.create("model", "small-cnn", {"width": 4})((1, 8, 8), 10)
    save_weights(tmp_path / "w.safetensors", arch.state_dict())
    source = {"source": f"small-cnn@{tmp_path / 'w.safetensors'}", "normalize": "data"}
    net = planned(transfer=source | {"model": {"width": 4}}).evaluation["transfer"].attack._net
    assert torch.equal(next(net.arch.parameters()), next(arch.parameters()))
    with pytest.raises(ConfigError, match=r"does not fit this architecture"):
        planned(transfer=source)
    with pytest.raises(ConfigError, match=r"transfer: model\.wdith: there is no such option. Did you mean width"):
        planned(transfer=source | {"model": {"wdith": 4}})


def test_the_objective_is_the_searchs_own_or_what_was_asked_for(run: Path) -> None:
    source = {"source": str(run), "attack": "cw-30"}
    assert isinstance(planned(transfer=source).evaluation["transfer"].objective, Margin)
    assert planned(transfer=source | {"objective": "ce"}).evaluation["transfer"].objective is ce


def test_a_training_may_use_it_too(run: Path) -> None:
    plan = resolve(
        {"loss": {"name": "pgd-at"}, "student": {"model": "mlp"},
         "attack": {"name": "transfer", "source": str(run), "attack": "fgsm"}}, CATALOG,
    )  # fmt: skip
    assert plan.attacks["adv"].objective is ce
    x_adv = run_attack(plan.attacks["adv"].attack, tiny_net(shape=(1, 8, 8), classes=10), tiny_batch(4, (1, 8, 8), 10))
    assert x_adv.shape == (4, 1, 8, 8)
    again = resolve({**plan.config.model_dump(by_alias=True, exclude_none=True)}, CATALOG)
    assert again.attacks["adv"].attack == plan.attacks["adv"].attack


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "the net to make the images on is missing; type --set attack.transfer.source=RUN"),
        ({"source": "runs/nowhere"}, "'runs/nowhere' is not the folder of a finished run; give a run's folder"),
        ({"source": "mlp"}, "'mlp' is no net with weights"),
        ({"source": "mpl@w.pt"}, "there is no model 'mpl'. Did you mean mlp"),
        ({"source": "mlp@nowhere.pt"}, "there is no weights file nowhere.pt"),
        ({"source": "{other shape}"}, "is for images (3, 8, 8) and 10 classes; data set 'digits' has (1, 8, 8) and 10"),
        ({"source": "{other classes}"}, "is for images (1, 8, 8) and 4 classes"),
        ({"source": "mlp@{weights}"}, "number of classes"),
        ({"source": "{empty}"}, "is not a run"),
        ({"source": "{run}", "attack": "pgdd"}, "there is no attack 'pgdd'. Did you mean pgd"),
        ({"source": "{run}", "options": {"stpes": 3}}, "pgd-sat.stpes: there is no such option. Did you mean steps"),
        ({"source": "{run}", "attack": "transfer"}, "the net to make the images on is missing"),
        ({"sourcce": "{run}"}, "there is no such option. Did you mean source"),
    ],
)
def test_mistakes_are_told_before_anything_runs(run: Path, tmp_path: Path, options: dict, problem: str) -> None:
    places = {"run": run, "empty": tmp_path / "empty", "weights": tmp_path / "w.safetensors"}
    if "source" in options:
        if "other" in options["source"]:
            places["other shape"] = finished(tmp_path / "a", shape=(3, 8, 8))
            places["other classes"] = finished(tmp_path / "b", classes=4)
        places["empty"].mkdir()
        save_weights(places["weights"], CATALOG.create("model", "mlp")((1, 8, 8), 7).state_dict())
    filled = {
        key: value.format_map({k: str(v) for k, v in places.items()}) if isinstance(value, str) else value
        for key, value in options.items()
    }
    with pytest.raises(ConfigError) as error:
        planned("fgsm", "transfer", transfer=filled)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith("evaluate.options.transfer") or problem.startswith("there is no such")
    assert problem in str(error.value)


def test_a_strangers_attack_gets_its_parts_the_same_way(run: Path) -> None:
    """Nothing is special about `transfer`: any attack with `assemble` is served, and a net is built but once."""

    @dataclass
    class Mean:
        """The mean of what two nets would have changed."""

        nets: tuple[str, ...] = ()
        mode: ClassVar = "eval"

        def assemble(self, parts: Parts) -> None:
            self.sources = [parts.net(name) for name in self.nets]
            self.search = parts.attack("fgsm")

        def __call__(self, x: Tensor, target: Any) -> Tensor:
            found = []
            for source in self.sources:
                with target.on(source) as other:
                    found.append(self.search(x, other))
            return torch.stack(found).mean(0)

    catalog = load_catalog()
    plugin = catalog.find("attack", "fgsm").plugin
    catalog.entries["attack"]["mean"] = [Entry("attack", "mean", Mean, plugin)]
    parts = Resolver(catalog, planned("fgsm").data)
    attack = create_attack("mean", {"nets": [str(run), str(run)]}, "attack", parts)
    assert attack.sources[0] is attack.sources[1]
    batch = tiny_batch(4, (1, 8, 8), 10)
    expected = run_attack(CATALOG.create("attack", "fgsm"), attack.sources[0], batch)
    assert torch.allclose(run_attack(attack, tiny_net(shape=(1, 8, 8), classes=10), batch), expected)
    assert not any(p.requires_grad for p in attack.sources[0].parameters())
