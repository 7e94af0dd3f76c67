"""The models: shapes, gradients, the names and numbers of published nets, families, errors."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import typing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rkd.core.errors import ConfigError, Refused, UnknownName, WeightsError
from rkd.nets.fitting import net_from_file
from rkd.nets.net import Net
from rkd.plugins.models import _resized, resnet_cifar
from rkd.plugins.models import torchvision as torchvision_plugin
from rkd.plugins.models.mobilenet_v2 import MobileNetV2Small
from rkd.plugins.models.preact_resnet import PreActBlock, PreActResNet18
from rkd.plugins.models.resnet import ResNet18, ResNet50
from rkd.plugins.models.resnet_cifar import AnyDepth, ResNet20
from rkd.plugins.models.small_cnn import MLP, PapernotCNN, SmallCNN
from rkd.plugins.models.timm import TimmModel
from rkd.plugins.models.torchvision import TorchvisionModel
from rkd.plugins.models.wide_resnet import WRN, Block, SwishBlock, SwishWRN
from rkd.registry.catalog import reference_keys
from rkd.registry.hooks import Family

FILES = (
    "resnet",
    "resnet_cifar",
    "wide_resnet",
    "preact_resnet",
    "mobilenet_v2",
    "small_cnn",
    "timm",
    "torchvision",
)
OWN = FILES[:-2]
DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)


def provided(files=FILES):
    """`{name: component}` of the plugin files."""
    modules = [importlib.import_module(f"rkd.plugins.models.{file}") for file in files]
    return {name: component for module in modules for name, component in module.rkd_models().items()}


def make(name: str, **options):
    """The component of that name, families included, with options as the name gives them."""
    for known, component in provided().items():
        if isinstance(component, Family):
            found = re.fullmatch(component.pattern, name)
            if found:
                given = {key: value for key, value in found.groupdict().items() if value is not None}
                numbers = {key: int(value) for key, value in given.items() if value.isdigit()}
                return component.component(**given | numbers | options)
        elif known == name:
            return component(**options)
    raise KeyError(name)


def names(files=FILES):
    """Every plain name, and the examples of every family."""
    found = []
    for name, component in provided(files).items():
        found += component.examples if isinstance(component, Family) else [name]
    return found


def on_meta(component, shape=CIFAR, classes=10) -> nn.Module:
    """The net without memory or arithmetic: names, shapes and numbers of parameters."""
    with torch.device("meta"):
        return component(shape, classes)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def resized_to(net: nn.Module):
    return [hook.size for hook in net._forward_pre_hooks.values() if isinstance(hook, _resized.Resize)]


def check_net(net: nn.Module, shape, classes: int) -> None:
    """Logits of the right shape and a gradient that reaches every image, in training and in eval mode."""
    for training in (True, False):
        net.train(training)
        x = torch.rand(2, *shape, requires_grad=True)
        logits = net(x)
        assert logits.shape == (2, classes)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        # Some heads start at zero: then the first step moves them.
        if not logits.detach().any():
            continue
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(2)), x)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets this small run several times slower on two threads when other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Every name


def test_no_two_files_provide_one_name():
    given = [name for file in FILES for name in importlib.import_module(f"rkd.plugins.models.{file}").rkd_models()]
    assert len(given) == len(set(given))
    patterns = [component.pattern for component in provided().values() if isinstance(component, Family)]
    for name in names():
        claims = sum(re.fullmatch(pattern, name) is not None for pattern in patterns) + (name in provided())
        assert claims == 1, name


def test_every_component_describes_itself():
    for name, component in provided().items():
        component = component.component if isinstance(component, Family) else component
        assert dataclasses.is_dataclass(component)
        line = component.__doc__.splitlines()[0]
        assert line.endswith((".", ")")) and not line.startswith(component.__name__ + "("), name
    for file in FILES:
        text = importlib.import_module(f"rkd.plugins.models.{file}").__doc__
        assert reference_keys(text)


# Shallow ones of the families stand for the deep ones, whose modules are the same.
CHEAP = [
    *("resnet18", "resnet50", "resnet8", "resnet20", "resnet20-B", "wrn10-2", "wrn10-2-swish"),
    *("preact-resnet18", "preact-resnet18-bn", "mobilenetv2", "small-cnn", "papernot-cnn", "mlp"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_net_works_on_small_and_usual_images(name):
    options = {"width": 16} if name.startswith(("resnet18", "resnet50", "preact")) else {}
    for shape, classes in ((DIGITS, 10), (CIFAR, 10), ((4, 9, 13), 3)):
        check_net(make(name, **options)(shape, classes), shape, classes)


@pytest.mark.parametrize("name", ["resnet18", "wrn16-2", "mobilenetv2", "preact-resnet18"])
def test_net_works_at_full_width_with_100_classes(name):
    check_net(make(name)(CIFAR, 100), CIFAR, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(OWN))
def test_every_name_builds_for_any_images(name):
    for shape, classes in ((DIGITS, 10), (CIFAR, 10), (CIFAR, 100)):
        net = on_meta(make(name), shape, classes)
        with torch.device("meta"):
            assert net.eval()(torch.empty(2, *shape)).shape == (2, classes)


def test_rectangular_and_odd_sizes_keep_shortcuts_aligned():
    for height in range(8, 16):
        for component in (WRN(10, 1), SwishWRN(10, 1), ResNet20(), MobileNetV2Small(0.25)):
            net = component((2, height, 17), 5).eval()
            assert net(torch.rand(1, 2, height, 17)).shape == (1, 5)


# Published nets: numbers of parameters, names, shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("resnet18", CIFAR, 10, 11_173_962),
        ("resnet34", CIFAR, 10, 21_282_122),
        ("resnet50", CIFAR, 10, 23_520_842),
        ("resnet101", CIFAR, 10, 42_512_970),
        ("resnet152", CIFAR, 10, 58_156_618),
        ("resnet18", CIFAR, 100, 11_220_132),
        ("resnet8", CIFAR, 10, 75_290),
        ("resnet20", CIFAR, 10, 269_722),
        ("resnet32", CIFAR, 10, 464_154),
        ("resnet44", CIFAR, 10, 658_586),
        ("resnet56", CIFAR, 10, 853_018),
        ("resnet110", CIFAR, 10, 1_727_962),
        ("resnet1202-A", CIFAR, 10, 19_421_274),
        ("resnet20-B", CIFAR, 10, 272_474),
        ("resnet56-B", CIFAR, 10, 855_770),
        ("resnet56-B", CIFAR, 100, 861_620),
        ("wrn34-10", CIFAR, 10, 46_160_474),
        ("wrn34", CIFAR, 10, 46_160_474),
        ("wrn28-10", CIFAR, 10, 36_479_194),
        ("wrn16-2", CIFAR, 10, 691_674),
        ("wrn40-2", CIFAR, 10, 2_243_546),
        ("wrn16-8", CIFAR, 10, 10_961_370),
        ("wrn28-10-swish", CIFAR, 10, 36_479_194),
        ("wrn70-16-swish", CIFAR, 10, 266_796_506),
        ("dm-wrn28-10", CIFAR, 10, 36_479_194),
        ("dm-wrn70-16", CIFAR, 10, 266_796_506),
        ("dm-wrn28-10", CIFAR, 100, 36_536_884),
        ("preact-resnet18", CIFAR, 10, 11_171_146),
        ("preact-resnet18-bn", CIFAR, 10, 11_172_170),
        ("mobilenetv2", CIFAR, 10, 2_296_922),
        ("small-cnn", DIGITS, 10, 25_978),
        ("small-cnn", (1, 28, 28), 10, 25_978),
    ],
)
def test_number_of_parameters(name, shape, classes, count):
    assert parameters(on_meta(make(name), shape, classes)) == count


def test_number_of_parameters_of_options():
    assert parameters(on_meta(PapernotCNN(padding="valid"), (1, 28, 28))) == 312_202
    assert parameters(on_meta(PapernotCNN("cifar", padding="valid"))) == 1_147_978
    assert parameters(on_meta(SmallCNN(blocks=2), DIGITS)) == 74_586
    assert parameters(on_meta(SmallCNN(stride=2), DIGITS)) == 25_978
    with torch.device("meta"):
        maps = SmallCNN(stride=2)((1, 28, 28), 10).features(torch.zeros(1, 1, 28, 28))
    assert maps.shape == (1, 64, 4, 4), "a quarter of the pixels from the first convolution on"
    assert parameters(on_meta(MLP(256, 2), DIGITS)) == 65 * 256 + 257 * 256 + 257 * 10
    assert parameters(on_meta(MLP(layers=0), DIGITS)) == 650


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn(name: str) -> list[str]:
    return [f"{name}.{part}" for part in BN]


def resnet18_keys() -> list[str]:
    """kuangliu's ResNet-18, written out by its rules."""
    keys = ["conv1.weight", *bn("bn1")]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            keys += [f"{at}.conv1.weight", *bn(f"{at}.bn1"), f"{at}.conv2.weight", *bn(f"{at}.bn2")]
            if stage > 1 and block == 0:
                keys += [f"{at}.shortcut.0.weight", *bn(f"{at}.shortcut.1")]
    return [*keys, "linear.weight", "linear.bias"]


