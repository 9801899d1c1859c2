"""Where some units lie on one axis of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLayout:
    r"""How an axis is divided among units: unit $u$ owns a few runs of its positions.

    These are $\text{offset} + (o \cdot \text{size} + u) \cdot \text{inner} + i$ for all $o < \text{outer}$ and
    $i < \text{inner}$.

    Args:
        axis: Position of the axis, not negative.
        outer: How often the block of all units is repeated.
        size: Number of units.
        inner: Consecutive positions of one unit.
        offset: First position that belongs to a unit.
    """

    axis: int
    outer: int
    size: int
    inner: int
    offset: int

    def units(self, tensor: Tensor) -> Tensor:
        """View of a whole tensor with the units first, shape (size, ...)."""
        block = tensor.narrow(self.axis, self.offset, self.outer * self.size * self.inner)
        return block.unflatten(self.axis, (self.outer, self.size, self.inner)).movedim(self.axis + 1, 0)

    def rows(self, tensor: Tensor, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """The units of a whole tensor as rows, shape (n, -1); only the rows asked for are read."""
        units = self.units(tensor.detach())
        if indices is not None:
            units = units.index_select(0, torch.as_tensor(indices, dtype=torch.long, device=tensor.device))
        return units.flatten(1)

    def positions(self, units: Tensor) -> Tensor:
        """Positions of some units on the axis, in the order in which ``alone`` expects them."""
        outer = torch.arange(self.outer, device=units.device)[:, None, None]
        inner = torch.arange(self.inner, device=units.device)
        return (self.offset + (outer * self.size + units[:, None]) * self.inner + inner).flatten()

    def alone(self, count: int) -> RowLayout:
        """The layout of ``count`` units on an axis that holds nothing else."""
        return RowLayout(self.axis, self.outer, count, self.inner, 0)
