"""From the state_dicts of a file to the weights of one net: names, prefixes, what else a file holds.

Wrappers put prefixes before a net's names: DataParallel (`module.`), torch.compile, Lightning, MadryLab's `robustness`
(`module.model.`, and all of it again as `module.attacker.model.`), `nn.Sequential(normalisation, net)` (`1.`). None
is looked up in a list: a prefix is whatever stands before the net's own names. If two sets of weights in a file fit
and differ, the user has to choose.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..core.errors import Refused, RkdError, WeightsError
from ..core.traits import declared
from ..data.prefetch import free_memory
from .first_look import InputNormalization
from .net import Net, TwoLogits
from .weights import State, WeightsFile, open_weights, same, some, strip_prefixes

ROOM = 10_000_000
"""Parameters that a net may have beyond those that its weights file could be for."""

Normalization = tuple[list[float], list[float]]
"""Mean and std of [0, 1] images, one number a channel or one for all."""

_NORMALIZERS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
_UNUSED = re.compile(
    r"(^|\.)((total_ops|total_params|n_averaged)$"  # counted by thop; torch's AveragedModel
    r"|(aux_bn|aux1|aux2|AuxLogits|aux_classifier|criterion|loss|loss_fn|metrics?|(train|val|valid|test)_\w+)\.)"
)
"""Names beside a net's that have no part in its answers: heads and norms of the training, losses, scores."""
_OTHER_NETS = re.compile(r"^(module\.|_orig_mod\.)*(attacker|teacher|student|\w*ema\w*|target|momentum|proxy|swa)\w*\.")
"""Names of nets that a training keeps beside the one that is meant."""

_MOST_PREFIXES = 16
"""Prefixes that are tried, of those that stand before names like the net's: the commonest."""


@dataclass(frozen=True, slots=True)
class NetTraits:
    """What an architecture may say of weights files that others wrote, each as an attribute of its own."""

    ignored_keys: tuple[str, ...] = ()
    """Prefixes of keys that a file may hold beyond those of the net."""
    renamed_keys: Mapping[str, str] = field(default_factory=dict)
    """Part of a name there -> part of the name here."""


@dataclass(frozen=True)
class _Fit:
    """How a state_dict lies in a net: `tensors` under the net's names, found under `prefix` in the state at `key`."""

    key: str
    prefix: str
    tensors: State
    missing: list[str]
    extra: list[str]
    shapes: list[str]
    beside: list[str]

    @property
    def whole(self) -> bool:
        return not (self.missing or self.shapes)

    @property
    def open_ends(self) -> tuple[int, ...]:
        """The fewer, the better it fits."""
        return len(self.missing) + len(self.shapes), len(self.extra), len(self.beside), len(self.prefix)

    @property
    def label(self) -> str:
        return ".".join(filter(None, (self.key, self.prefix.rstrip("."))))