def wrn_keys(blocks: int) -> list[str]:
    """TRADES' WideResNet, written out by its rules, without sub_block1."""
    keys = ["conv1.weight"]
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"block{stage}.layer.{block}"
            keys += [*bn(f"{at}.bn1"), f"{at}.conv1.weight", *bn(f"{at}.bn2"), f"{at}.conv2.weight"]
            keys += [f"{at}.convShortcut.weight"] if block == 0 else []
    return [*keys, *bn("bn1"), "fc.weight", "fc.bias"]


def swish_keys(blocks: int) -> list[str]:
    """DeepMind's WideResNet, written out by its rules."""
    keys = ["init_conv.weight"]
    for stage in (0, 1, 2):
        for block in range(blocks):
            at = f"layer.{stage}.block.{block}"
            keys += [*bn(f"{at}.batchnorm_0"), f"{at}.conv_0.weight"]
            keys += [*bn(f"{at}.batchnorm_1"), f"{at}.conv_1.weight"]
            keys += [f"{at}.shortcut.weight"] if block == 0 else []
    return [*keys, *bn("batchnorm"), "logits.weight", "logits.bias"]


def test_all_keys_of_the_usual_students_and_teachers():
    assert list(on_meta(ResNet18()).state_dict()) == resnet18_keys()
    assert sorted(on_meta(WRN(34, 10)).state_dict()) == sorted(wrn_keys(5))
    assert sorted(on_meta(WRN(16, 2)).state_dict()) == sorted(wrn_keys(2))
    assert sorted(on_meta(SwishWRN(70, 16)).state_dict()) == sorted(swish_keys(11))


