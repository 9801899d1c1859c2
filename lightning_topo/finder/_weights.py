"""Copies of a run's parameters from before an update, made once for all neuron groups that share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_topo.neurons import Member, NeuronGroup
from lightning_topo.neurons.member import member_rows

# Differences are taken in blocks that stay in a core's cache; on an accelerator the calls cost more than the memory.
_BLOCK_ELEMENTS = 2**17
_DEVICE_BLOCK_ELEMENTS = 2**24


class WeightsBefore:
    """The parameters of some neuron groups as they were when they were last taken.

    Args:
        parameters: The parameters; repeated ones count once.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._now = {id(p): p for p in parameters}
        self._copies = {key: p.detach().clone() for key, p in self._now.items()}

    def __getitem__(self, parameter: nn.Parameter) -> Tensor:
        """The copy of a parameter."""
        return self._copies[id(parameter)]

    def take(self) -> None:
        """Copy them as they are now."""
        for key, parameter in self._now.items():
            self._copies[key].copy_(parameter.detach())


class Slices:
    """Where the coordinates of a group's neurons lie, now and before.

    Args:
        model: The module that holds the parameters.
        group: The group.
    """

    def __init__(self, model: nn.Module, group: NeuronGroup) -> None:
        self._slices = group.slices(model)
        self.parameters: Sequence[nn.Parameter] = [parameter for _, parameter in self._slices]
        self.shape = group.n_units(model), group.dimension(model)

    def now(self, units: Tensor | None = None) -> Tensor:
        """The neuron cloud, or some of its points, shape (n, D)."""
        return self._cloud([parameter.detach() for parameter in self.parameters], units)

    def before(self, weights: WeightsBefore, units: Tensor | None = None) -> Tensor:
        """The same as it was, shape (n, D)."""
        return self._cloud([weights[parameter] for parameter in self.parameters], units)

    def projected(self, weights: WeightsBefore, stride: int) -> Tensor:
        """The cloud as it was in every so manieth coordinate of each member, shape (n, about D / stride)."""
        views = [member.units(weights[parameter]).flatten(1)[:, ::stride] for member, parameter in self._slices]
        return torch.cat([view.to(views[0].device) for view in views], dim=1)

    def moved(self, weights: WeightsBefore) -> Tensor:
        """How far each neuron is from where it was, shape (n,), right to 1e-5 of itself; no cloud is put together."""
        parts = [_squared(member, parameter.detach(), weights[parameter]) for member, parameter in self._slices]
        return torch.stack([part.to(parts[0]) for part in parts]).sum(0).sqrt_()

    def _cloud(self, values: Sequence[Tensor], units: Tensor | None) -> Tensor:
        rows = [member_rows(member, value, units) for (member, _), value in zip(self._slices, values, strict=True)]
        return torch.cat([part.to(rows[0].device) for part in rows], dim=1)


def _squared(member: Member, now: Tensor, before: Tensor) -> Tensor:
    """Sum over a member of the squared differences of each unit, shape (n,)."""
    axis = member.axis % now.ndim
    others = [other for other in range(now.ndim) if other != axis]
    dtype = torch.promote_types(now.dtype, torch.float32)
    sums = now.new_zeros(now.shape[axis], dtype=dtype)
    elements = _BLOCK_ELEMENTS if now.device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS
    size = max(1, elements // max(1, now[0].numel()))
    for rows in (slice(start, start + size) for start in range(0, len(now), size)):
        squares = (now[rows].to(dtype) - before[rows].to(dtype)).square_()
        part = squares.sum(others) if others else squares
        (sums[rows] if axis == 0 else sums).add_(part)
    return replace(member, axis=0).units(sums).flatten(1).sum(1)