def load_into(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` strictly, whatever prefix stands before its names. Keys under the net's `ignored_keys` (prefixes)
    may be left over; its `renamed_keys` (part of a name -> part of a name) translate other authors' names.

    Raises WeightsError that names the keys that are missing, left over or of another shape.
    """
    load_file_into(net, WeightsFile(source, {"": dict(state)}), source)


def load_file_into(net: nn.Module, file: WeightsFile, source: str) -> tuple[Normalization | None, list[str]]:
    """Load those weights of `file` that fit the net, strictly. Returns the normalisation that the file holds, and
    notes, a sentence each, on what was left out.

    Raises WeightsError where none or several fit.
    """
    fit = _best(net, file)
    unused = {name: file.states[fit.key][name] for name in (*fit.extra, *fit.beside)}
    normalizers, normalization = _normalization(unused)
    unknown = [name for name in fit.extra if not (name in normalizers or _UNUSED.search(name))]
    others = [name for name in fit.beside
              if not (name in normalizers or _UNUSED.search(name) or _OTHER_NETS.search(name))]  # fmt: skip
    if not fit.whole or unknown:
        problems = []
        if fit.shapes:
            problems.append(f"{len(fit.shapes)} of another shape: {some(fit.shapes)}")
        if fit.missing:
            problems.append(f"{len(fit.missing)} that the net needs are missing: {some(fit.missing)}")
        if unknown:
            problems.append(f"{len(unknown)} that the net does not have: {some(unknown)}")
        hint = ""
        if fit.shapes and not fit.missing and not unknown:
            hint = (
                "; the architecture fits, but the number of classes or channels, or the width, differs (--classes of "
                "rkd eval, and classes = [...] in a teacher's table, pick some of its classes)"
            )
        elif len(file.states) > 1:
            hint = f"; the file holds {', '.join(file.states)}: FILE#KEY chooses"
        raise WeightsError(f"{source} does not fit this architecture: {'; '.join(problems)}{hint}")
    wanted = net.state_dict()
    if whole := [name for name, value in fit.tensors.items()
                 if wanted[name].is_floating_point() and not value.is_floating_point()]:  # fmt: skip
        raise WeightsError(f"{source} holds whole numbers for {some(whole)}: they are quantised, and their scales are "
                           "no part of this net; save the weights as floats")  # fmt: skip
    broken = [name for name, value in fit.tensors.items()
              if value.is_floating_point() and not bool(value.isfinite().all())]  # fmt: skip
    if broken:
        raise WeightsError(f"{source} holds values that are not numbers (NaN or infinity), in {some(broken)}")
    if others:
        raise WeightsError(
            f"{source} holds more than this architecture: {some(others)}. If the net answers without them, choose its "
            f"part alone: {file.name}#{fit.label}"
        )
    net.load_state_dict({**wanted, **fit.tensors})
    notes = [f"{source}: of {', '.join(file.states)} it holds, {fit.key} fits"] if len(file.states) > 1 else []
    if left := [name for name in unused if name not in normalizers]:
        notes.append(f"{source}: left out, as no part of the net: {some(left)}")
    return normalization, notes


def net_from_file(
    reference: str, model: str, build: Callable[[int], Net], classes: int, strip: str = "", some_of: bool = False
) -> Net:
    """A net with the weights in `FILE` or `FILE#key`. `build(K)` makes an untrained `model` with K logits. A net with
    one logit for two classes becomes one with two; any other number of logits is the file's if `some_of` them are
    picked later. `strip`: see `open_weights`. Raises WeightsError."""
    file = open_weights(reference, strip)
    with built_for(file.largest, file.name):
        net = build(classes)
        outputs = outputs_of(file, net.arch, classes)
        if some_of or (outputs, classes) == (1, 2):
            net = build(outputs)
    normalization, notes = load_file_into(net.arch, file, f"{file.name} (for {model})")
    if (outputs, classes) == (1, 2) and not some_of:
        net.arch = nn.Sequential(net.arch, TwoLogits())
        notes.append(f"{file.name}: its one logit is taken for class 1, of probability sigmoid(logit)")
    if normalization:
        mean, std = (tuple(values) for values in normalization)
        choice = "/".join(",".join(f"{value:.4g}" for value in values) for values in normalization)
        net.settle(InputNormalization(mean, std, choice, "file"))
    net.notes = tuple(notes)
    return net


def outputs_of(file: WeightsFile, net: nn.Module, classes: int) -> int:
    """How many logits the net in `file` has, where `net` of the same architecture has `classes`: they differ in the
    first axis of the last layer alone. `classes` where that explains nothing."""
    fit = _best(net, file)
    wanted = net.state_dict()
    differ = [(wanted[key].shape, fit.tensors[key].shape) for key in wanted
              if key in fit.tensors and wanted[key].shape != fit.tensors[key].shape]  # fmt: skip
    found = {there[0] for own, there in differ if len(own) == len(there) > 0}
    alike = all(len(own) == len(there) > 0 and own[0] == classes and own[1:] == there[1:] for own, there in differ)
    return found.pop() if differ and alike and len(found) == 1 and not fit.missing else classes


def take_normalization(state: Mapping[str, Tensor], net: nn.Module) -> tuple[State, Normalization | None]:
    """Split what a wrapper around the net stored of its input normalisation (`mean`, `std`; `mu`, `sigma`; `new_mean`,
    `new_std`) off `state`.

    Returns the rest and (mean, std), one number a channel, or None where the file holds none. Raises WeightsError for
    numbers of images in another range than [0, 1].
    """
    wanted = net.state_dict()
    keys, found = _normalization({name: value for name, value in state.items() if name not in wanted})
    rest = {name: value for name, value in state.items() if name not in keys}
    return (strip_prefixes(rest), found) if found else (rest, None)


@contextmanager
def built_for(state: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Inside, no net is built that is much larger than the weights in `state`, which are meant for it.

    What a stranger's run says of its architecture ends here, before it takes memory without end. Raises WeightsError.
    """
    there = sum(value.numel() for value in state.values())
    too_large = WeightsError(f"{source} holds {there:,} numbers, but the net that it is said to be for has far more")
    try:
        with _at_most(4 * there + ROOM + 1000 * len(state), too_large):
            yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise WeightsError(f"{source}: the net that it is said to be for does not fit into memory") from None


@contextmanager
def room_for(model: str) -> Iterator[None]:
    """Inside, no net is built that would take more than a quarter of the free memory: a recipe's name or options may
    ask for any size, other libraries' nets too, and a training takes four times the weights. Raises Refused."""
    free = free_memory()
    too_large = Refused(f"{model} is too large: its weights would take more than a quarter of the {free >> 20:,} MiB "
                        "of memory that are free; take a smaller model, width, depth or resize")  # fmt: skip
    with _at_most(free // 16, too_large):
        yield


@contextmanager
def _at_most(limit: int, too_large: RkdError) -> Iterator[None]:
    """Inside, whoever builds nets of more than `limit` numbers gets the error, before they are filled."""
    counted = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal counted
        # Each counts as a thousand numbers at least: as modules they take as much memory.
        counted += max(tensor.numel(), 1000) if tensor is not None else 0
        if counted > limit:
            raise too_large

    register = nn.modules.module
    hooks = [register.register_module_parameter_registration_hook(count),
             register.register_module_buffer_registration_hook(count)]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_download(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options for a net whose weights are loaded next: none need be fetched."""
    return {**options, "pretrained": False} if "pretrained" in options else dict(options)


def _best(net: nn.Module, file: WeightsFile) -> _Fit:
    """The fit that leaves the least open. Raises WeightsError if several are whole, and differ."""
    fits = [fit for key, state in file.states.items() for fit in _fits(net, key, state)]
    whole: list[_Fit] = []
    for fit in fits:
        if fit.whole and not any(same(fit.tensors, other.tensors) for other in whole):
            whole.append(fit)
    if len(whole) > 1:
        keys = {fit.key for fit in whole if fit.key}
        raise WeightsError(file.several([fit.key if len(keys) == len(whole) else fit.label for fit in whole]))
    return min(fits, key=lambda fit: fit.open_ends)


def _fits(net: nn.Module, key: str, state: State) -> Iterator[_Fit]:
    """How `state` may lie in the net, with each prefix that stands before the net's names or before all of its own."""
    wanted = net.state_dict()
    # Checkpoints older than torch 0.4.1 do not count batches; the counter takes no part in eval mode.
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    own = next(iter(wanted), "").removesuffix(next(iter(strip_prefixes(wanted)), ""))
    anchors = [needed[place] for place in (0, len(needed) // 2, -1)] if needed else []
    for left_out in dict.fromkeys(("", own)):  # a net's own names may begin with `net.` or `model.`, which files lack
        ends = [anchor.removeprefix(left_out) for anchor in anchors]
        found = Counter(
            name.removesuffix(end) for name in state for end in ends if name == end or name.endswith(f".{end}")
        )
        first = next(iter(state), "")
        common = first.removesuffix(next(iter(strip_prefixes(state)), ""))
        for prefix in sorted({"", common, *(prefix for prefix, _ in found.most_common(_MOST_PREFIXES))}):
            yield _fit(net, wanted, needed, key, state, prefix, left_out)


def _fit(
    net: nn.Module, wanted: Mapping[str, Tensor], needed: list[str], key: str, state: State, prefix: str, own: str
) -> _Fit:
    traits = declared(net, NetTraits)
    inside = {own + name[len(prefix) :]: name for name in state if name.startswith(prefix)}
    for theirs, ours in traits.renamed_keys.items():
        inside = {name if name in wanted else name.replace(theirs, ours): there for name, there in inside.items()}
    tensors = {name: state[inside[name]] for name in wanted if name in inside}
    ignored = tuple(traits.ignored_keys)
    extra = [there for name, there in inside.items() if name not in wanted and not name.startswith(ignored)]
    shapes = [
        f"{name} is {tuple(value.shape)} in the file and {tuple(wanted[name].shape)} in the net"
        for name, value in tensors.items()
        if value.shape != wanted[name].shape
    ]
    missing = [name for name in needed if name not in tensors]
    beside = [name for name in state if not name.startswith(prefix)]
    return _Fit(key, prefix, tensors, missing, extra, shapes, beside)


def _normalization(state: Mapping[str, Tensor]) -> tuple[list[str], Normalization | None]:
    """The names in `state` that hold a normalisation, and its mean and std. Raises WeightsError."""
    for names in _NORMALIZERS:
        keys = [[key for key in state if key.split(".")[-1] == name] for name in names]
        found = [[state[key].flatten().tolist() for key in of] for of in keys]
        if all(values and len(values[0]) in (1, 3) and all(v == values[0] for v in values) for values in found):
            mean, std = found[0][0], found[1][0]
            if max(map(abs, mean)) > 2 or min(std) <= 0 or max(std) > 2:
                raise WeightsError(
                    f"the file's own normalisation, mean {mean} and std {std}, is not for images in [0, 1]: choose the "
                    "net alone with FILE#KEY, and give its normalisation for [0, 1] as normalize = MEAN,.../STD,..."
                )
            return [*keys[0], *keys[1]], (mean, std)
    return [], None