@pytest.mark.parametrize("layout", ["robustbench", "wang"])
def test_robustbenchs_and_wangs_files_of_deepminds_nets(layout, tmp_path):
    """RobustBench: mean and std beside the weights. Wang et al.: two nets, each below `module.0.`, as wrapped there."""
    torch.manual_seed(0)
    net = make("dm-wrn10-1")(CIFAR, 10).eval()
    weights = net.state_dict()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)))
    if layout == "robustbench":
        content, key = {**weights, "mean": mean, "std": std}, ""
    else:
        averaged, last = ({f"module.0.{k}": v * s for k, v in weights.items()} for s in (1, 2))
        content = {"model_state_dict": averaged, "unaveraged_model_state_dict": last}
        key = "#model_state_dict"
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)  # not in the file: a setting of the teacher
    torch.save(content, tmp_path / "w.pt")
    built = net_from_file(f"{tmp_path / 'w.pt'}{key}", "dm-wrn10-1", lambda k: Net(make("dm-wrn10-1")(CIFAR, k)), 10)
    x = torch.rand(2, *CIFAR)
    assert torch.equal(built.eval()(x), net((x - mean) / std))


@pytest.mark.parametrize(
    ("name", "classes", "shapes"),
    [
        (
            "resnet18",
            10,
            {
                "conv1.weight": (64, 3, 3, 3),
                "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
                "layer4.1.conv2.weight": (512, 512, 3, 3),
                "linear.weight": (10, 512),
            },
        ),
        (
            "resnet50",
            10,
            {
                "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
                "layer1.0.conv3.weight": (256, 64, 1, 1),
                "layer4.2.bn3.running_var": (2048,),
                "linear.weight": (10, 2048),
            },
        ),
        (
            "resnet56",
            10,
            {
                "conv1.weight": (16, 3, 3, 3),
                "layer1.8.bn2.bias": (16,),
                "layer2.0.conv1.weight": (32, 16, 3, 3),
                "layer3.8.conv2.weight": (64, 64, 3, 3),
                "linear.weight": (10, 64),
            },
        ),
        (
            "wrn34-10",
            10,
            {
                "conv1.weight": (16, 3, 3, 3),
                "block1.layer.0.convShortcut.weight": (160, 16, 1, 1),
                "block2.layer.0.bn1.weight": (160,),
                "block3.layer.4.conv2.weight": (640, 640, 3, 3),
                "bn1.running_mean": (640,),
                "fc.weight": (10, 640),
            },
        ),
        (
            "wrn70-16-swish",
            100,
            {
                "init_conv.weight": (16, 3, 3, 3),
                "layer.0.block.0.shortcut.weight": (256, 16, 1, 1),
                "layer.1.block.0.conv_0.weight": (512, 256, 3, 3),
                "layer.2.block.10.batchnorm_1.weight": (1024,),
                "logits.weight": (100, 1024),
            },
        ),
        (
            "preact-resnet18-bn",
            10,
            {
                "layer1.0.bn1.weight": (64,),
                "layer3.0.shortcut.0.weight": (256, 128, 1, 1),
                "bn.running_mean": (512,),
                "linear.bias": (10,),
            },
        ),
        (
            "mobilenetv2",
            100,
            {
                "conv1.weight": (32, 3, 3, 3),
                "layers.0.shortcut.0.weight": (16, 32, 1, 1),
                "layers.1.conv1.weight": (96, 16, 1, 1),
                "layers.1.conv2.weight": (96, 1, 3, 3),
                "layers.1.shortcut.1.running_var": (24,),
                "layers.16.conv3.weight": (320, 960, 1, 1),
                "conv2.weight": (1280, 320, 1, 1),
                "bn2.weight": (1280,),
                "linear.weight": (100, 1280),
            },
        ),
    ],
)
def test_names_and_shapes_of_public_checkpoints(name, classes, shapes):
    state = on_meta(make(name), CIFAR, classes).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_parts_that_public_checkpoints_do_not_have():
    assert not [key for key in on_meta(ResNet20()).state_dict() if "shortcut" in key]
    assert not [key for key in on_meta(PreActResNet18()).state_dict() if key.startswith("bn")]
    shortcuts = [key for key in on_meta(PreActResNet18()).state_dict() if "shortcut" in key]
    assert shortcuts == [f"layer{stage}.0.shortcut.0.weight" for stage in (2, 3, 4)]
    mobile = on_meta(MobileNetV2Small()).state_dict()
    shortcuts = {key.split(".")[1] for key in mobile if "shortcut" in key}
    assert shortcuts == {"0", "1", "10", "16"}  # stride 1 and another number of planes


