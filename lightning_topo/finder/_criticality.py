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
# Distances are kept for up to this many neurons (twice 64 MiB).
_MAX_KEPT = 4096
# A bound that leaves more than this share of the neurons is taken from new distances: they cost as much as evaluating
# two thirds of the neurons, and serve for some time.
_MANY = 0.25
# Error allowed for squared distances that come from a matrix product, relative to the points' squared norms: far above
# that of single precision, and far below what would make the bound useless.
_GRAM_ERROR = 1e-4
_BLOCK = 512


class CriticalityMeter:
    r"""Criticality of the updates of one neuron group, for trials that all start from the same points.

    With positions :math:`p^0` of an earlier time (the start; a later one where the neurons have left it far behind),
    displacement s = p - p⁰ and update u, both taken relative to their mean,

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
        self._start: _Reference | None = None
        self._recent: _Reference | None = None

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
        if self._start is None:
            self._start = _Reference(before)
        suspects = self._start.suspects(before, update)
        if len(suspects) > _MANY * len(before) and self._recent is not None:
            suspects = self._recent.suspects(before, update)
        if len(suspects) > _MANY * len(before):
            # The neurons have moved too far since. The new distances serve the following updates, too.
            self._recent = _Reference(before)
            suspects = self._recent.suspects(before, update)
        return suspects


class _Reference:
    """A cloud at one time with all its distances, which bound those of later times."""

    def __init__(self, points: Tensor) -> None:
        self._points = points
        self._distances = _lower_distances(points)
        self._closest = float(self._distances.min())

    def suspects(self, before: Tensor, update: Tensor) -> Tensor:
        # The bound reaches 1 where |u_i| + |s_i| + |u_j| + |s_j| reaches the distance at the start.
        reach = update + _spread(before, self._points)
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
    """Pairwise distances, not above the true ones, infinite to oneself, shape (n, n), in single precision."""
    exact = torch.get_float32_matmul_precision() == "highest" and points.dtype == torch.float32
    x = points if exact or points.device.type == "mps" else points.double()
    x = x - x.mean(0)
    norms = x.square().sum(1)
    distances = points.new_empty(len(x), len(x), dtype=torch.float32)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # |x - y|² less what rounding may have added to it.
        sums = (norms[rows, None] + norms[None, start:]).mul_(1 - _GRAM_ERROR)
        block = torch.addmm(sums, x[rows], x[start:].T, alpha=-2.0).clamp_min_(0).sqrt_().mul_(1 - 1e-6)
        distances[rows, start:] = block
        distances[start:, rows] = block.T
    return distances.fill_diagonal_(math.inf)
