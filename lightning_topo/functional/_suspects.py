"""Which neurons may be stretched or squeezed by more than a bound in an update, found without all distances."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_topo.functional._pairs import for_products, from_mean

# All distances are kept of clouds of up to this many neurons (64 MiB) that have come near a bound; of others, those to
# the nearest neuron.
_MAX_KEPT = 4096
# New distances are taken when those of an earlier time leave more than this share of the neurons: they cost as much as
# evaluating two thirds of the neurons, and serve for some time.
_MANY = 0.25
# Error allowed for squared distances that come from a matrix product, relative to the points' squared norms: far above
# that of single precision, and far below what would make the bound useless.
_GRAM_ERROR = 1e-4
_BLOCK = 512
_CACHED_ROWS = 64


class SuspectSearch:
    r"""Finds the neurons of all pairs whose κ may reach a bound, in successive updates of one cloud.

    With positions :math:`p^0` of an earlier time, displacement s = p - p⁰ and update u, both taken relative to their
    mean,

    .. math:: \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}

    costs O(n² + n D) an update where κ itself costs O(n² D). The distances are taken anew when the neurons have moved
    so far since that the bound leaves many of them.
    """

    def __init__(self) -> None:
        self._reference: _Reference | None = None
        self._came_near = False

    def __call__(self, before: Tensor, update: Tensor, bound: float) -> Tensor:
        """Indices of the neurons, shape (k,), ascending.

        Args:
            before: Points before the update, shape (n, D).
            update: Lengths of the updates relative to their mean, shape (n,).
            bound: Criticality to look for.
        """
        if self._reference is None:
            self._reference = _Reference(before, self._came_near)
        since = spread(before, self._reference.points)
        suspects = self._suspects(update, since, bound)
        # New distances help where it is the way since that leaves so many, not the update.
        if len(suspects) > _MANY * len(before) and bound * float(since.mean()) > float(update.mean()):
            self._reference, since = _Reference(before, self._came_near), torch.zeros_like(since)
            suspects = self._suspects(update, since, bound)
        return suspects

    def _suspects(self, update: Tensor, since: Tensor, bound: float) -> Tensor:
        assert self._reference is not None
        # The ratio's bound reaches ours where |u_i| + b |s_i| + |u_j| + b |s_j| reaches b times the distance of then.
        reach = update + bound * since
        fastest = reach.max()
        if 2 * float(fastest) < bound * self._reference.closest:
            return reach.new_zeros(0, dtype=torch.long)
        suspects = (reach + fastest >= bound * self._reference.nearest).nonzero().squeeze(1)
        if len(suspects) == 0 or len(reach) > _MAX_KEPT:
            return suspects
        self._came_near = True
        if self._reference.distances is None:
            self._reference = _Reference(self._reference.points, True)
            assert self._reference.distances is not None
        size = _CACHED_ROWS if reach.device.type == "cpu" else len(reach)
        blocks = zip(reach.split(size), self._reference.distances.split(size), strict=True)
        near = [(part[:, None] + reach >= bound * distances).any(1) for part, distances in blocks]
        return torch.cat(near).nonzero().squeeze(1)


def spread(to: Tensor, since: Tensor) -> Tensor:
    """How far each point moved relative to the mean movement, shape (n,)."""
    dtype = torch.promote_types(to.dtype, torch.float32)
    return from_mean(to.to(dtype) - since.to(dtype))


class _Reference:
    """A cloud at one time with its distances, which bound those of later times.

    Attributes:
        points: The cloud, shape (n, D).
        nearest: Distance of each neuron to the nearest other, not above the true one, shape (n,).
        closest: The smallest of them.
        distances: All pairwise distances, not above the true ones, infinite to oneself, shape (n, n), or None.

    Args:
        points: The cloud, shape (n, D).
        keep_distances: Whether to have ``distances``, which are computed in any case.
    """

    def __init__(self, points: Tensor, keep_distances: bool) -> None:
        n = len(points)
        self.points = points
        self.nearest = points.new_full((n,), math.inf, dtype=torch.float32)
        self.distances = points.new_empty(n, n, dtype=torch.float32) if keep_distances else None
        for rows, block in _lower_distances(points):
            columns = slice(rows.start, n)
            for part, axis in ((rows, 1), (columns, 0)):
                self.nearest[part] = torch.minimum(self.nearest[part], block.amin(axis))
            if self.distances is not None:
                self.distances[rows, columns] = block
                self.distances[columns, rows] = block.T
        self.closest = float(self.nearest.min())


def _lower_distances(points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances of blocks of rows to all points from the first of them on, not above the true ones, to oneself inf."""
    x = for_products(points)
    x = x - x.mean(0)
    norms = x.square().sum(1)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(x)))
        # |x - y|² less what rounding may have added to it.
        sums = (norms[rows, None] + norms[None, start:]).mul_(1 - _GRAM_ERROR)
        block = sums.addmm_(x[rows], x[start:].T, alpha=-2.0).clamp_min_(0).sqrt_().mul_(1 - 1e-6)
        block.diagonal().fill_(math.inf)
        yield rows, block.float()