def test_documented_key_differences_cover_public_checkpoints():
    net = WRN(10, 1)(CIFAR, 10)
    public = [*net.state_dict(), "sub_block1.layer.0.bn1.weight", "sub_block1.layer.0.convShortcut.weight"]
    assert [key for key in public if not key.startswith(net.ignored_keys)] == list(net.state_dict())

    # chenyaofo's ResNets, MTARD's clean teacher among them.
    net = AnyDepth(20, "B")(CIFAR, 10)
    public = [
        *("conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer3.0.downsample.1.bias"),
        *("layer3.2.conv2.weight", "fc.weight", "fc.bias"),
    ]
    for theirs, ours in net.renamed_keys.items():
        public = [key.replace(theirs, ours) for key in public]
    assert set(public) <= set(net.state_dict())


# Arithmetic


def test_shortcut_a_takes_every_second_pixel_and_pads_with_zeros():
    x = torch.rand(2, 16, 7, 8)
    out = resnet_cifar.PadShortcut(8)(x)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(out, expected)


def test_shortcut_a_is_what_the_block_adds():
    block = resnet_cifar.BasicBlock(16, 32, 2, "A").eval()
    nn.init.zeros_(block.bn2.weight)  # the convolutions are silent
    x = torch.randn(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2].relu()
    assert torch.equal(block(x), expected)


