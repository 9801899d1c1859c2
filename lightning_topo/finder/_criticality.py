"""Criticality of one neuron group's updates during a search, exact where it matters and cheap elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import NeuronGroup

# Clouds of up to this many n² D are always evaluated in full: about ten milliseconds on one core.
_ALWAYS_EXACT = 10**8
# Neurons that are evaluated first: a rate that is far too high shows among them.
_FASTEST = 256
# Distances of the start cloud are kept for up to this many neurons (128 MiB).
_MAX_KEPT = 4096
# Relative error allowed for distances that come from a matrix product.
_GRAM_ERROR = 1e-9


class CriticalityMeter:
    r"""Criticality of the updates of one neuron group, for trials that all start from the same points.

    With start positions :math:`p^0`, displacement s = p - p⁰ and update u, both taken relative to their mean,

    .. math:: \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}

    costs O(n² + n D) an update where κ itself costs O(n² D). Only neurons of pairs whose bound reaches ``floor`` are
    evaluated, the fastest first, and no more once these reach κ >= 1. So whether κ >= 1 is always exact, κ itself is
    exact in [``floor``, 1), and elsewhere the value is a lower bound of it. Small clouds are evaluated in full.

    Args:
        model: The module that holds the parameters.
        group: The group.
        floor: Smallest κ that has to be exact.
    """

    def __init__(self, model: nn.Module, group: NeuronGroup, floor: float = 0.5) -> None:
        self.group = group
        self._model, self._floor = model, floor
        self._start: Tensor | None = None
        self._distances: Tensor | None = None

    def points(self) -> Tensor:
        """The neuron cloud now, shape (n, D)."""
        return self.group.points(self._model)

    def criticality(self, before: Tensor, after: Tensor) -> float:
        """κ of the update; ``inf`` when a coordinate is not finite, 0 when no pair can be resolved."""
        if not bool(before.isfinite().all() & after.isfinite().all()):
            return math.inf
        n, dimension = before.shape
        if n * n * dimension <= _ALWAYS_EXACT or n > _MAX_KEPT:
            return _criticality(before, after)
        rows = self._suspects(before, after)
        kappa = _criticality(before[rows[:_FASTEST]], after[rows[:_FASTEST]])
        return kappa if kappa >= 1 or len(rows) <= _FASTEST else _criticality(before[rows], after[rows])

    def _suspects(self, before: Tensor, after: Tensor) -> Tensor:
        """Neurons of the pairs whose bound reaches the floor, the fastest first."""
        if self._start is None or self._distances is None:
            self._start, self._distances = before, _lower_distances(before)
        moved, update = _spread(before, self._start), _spread(after, before)
        gap = self._distances - moved[:, None] - moved[None, :]
        pairs = update[:, None] + update[None, :] >= self._floor * gap
        pairs.fill_diagonal_(False)
        fastest = update.argsort(descending=True)
        return fastest[pairs.any(1)[fastest]]


def _criticality(before: Tensor, after: Tensor) -> float:
    kappa = bi_lipschitz(before, after).criticality if len(before) > 1 else math.nan
    return 0.0 if math.isnan(kappa) else kappa


def _spread(to: Tensor, since: Tensor) -> Tensor:
    """How far each point moved relative to the mean movement, shape (n,)."""
    movement = to - since
    return torch.linalg.vector_norm(movement - movement.mean(0), dim=1)


def _lower_distances(points: Tensor) -> Tensor:
    """Pairwise distances, not above the true ones, shape (n, n), in single precision."""
    x = points.cpu().double() if points.device.type == "mps" else points.double()
    x = x - x.mean(0)
    norms = x.square().sum(1)
    sums = norms[:, None] + norms[None, :]
    squared = torch.addmm(sums, x, x.T, alpha=-2.0).sub_(sums, alpha=_GRAM_ERROR).clamp_min_(0)
    return squared.sqrt_().mul_(1 - 1e-6).to(points.device, torch.float32)
