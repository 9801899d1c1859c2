"""Which layer reads the units of a neuron group, and where they lie on its input: there are their activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_topo.neurons import Member, NeuronGroup
from lightning_topo.sharding import RowLayout, canonical_name

# Successive multiples of the golden ratio's fraction spread evenly, and are in step with no row of an image.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class UnitReader:
    """A layer that reads the units of a group.

    Attributes:
        module: The layer.
        axis: Axis of its input on which the units lie, counted from the end.
        layout: How they lie on it.
    """

    module: nn.Module
    axis: int
    layout: RowLayout

    def rows(self, x: Tensor, most: int) -> Tensor | None:
        """Activations of the units, shape (m, n), of at most so many inputs and positions; None where x has no such.

        Args:
            x: Input of the layer.
            most: Where there are more inputs and positions, so many are taken of them, evenly.
        """
        axis = x.ndim + self.axis
        needed = self.layout.offset + self.layout.outer * self.layout.size * self.layout.inner
        if axis < 0 or x.shape[axis] < needed or not x.is_floating_point() or x.numel() == 0:
            return None
        layout = RowLayout(axis, self.layout.outer, self.layout.size, self.layout.inner, self.layout.offset)
        units = layout.units(x.detach())
        places = units.shape[1:]
        count = math.prod(places)
        if count <= most:
            return units.reshape(len(units), count).T.clone()
        chosen = (torch.arange(1, most + 1, dtype=torch.float64) * _GOLDEN % 1.0 * count).long().unique()
        index: Any = torch.unravel_index(chosen.to(x.device), places)
        return units[(slice(None), *index)].T


def unit_readers(model: nn.Module, groups: Sequence[NeuronGroup]) -> dict[str, UnitReader]:
    """For each group, by name, the layer that reads its units last, where one can be found.

    What a layer reads has been through the nonlinearity, normalisation and dropout that stand between. Linear layers
    and convolutions are looked at; attention in one call and recurrent layers read within themselves. Modules that
    torch.compile has taken hold of are left out, for it would compile them again with a hook, and without.

    Args:
        model: The module through which the groups are read.
        groups: The groups.
    """
    modules = {canonical_name(name): (name, module) for name, module in model.named_modules()}
    readers = {}
    for group in groups:
        size = group.n_units(model)
        for member in reversed(group.members):
            owner = canonical_name(member.parameter).split(".parametrizations.")[0]
            owner = owner if owner in modules else owner.rpartition(".")[0]
            name, module = modules.get(owner, ("", None))
            axis = None if module is None else _input_axis(module, member)
            if module is not None and axis is not None and not _compiled(model, name):
                layout = RowLayout(0, member.outer, size, member.inner, member.offset)
                readers[group.name] = UnitReader(module, axis, layout)
                break
    return readers


def _input_axis(module: Any, member: Member) -> int | None:
    """The axis of the input that a member's axis of the weight is multiplied with, counted from the end, or None."""
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":  # of nn.MultiheadAttention, which does not call it
        return None
    if isinstance(module, nn.Linear):
        return -1 if member.axis in (1, -1) and _is_matrix(module, member) else None
    if isinstance(module, _ConvNd) and module.groups == 1:
        reads = 0 if isinstance(module, _ConvTransposeNd) else 1
        return -1 - len(module.kernel_size) if member.axis == reads and _is_matrix(module, member) else None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers: a linear layer, transposed
        return -1 if member.axis == 0 and _is_matrix(module, member) else None
    return None


def _is_matrix(module: nn.Module, member: Member) -> bool:
    """Whether the member is of a weight, not of a bias or of the lengths of a weight norm."""
    last = member.parameter.rpartition(".")[2]
    return last.startswith(("weight", "original")) and last not in ("weight_g", "original0")


def _compiled(model: nn.Module, path: str) -> bool:
    """Whether torch.compile has taken hold of the module at a path, or of one around it."""
    if getattr(model, "_compiler_ctx", None) is not None or "_orig_mod" in path.split("."):
        return True
    around: nn.Module | None = model
    for key in ("", *path.split(".")):
        around = around._modules.get(key, None) if around is not None and key else around
        if around is not None and around._compiled_call_impl is not None:
            return True
    return False