def test_stride_of_deepminds_block_pads_like_tensorflow():
    block = SwishBlock(2, 4, 2).eval()
    x = torch.randn(1, 2, 6, 6)
    out = F.silu(block.batchnorm_0(x))
    inner = F.conv2d(F.pad(out, (0, 1, 0, 1)), block.conv_0.weight, stride=2)
    inner = F.conv2d(F.silu(block.batchnorm_1(inner)), block.conv_1.weight, padding=1)
    expected = inner + F.conv2d(out, block.shortcut.weight, stride=2)
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert block(torch.randn(1, 2, 7, 5)).shape == (1, 4, 4, 3)


def test_where_the_shortcut_of_a_preactivated_block_starts():
    x = torch.randn(2, 4, 6, 6)
    for shortcut, start in (("activated", F.relu), ("raw", lambda x: x)):
        block = PreActBlock(4, 8, 2, shortcut).eval()
        nn.init.zeros_(block.conv2.weight)
        # Batch norm in eval mode at the start is the identity but for its eps.
        expected = F.conv2d(start(x), block.shortcut[0].weight, stride=2)
        assert torch.allclose(block(x), expected, atol=1e-4)


@pytest.mark.parametrize("inputs", [4, 8])
def test_block_of_a_wide_resnet(inputs):
    block = Block(inputs, 8, 2 if inputs == 4 else 1, dropout=0.0).train()
    nn.init.uniform_(block.bn1.weight)
    x = torch.randn(2, inputs, 6, 6)
    active = F.relu(F.batch_norm(x, None, None, block.bn1.weight, block.bn1.bias, training=True))
    inner = F.conv2d(active, block.conv1.weight, stride=block.conv1.stride, padding=1)
    inner = F.relu(F.batch_norm(inner, None, None, block.bn2.weight, block.bn2.bias, training=True))
    around = F.conv2d(active, block.convShortcut.weight, stride=2) if inputs == 4 else x
    assert torch.allclose(block(x), around + F.conv2d(inner, block.conv2.weight, padding=1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "component"), [("resnet18", ResNet18), ("resnet50", ResNet50)])
def test_resnet_is_torchvisions_behind_another_stem(name, component):
    from torchvision import models

    theirs = models.get_model(name, num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = component()(CIFAR, 10).eval()
    renamed = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed)
    x = torch.rand(2, *CIFAR)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_global_pooling_is_the_usual_one_at_32_pixels():
    net = ResNet18(width=4)(CIFAR, 10).eval()
    x = torch.rand(2, *CIFAR)
    features = net.layer4(net.layer3(net.layer2(net.layer1(F.relu(net.bn1(net.conv1(x)))))))
    assert features.shape == (2, 32, 4, 4)
    expected = net.linear(F.avg_pool2d(features, 4).flatten(1))
    assert torch.allclose(net(x), expected, atol=1e-6)


def test_initialisation_follows_the_published_code():
    torch.manual_seed(0)
    net = WRN(10, 4)(CIFAR, 10)
    conv = net.block3.layer[0].conv2  # he normal, fan out
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert not net.fc.bias.any()
    net = ResNet20()(CIFAR, 10)
    conv = net.layer3[0].conv1  # kaiming normal, fan in
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)
    conv = ResNet18()(CIFAR, 10).layer3[0].conv2  # torch's default: uniform with bound 1 / sqrt(fan in)
    assert conv.weight.abs().max().item() == pytest.approx((1 / (9 * 256)) ** 0.5, rel=0.01)


