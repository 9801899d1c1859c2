"""κ of one neuron group's updates, exact where it comes near a bound and cheap elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_topo.functional import bi_lipschitz
from lightning_topo.functional._suspects import SuspectSearch
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons.group import member_rows

# Far above what rounding adds to a length in single precision.
_ROUNDING = 1e-4


class GroupUpdates:
    """Successive updates of one neuron group, of which those of a κ near or above a bound are to be found.

    Where no neuron moves, relative to the mean of all, by half of the bound times the smallest distance, κ is certainly
    below. Where that does not settle it, the pairs are searched (``SuspectSearch``), and the suspects evaluated.

    Args:
        group: The group.
        model: The module that holds its parameters.
        bound: κ is exact where it is as large as this.
    """

    def __init__(self, group: NeuronGroup, model: nn.Module, bound: float) -> None:
        self.name = group.name
        self._coordinates = group.coordinates(model)
        self.parameters = [parameter for _, parameter in self._coordinates]
        self._bound = bound
        self._eps = max(torch.finfo(parameter.dtype).eps for parameter in self.parameters)
        self._search = SuspectSearch(bound)
        self._closest = 0.0

    def spread(self, moved: Mapping[int, Tensor]) -> Tensor:
        """Lengths of the neurons' updates relative to their mean, shape (n,).

        Args:
            moved: Displacement of each parameter, by its ``id``.
        """
        squares: list[Tensor] = []
        for member, parameter in self._coordinates:
            units = member.units(moved[id(parameter)])
            length = torch.linalg.vector_norm(units - units.mean(0), dim=tuple(range(1, units.ndim)))
            squares.append(length.square_().to(squares[0].device if squares else length.device))
        return torch.stack(squares).sum(0).sqrt_()

    def certainly_below(self, largest_spread: float) -> bool:
        """Whether κ is certainly below the bound, when no neuron moves further relative to the mean."""
        return 2 * largest_spread * (1 + _ROUNDING) < self._bound * self._closest

    def criticality(self, kept: Mapping[int, Tensor], spread: Tensor | None = None) -> float:
        """κ of an update; ``nan`` where no pair can be resolved.

        Args:
            kept: The parameters before the update, by ``id``.
            spread: What ``spread`` says of the update. With it, a κ below the bound is not evaluated, and ``nan``.
        """
        before = self._points(kept)
        if spread is None:
            return bi_lipschitz(before, self._points(), self._eps).criticality
        suspects = self._search(before, spread * (1 + _ROUNDING))
        self._closest = max(self._closest, self._search.closest)
        if len(suspects) < 2:
            return math.nan
        kappa = bi_lipschitz(before[suspects], self._points()[suspects], self._eps).criticality
        return kappa if kappa >= self._bound else math.nan

    def accept(self, largest_spread: float) -> None:
        """The update stands; no neuron moved further relative to the mean."""
        self._closest = max(0.0, self._closest - 2 * largest_spread * (1 + _ROUNDING))

    def _points(self, kept: Mapping[int, Tensor] | None = None) -> Tensor:
        rows = [
            member_rows(member, parameter if kept is None else kept[id(parameter)], None)
            for member, parameter in self._coordinates
        ]
        return torch.cat([block.to(rows[0].device) for block in rows], dim=1)
