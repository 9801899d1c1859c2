"""Attributes of modules that tell the sizes of their parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_topo.neurons.merging.slots import PlacedUnits
from lightning_topo.neurons.merging.surgery import Change, SizeAttribute

# Of layers whose sizes are checked or used by name: which attribute tells the length of which axis.
_WEIGHT_NORMS = ("_g", "_v", "_orig")
_Names = Mapping[str, Mapping[int, str]]
_KNOWN: tuple[tuple[type[nn.Module] | str, _Names], ...] = (
    (nn.Linear, {"weight": {0: "out_features", 1: "in_features"}}),
    (nn.Bilinear, {"weight": {0: "out_features", 1: "in1_features", 2: "in2_features"}}),
    (nn.Embedding, {"weight": {1: "embedding_dim"}}),
    (nn.EmbeddingBag, {"weight": {1: "embedding_dim"}}),
    (nn.modules.batchnorm._NormBase, {"weight": {0: "num_features"}, "running_mean": {0: "num_features"}}),
    (nn.PReLU, {"weight": {0: "num_parameters"}}),
    (nn.RNNBase, {"weight_ih_l0": {1: "input_size"}, "weight_hh_l0": {1: "hidden_size"}}),
    (nn.RNNCellBase, {"weight_ih": {1: "input_size"}, "weight_hh": {1: "hidden_size"}}),
    ("Conv1D", {"weight": {0: "nx", 1: "nf"}}),  # of transformers
)  # fmt: skip
# What an attribute is called that tells a size; one that is called otherwise is set only where nothing runs without.
_SIZE = re.compile(r"size|dim|features|channels|width|hidden|heads|groups|units|embed|inner|planes|num|^n_|^d_|^[dn]$")


def known_sizes(
    model: nn.Module, changes: Sequence[Change], units: PlacedUnits, n_after: int
) -> Iterator[SizeAttribute]:
    """Sizes that follow from those of the parameters, in modules of PyTorch's own and in others where one is meant."""
    for change in changes:
        path, leaf = _layer(change)
        module = model.get_submodule(path)
        names = _named(module)
        if isinstance(module, nn.modules.conv._ConvNd) and leaf == "weight":
            yield from _convolution(path, module, change, units, n_after)
        elif isinstance(module, nn.GroupNorm) and leaf == "weight":
            yield SizeAttribute(path, "num_channels", change.after)
            yield from _scaled_groups(path, "num_groups", module.num_groups, change, units, n_after)
        elif names is not None:
            if change.axis in names.get(leaf, {}):
                yield SizeAttribute(path, names[leaf][change.axis], change.after)
        else:
            yield from _meant(path, module, change)


def possible_sizes(
    model: nn.Module, changes: Sequence[Change], units: PlacedUnits, n_after: int, done: Sequence[SizeAttribute]
) -> list[SizeAttribute]:
    """Further attributes that hold a number that has changed, those of the nearest modules first."""
    lengths: dict[int, int] = {}
    for change in changes:
        lengths.setdefault(change.before, change.after)
    for slot in units.slots:
        k = slot.positions.shape[1]
        for times in range(1, k + 1):
            if k % times == 0:
                lengths.setdefault(units.n * times, n_after * times)
    known = {(size.module, size.name) for size in done}
    found = []
    for path in _nearest_first({_layer(change)[0] for change in changes}):
        module = model.get_submodule(path)
        known_kind = _named(module) is not None or isinstance(module, (nn.modules.conv._ConvNd, nn.GroupNorm))
        for name, value in () if known_kind else list(vars(module).items()):
            new = _resized(value, lengths)
            if new is not None and not name.startswith("_") and (path, name) not in known:
                found.append(SizeAttribute(path, name, new))
    return found


def _layer(change: Change) -> tuple[str, str]:
    """The module whose forward pass uses a parameter, and how that calls it, parametrised or not."""
    path, found, leaf = f"{change.module}.".partition("parametrizations.")
    if found:
        return path.rstrip("."), leaf.rstrip(".").partition(".")[0]
    for ending in _WEIGHT_NORMS:
        if change.leaf.startswith("weight") and change.leaf.endswith(ending):
            return change.module, change.leaf.removesuffix(ending)
    return change.module, change.leaf


def _named(module: nn.Module) -> _Names | None:
    for kind, names in _KNOWN:
        if type(module).__name__ == kind if isinstance(kind, str) else isinstance(module, kind):
            return names
    return None


def _convolution(
    path: str, module: nn.modules.conv._ConvNd, change: Change, units: PlacedUnits, n_after: int
) -> Iterator[SizeAttribute]:
    """Channels in and out; where units are whole groups of channels, there are fewer groups."""
    groups = module.groups
    if change.axis == 0:
        for size in _scaled_groups(path, "groups", groups, change, units, n_after):
            groups = size.value
            yield size
    own, within = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
    if change.axis == 0:
        yield SizeAttribute(path, own, change.after)
        if groups != module.groups:
            yield SizeAttribute(path, within, getattr(module, within) // module.groups * groups)
    elif change.axis == 1:
        yield SizeAttribute(path, within, change.after * module.groups)


def _scaled_groups(
    path: str, name: str, groups: int, change: Change, units: PlacedUnits, n_after: int
) -> Iterator[SizeAttribute]:
    """Fewer groups, if each unit lies within one of them; units of which every group holds a part leave them alone."""
    (first,) = (slot.positions[0] for slot in units.slots if (slot.tensor, slot.axis) == (change.tensor, change.axis))
    if groups == 1 or groups * n_after % units.n:
        return
    if int(first.max() - first.min()) + 1 == len(first):  # one block
        yield SizeAttribute(path, name, groups * n_after // units.n)


def _meant(path: str, module: nn.Module, change: Change) -> Iterator[SizeAttribute]:
    """Of a module of somebody's own: attributes called like sizes that can only mean this axis."""
    lengths = [n for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None
               for n in tensor.shape]  # fmt: skip
    if change.before not in lengths:
        for name, value in list(vars(module).items()):
            if type(value) is int and value == change.before and _SIZE.search(name):
                yield SizeAttribute(path, name, change.after)


def _resized(value: Any, lengths: Mapping[int, int]) -> Any:
    """A number, or a sequence of numbers, with what has changed put right; None if nothing has."""
    if type(value) is int:
        return lengths.get(value)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        new = type(value)(lengths.get(item, item) for item in value)
        return new if new != value else None
    return None


def _nearest_first(paths: set[str]) -> list[str]:
    """The modules, then those that they are part of, and so on up to the model."""
    found: dict[str, None] = dict.fromkeys(sorted(paths))
    level = set(paths)
    while level - {""}:
        level = {path.rpartition(".")[0] for path in level if path}
        found.update(dict.fromkeys(sorted(level)))
    return list(found)
