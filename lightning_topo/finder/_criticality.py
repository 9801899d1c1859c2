"""Criticality of one neuron group's updates during a search, exact where it matters and cheap elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import NeuronGroup

# Clouds of up to this many n² D are always evaluated in full: about ten milliseconds on one core.
_ALWAYS_EXACT = 10**8
# Neurons that are always evaluated: a rate that is far too high shows among them.
_FASTEST = 64
# Distances of the start cloud are kept for up to this many neurons (128 MiB).
_MAX_KEPT = 4096
# Relative error allowed for distances that come from a matrix product.
_GRAM_ERROR = 1e-9


class CriticalityMeter:
    r"""Criticality of the updates of one neuron group, for trials that all start from the same points.

    With start positions :math:`p^0`, displacement s = p - p⁰ and update u, both taken relative to their mean,

    .. math:: \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}

    costs O(n² + n D) an update where κ itself costs O(n² D). The fastest neurons are always evaluated, and where they
    stay below 1, those of all pairs whose bound reaches 1. So whether κ >= 1 is exact, and κ itself is a lower bound,
    the largest over the pairs that were evaluated. Small clouds are evaluated in full.

    Args:
        model: The module that holds the parameters.
        group: The group.
    """

    def __init__(self, model: nn.Module, group: NeuronGroup) -> None:
        self.group = group
        self._model = model
        self._start: Tensor | None = None
        self._distances: Tensor | None = None
        self._closest = 0.0

    def points(self) -> Tensor:
        """The neuron cloud now, shape (n, D)."""
        return self.group.points(self._model)

    def criticality(self, before: Tensor, after: Tensor) -> float:
        """κ of the update; ``inf`` when a coordinate is not finite, 0 when no pair can be resolved."""
        update = _spread(after, before)
        if not bool(update.isfinite().all()):
            return math.inf
        n, dimension = before.shape
        if n * n * dimension <= _ALWAYS_EXACT or n > _MAX_KEPT:
            return _criticality(before, after)
        fastest = update.topk(min(n, _FASTEST)).indices
        kappa = _criticality(before[fastest], after[fastest])
        suspects = self._suspects(before, update)
        return (
            kappa if kappa >= 1 or len(suspects) == 0 else max(kappa, _criticality(before[suspects], after[suspects]))
        )

    def _suspects(self, before: Tensor, update: Tensor) -> Tensor:
        """Neurons of the pairs whose bound reaches 1."""
        if self._start is None or self._distances is None:
            self._start, self._distances = before, _lower_distances(before)
            self._closest = float(self._distances.fill_diagonal_(math.inf).min())
        moved = _spread(before, self._start)
        # The bound reaches 1 where |u_i| + |s_i| + |u_j| + |s_j| reaches the distance at the start.
        reach = update + moved
        if 2 * float(reach.max()) < self._closest:
            return reach.new_zeros(0, dtype=torch.long)
        return (reach[:, None] + reach[None, :] >= self._distances).any(1).nonzero().squeeze(1)


def _criticality(before: Tensor, after: Tensor) -> float:
    kappa = bi_lipschitz(before, after).criticality if len(before) > 1 else math.nan
    return 0.0 if math.isnan(kappa) else kappa


def _spread(to: Tensor, since: Tensor) -> Tensor:
    """How far each point moved relative to the mean movement, shape (n,)."""
    movement = to - since
    movement -= movement.mean(0)
    return torch.linalg.vector_norm(movement, dim=1)


def _lower_distances(points: Tensor) -> Tensor:
    """Pairwise distances, not above the true ones, shape (n, n), in single precision."""
    x = points.cpu().double() if points.device.type == "mps" else points.double()
    x = x - x.mean(0)
    norms = x.square().sum(1)
    sums = norms[:, None] + norms[None, :]
    squared = torch.addmm(sums, x, x.T, alpha=-2.0).sub_(sums, alpha=_GRAM_ERROR).clamp_min_(0)
    return squared.sqrt_().mul_(1 - 1e-6).to(points.device, torch.float32)
