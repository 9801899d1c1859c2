"""κ of one neuron group's updates, exact where it comes near a bound and cheap elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_topo.functional._suspects import SuspectSearch
from lightning_topo.functional.criticality import criticality
from lightning_topo.neurons import NeuronGroup

# Far above what rounding adds to a length in single precision.
_ROUNDING = 1e-4
# Where more neurons than this are suspect, the fastest are evaluated first.
_LARGE = 256
_FASTEST = 64


class GroupUpdates:
    """Successive updates of one neuron group, of which those of a κ near or above a bound are to be found.

    Pairs that may come near the bound are searched (``SuspectSearch``), and only these are evaluated.

    Args:
        group: The group.
        model: The module that holds its parameters.
        bound: κ is exact where it is as large as this.
        kept: Where the parameters are kept over an update, by their ``id``.
        moved: Where the update of each is put, by its ``id``.
    """

    def __init__(
        self,
        group: NeuronGroup,
        model: nn.Module,
        bound: float,
        kept: Mapping[int, Tensor],
        moved: Mapping[int, Tensor],
    ) -> None:
        slices = group.slices(model)
        self.name = group.name
        self._bound = bound
        self._eps = max(torch.finfo(parameter.dtype).eps for _, parameter in slices)
        self._kept = [member.units(kept[id(parameter)]) for member, parameter in slices]
        self._moved = [member.units(moved[id(parameter)]) for member, parameter in slices]
        self._search = SuspectSearch()

    def update(self) -> Tensor:
        """Displacements of the neurons, shape (n, D)."""
        return _rows(self._moved)

    def criticality(self, update: Tensor, spread: Tensor | None = None) -> float:
        """κ of an update; ``nan`` where no pair can be resolved.

        Args:
            update: What ``update`` says.
            spread: Lengths of the update relative to its mean, shape (n,). With it, a κ below the bound is not
                evaluated, and ``nan``.
        """
        before = _rows(self._kept)
        if spread is None:
            return criticality(before, update, self._eps)
        spread = spread * (1 + _ROUNDING)
        suspects, kappa = self._search(before, spread, self._bound), 0.0
        if len(suspects) > _LARGE:  # only pairs that may exceed the κ of the fastest neurons are left to evaluate
            kappa = self._among(before, update, spread.topk(_FASTEST).indices)
            suspects = self._search(before, spread, max(self._bound, kappa))
        kappa = max(kappa, self._among(before, update, suspects))
        return kappa if kappa >= self._bound else math.nan

    def _among(self, before: Tensor, update: Tensor, neurons: Tensor) -> float:
        """κ over the pairs of some neurons, 0 where none can be resolved."""
        if len(neurons) < 2:
            return 0.0
        if len(neurons) < len(before):
            before, update = before[neurons], update[neurons]
        kappa = criticality(before, update, self._eps)
        return 0.0 if math.isnan(kappa) else kappa


def _rows(units: list[Tensor]) -> Tensor:
    """Units of several tensors side by side, shape (n, D), on the device of the first."""
    return torch.cat([part.flatten(1).to(units[0].device) for part in units], dim=1)
