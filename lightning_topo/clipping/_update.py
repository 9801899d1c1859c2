"""κ of one neuron group's updates, exact where it comes near a bound and cheap elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_topo.functional._pairs import from_mean
from lightning_topo.functional._suspects import SuspectSearch
from lightning_topo.functional.criticality import criticality
from lightning_topo.neurons import NeuronGroup

# A clipped update aims this far below the bound, for rounding moves κ a little.
AIM = 0.999
# κ is exact from this share of the bound on.
_EXACT_FROM = 0.99
# Far above what rounding adds to a length in single precision.
_ROUNDING = 1e-4
# Where more neurons than this are suspect, the fastest eighth are evaluated first.
_LARGE = 256
_SHARE = 8


class GroupUpdates:
    """Successive updates of one neuron group, of which those of a κ near or above a bound are to be found.

    Pairs that may come near the bound are searched (``SuspectSearch``), and only these are evaluated.

    Args:
        group: The group.
        model: The module that holds its parameters.
        max_criticality: The bound that updates are to be scaled back to; κ is exact from 0.99 of it on.
        kept: Where the parameters are kept over an update, by their ``id``.
        moved: Where the update of each is put, by its ``id``.
    """

    def __init__(
        self,
        group: NeuronGroup,
        model: nn.Module,
        max_criticality: float,
        kept: Mapping[int, Tensor],
        moved: Mapping[int, Tensor],
    ) -> None:
        slices = group.slices(model)
        self.name = group.name
        self._max_criticality, self._bound = max_criticality, _EXACT_FROM * max_criticality
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
            kappa = self._among(before, update, spread.topk(len(spread) // _SHARE).indices)
            suspects = self._search(before, spread, max(self._bound, kappa))
        kappa = max(kappa, self._among(before, update, suspects))
        return kappa if kappa >= self._bound else math.nan

    def criticality_scaled(self, update: Tensor, unscaled: Tensor, factor: float, kappa: float) -> float:
        """κ of an update that was scaled back: ``factor`` times what it was, but for what rounding made of it.

        With δ = update - factor · unscaled, κ is at most factor · κ(unscaled) + max (|δ_i| + |δ_j|) / |p_i - p_j|.
        Where the last term may be a thousandth of the bound, κ is measured again; else it is right to that.

        Args:
            update: What ``update`` says now.
            unscaled: What it said before the scaling.
            factor: By which it was scaled, so that κ is at most ``AIM`` times the bound.
            kappa: What ``criticality`` said of ``unscaled``.
        """
        if factor == 1:
            return kappa
        if factor == 0:
            return 0.0
        before = _rows(self._kept)
        rounding = torch.linalg.vector_norm(update - factor * unscaled, dim=1) * (1 + _ROUNDING)
        if len(self._search(before, rounding, 0.9 * (1 - AIM) * self._max_criticality)):
            return self.criticality(update, from_mean(update))
        return factor * kappa

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