def test_dropout_acts_in_training_alone():
    for net in (WRN(10, 1, dropout=0.5)(CIFAR, 10), PapernotCNN()(CIFAR, 10)):
        x = torch.rand(4, *CIFAR)
        assert not torch.equal(net.train()(x), net(x))
        assert torch.equal(net.eval()(x), net(x))
    net = WRN(10, 1)(CIFAR, 10).train()
    assert torch.equal(net(x), net(x))


# Families and options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn34", {"depth": 34, "width": 10, "dropout": 0.0}),
        ("wrn34-10", {"depth": 34, "width": 10, "dropout": 0.0}),
        ("wrn16-2", {"depth": 16, "width": 2, "dropout": 0.0}),
        ("wrn70-16-swish", {"depth": 70, "width": 16}),
        ("wrn28-swish", {"depth": 28, "width": 10}),
        ("dm-wrn28-10", {"depth": 28, "width": 10}),
        ("dm-wrn34", {"depth": 34, "width": 10}),
        ("resnet56-B", {"depth": 56, "shortcut": "B", "width": 16}),
        ("timm:resnet18", {"name": "resnet18", "pretrained": False, "resize": None}),
        (
            "timm:vit_tiny_patch16_224.augreg_in21k",
            {"name": "vit_tiny_patch16_224.augreg_in21k", "pretrained": False, "resize": None},
        ),
        ("torchvision:vit_b_16", {"name": "vit_b_16", "pretrained": False, "resize": None}),
    ],
)
def test_names_of_families(name, options):
    assert dataclasses.asdict(make(name)) == options


@pytest.mark.parametrize("name", ["wrn", "wrn34-", "wrn34-10-relu", "resnet56-C", "resnet56-b", "timm:", "xresnet18"])
def test_names_that_no_family_knows(name):
    with pytest.raises(KeyError):
        make(name)


def test_fields_are_options_the_registry_can_validate():
    for component in provided().values():
        component = component.component if isinstance(component, Family) else component
        kinds = typing.get_type_hints(component)
        for field in dataclasses.fields(component):
            kind = kinds[field.name]
            plain = kind in (int, float, bool, str) or kind == int | None
            assert plain or typing.get_origin(kind) is typing.Literal, (component, field.name)


def test_named_components_of_one_file_do_not_share_options():
    fields = {field.name for field in dataclasses.fields(ResNet50)}
    assert fields == {"width"}
    assert {field.name for field in dataclasses.fields(ResNet20)} == {"shortcut", "width"}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ResNet18(width=0), "width = 0"),
        (lambda: WRN(35, 10), "the nearest is 34"),
        (lambda: WRN(4, 10), "the nearest is 10"),
        (lambda: WRN(34, 0), "width 0"),
        (lambda: WRN(34, 10, dropout=1.0), "dropout = 1"),
        (lambda: SwishWRN(27, 10), "the nearest is 28"),
        (lambda: AnyDepth(18, "A"), "the nearest is 20"),
        (lambda: AnyDepth(2, "A"), "the nearest is 8"),
        (lambda: ResNet20(width=3), "even number"),
        (lambda: ResNet20(shortcut="C"), "'C'"),
        (lambda: PreActResNet18(width=-1), "width = -1"),
        (lambda: PreActResNet18(shortcut="none"), "'none'"),
        (lambda: MobileNetV2Small(width=0), "width = 0"),
        (lambda: SmallCNN(width=0), "width = 0"),
        (lambda: SmallCNN(blocks=0), "blocks = 0"),
        (lambda: SmallCNN(stride=0), "stride = 0"),
        (lambda: PapernotCNN(size="imagenet"), "'imagenet'"),
        (lambda: PapernotCNN(dropout=-0.1), "dropout = -0.1"),
        (lambda: MLP(hidden=0), "hidden = 0"),
        (lambda: MLP(layers=-1), "layers = -1"),
        (lambda: TimmModel("resnet18", resize=0)(CIFAR, 10), "resize = 0"),
    ],
)
def test_nonsense_options(build, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        build()


def test_several_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        WRN(33, 0, dropout=2)
    assert len(caught.value.problems) == 3


def test_papernot_cnn_refuses_images_that_its_convolutions_eat_up():
    PapernotCNN(padding="valid")((1, 16, 16), 10)
    with pytest.raises(Refused, match="8x8"):
        PapernotCNN(padding="valid")(DIGITS, 10)


# timm and torchvision


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext"])
def test_timm_nets_work_on_small_and_usual_images(name):
    for shape, classes in ((DIGITS, 10), (CIFAR, 100)):
        check_net(make(name)(shape, classes), shape, classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5"])
def test_torchvision_nets_work_on_small_and_usual_images(name):
    for shape, classes in ((DIGITS, 10), ((5, 32, 32), 7)):
        check_net(TorchvisionModel(name)(shape, classes), shape, classes)


@pytest.mark.slow
def test_torchvision_transformer_is_built_for_the_image_size():
    net = TorchvisionModel("vit_b_16")(CIFAR, 10)
    assert net.image_size == 32 and resized_to(net) == []
    check_net(net, CIFAR, 10)
    with pytest.raises(ValueError, match="square"):  # which `fit` takes for a size that does not work
        TorchvisionModel("vit_b_16")._options((32, 64))


def test_parameters_keep_the_names_of_their_library():
    timm = pytest.importorskip("timm")
    net = TimmModel("test_vit", resize=64)(DIGITS, 10)
    assert resized_to(net) == [(64, 64)]
    assert list(net.state_dict()) == list(timm.create_model("test_vit", num_classes=10).state_dict())


def test_timm_net_is_resized_only_as_far_as_needed():
    assert resized_to(TimmModel("test_vit")(CIFAR, 10)) == []
    assert resized_to(TimmModel("test_vit")(DIGITS, 10)) == [(32, 32)]  # no patch of 16 fits in 8
    assert resized_to(TimmModel("test_vit")((1, 28, 28), 10)) == [(32, 32)]  # 16 of 28 pixels
    # The one of timm 1.0.10 takes squares alone.
    assert resized_to(TimmModel("test_vit")((1, 20, 40), 10)) in ([(32, 64)], [(64, 64)])
    assert resized_to(TimmModel("test_resnet")(DIGITS, 10)) == []
    assert resized_to(TimmModel("test_resnet", resize=64)(DIGITS, 10)) == [(64, 64)]


def test_building_a_net_of_timm_leaves_no_trace_of_the_trial():
    torch.manual_seed(0)
    net = TimmModel("test_resnet")(CIFAR, 10)
    after = torch.rand(1)
    torch.manual_seed(0)
    timm = pytest.importorskip("timm")
    plain = timm.create_model("test_resnet", num_classes=10)
    assert torch.equal(after, torch.rand(1))  # the global generator was used for the weights alone
    assert net.training
    for key, value in plain.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


def test_unknown_names_of_timm_and_torchvision():
    with pytest.raises(UnknownName, match="Did you mean resnet18"):
        TimmModel("resnet_18")(CIFAR, 10)
    with pytest.raises(UnknownName, match=r"resnet18\.a1_in1k"):
        TimmModel("resnet18.a1_in2k")(CIFAR, 10)
    with pytest.raises(UnknownName, match="Did you mean resnet18"):
        TorchvisionModel("resnet_18")(CIFAR, 10)
    with pytest.raises(UnknownName):  # a detection net, which no loss here can train
        TorchvisionModel("fasterrcnn_resnet50_fpn")(CIFAR, 10)


class Picky(nn.Module):
    """Takes images of one size, reads all of them or not, and returns what it is told to."""

    def __init__(self, side: int, classes: int = 10, cut: int = 0, extra: bool = False) -> None:
        super().__init__()
        self.side, self.cut, self.extra = side, cut, extra
        self.linear = nn.Linear(3, classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        assert x.shape[2:] == (self.side, self.side), f"{self.side} only"
        end = self.side - self.cut
        logits = self.linear(x[:, :, :end, :end].mean((2, 3)))
        return (logits, logits) if self.extra else logits


def test_fit_tries_sizes_in_order_and_says_what_failed():
    tried = []

    def build(side):
        def inner(size):
            tried.append(size)
            return Picky(side)

        return inner

    assert resized_to(_resized.fit(build(128), (3, 30, 30), 10, "picky", None)) == [(128, 128)]
    assert tried == [(30, 30), (32, 32), (64, 64), (128, 128)]
    assert resized_to(_resized.fit(build(30), (3, 30, 30), 10, "picky", None)) == []
    assert resized_to(_resized.fit(build(240), (3, 30, 30), 10, "picky", None, (240, 240))) == [(240, 240)]
    with pytest.raises(Refused, match=r"30x30: AssertionError: 99 only\n  32x32") as caught:
        _resized.fit(build(99), (3, 30, 30), 10, "picky", None)
    assert "224x224" in str(caught.value)
    with pytest.raises(Refused, match="40x40: AssertionError"):
        _resized.fit(build(99), (3, 30, 30), 10, "picky", 40)


def test_fit_refuses_nets_that_are_not_classifiers_or_do_not_read_the_image():
    for net, words in (
        (Picky(32, classes=5), r"\(2, 5\) for logits \(2, 10\)"),
        (Picky(32, extra=True), "gives tuple"),
        (Picky(32, cut=1), "last row or column"),
    ):
        with pytest.raises(Refused, match=words):
            _resized.fit(lambda size, net=net: net, CIFAR, 10, "picky", 32)
    assert _resized.reads_all(Picky(32), CIFAR)


def test_resizing_smaller_averages_pixels():
    net = _resized.fit(lambda size: Picky(8), CIFAR, 10, "picky", 8)
    (hook,) = net._forward_pre_hooks.values()
    stripes = torch.zeros(1, *CIFAR)
    stripes[:, :, :, ::2] = 1
    (small,) = hook(net, (stripes,))
    assert small.shape == (1, 3, 8, 8)
    assert torch.allclose(small, torch.full_like(small, 0.5), atol=0.1)


def test_first_convolution_for_other_channels():
    old = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    gray, five = nn.Sequential(old, nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Sequential(old))
    torchvision_plugin.set_channels(gray, 1)
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(gray[0](x), old(x.expand(-1, 3, -1, -1)), atol=1e-5)
    assert gray[1].in_channels == 3
    torchvision_plugin.set_channels(five, 5)
    assert five[0][0].in_channels == 5 and five[0][0](torch.rand(2, 5, 8, 8)).shape == (2, 4, 4, 4)
    assert torch.allclose(five[0][0].weight[:, 3], old.weight[:, 0] * 3 / 5)
    assert old.weight.shape == (4, 3, 3, 3)


def test_pretrained_weights_of_torchvision_keep_all_but_the_head(monkeypatch):
    from torchvision import models

    source = models.get_model("squeezenet1_1", weights=None)
    monkeypatch.setattr(TorchvisionModel, "_weights", lambda self, models: source.state_dict())
    net = TorchvisionModel("squeezenet1_1", pretrained=True)(CIFAR, 10)
    assert net.classifier[1].weight.shape == (10, 512, 1, 1)
    for key, value in net.features.state_dict(prefix="features.").items():
        assert torch.equal(value, source.state_dict()[key]), key
    gray = TorchvisionModel("squeezenet1_1", pretrained=True)(DIGITS, 10)
    assert torch.allclose(gray.features[0].weight[:, 0], source.features[0].weight.sum(1), atol=1e-5)
    with pytest.raises(WeightsError, match="lack"):
        torchvision_plugin.load(models.get_model("shufflenet_v2_x0_5"), source.state_dict())


def test_weights_that_cannot_be_fetched(monkeypatch):
    import timm
    from torchvision import models

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(WeightsError, match="no route to host"):
        TimmModel("resnet18", pretrained=True)(CIFAR, 10)
    with pytest.raises(WeightsError, match="no route to host"):
        TorchvisionModel("resnet18", pretrained=True)(CIFAR, 10)


@pytest.mark.slow
def test_timm_is_imported_when_used():
    """`rkd list-plugins` imports every plugin file; timm and torchvision take seconds."""
    code = (
        "import sys, rkd.plugins.models.timm, rkd.plugins.models.torchvision;"
        "print('timm' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
