"""Bi-Lipschitz constants of an update of many neuron clouds at once, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_topo.functional._candidates import Candidates, candidates
from lightning_topo.functional._pairs import relative_resolution
from lightning_topo.functional._products import UpdateClouds, update_clouds
from lightning_topo.functional.double_precision import has_double
from lightning_topo.functional.exact_constants import BiLipschitz
from lightning_topo.functional.most_changed import most_changed

__all__ = ["UpdateConstants", "most_changed", "update_constants", "update_criticality"]

# Pairs of each kind that are evaluated exactly: more where pairs are many and lie closer together. They cost as much
# as some passes over the points, so few are taken of few points with many coordinates.
_MANY = 16
_MANY_POINTS = 512
_SOME = 8
_POINTS_FOR_ONE = 4
_MANY_COORDINATES = 4096


# The columns of the table: κ, the largest ratio and minus the smallest, the pair, bounds of what was left out (of κ²,
# of t times the growth of the squared distance, of its shrinking, and of an open pair), pairs that are not certainly
# resolved, and those of them that are, t, and the size of the points.
_CRITICALITY, _UPPER, _LOWER, _I, _J = range(5)
_CRITICAL, _GROWTH, _SHRINKING, _OPEN = range(5, 9)
_UNRESOLVED, _SETTLED, _RATIO, _SIZE = range(9, 13)
_COLUMNS = 13
# Squares are right to this share of themselves.
_TOLERANCE = 1e-7


@dataclass(frozen=True, eq=False)
class UpdateConstants:
    """Constants of an update of G clouds, as tensors on the points' device that are made when they are asked for.

    Attributes:
        table: All that was found, shape (G, 13), so that one copy brings it to the host, for ``unpack``.
    """

    table: Tensor

    @classmethod
    def without_pairs(cls, before: Tensor, after: Tensor) -> UpdateConstants:
        """Those of clouds of shape (G, n, D) that have no pair of different points."""
        groups, n, _ = before.shape
        table = before.new_full((groups, _COLUMNS), -math.inf, dtype=_exact_dtype(before))
        table[:, _OPEN:] = 0.0
        table[:, _UNRESOLVED] = n * (n - 1) // 2
        table[:, _RATIO] = 1.0
        # Zero times a coordinate is finite where it is.
        table[:, _SIZE] = (before.detach().to(table) * 0.0).sum((1, 2)) + (after.detach().to(table) * 0.0).sum((1, 2))
        return cls(table)

    @classmethod
    def estimated(cls, criticality: Tensor, pair: Tensor, size: Tensor) -> UpdateConstants:
        """κ of some pair, shape (G,), the pair, shape (G, 2), and a number that is finite where the cloud is."""
        unknown = criticality.new_full((2, len(criticality)), math.nan)
        open_ones = criticality.new_zeros(_SIZE - _CRITICAL, len(criticality))
        open_ones[0] = math.inf  # what the pairs left out may reach
        columns = [criticality[None], unknown, pair.T, open_ones, size[None]]
        return cls(torch.cat(columns).T)

    @property
    def criticality(self) -> Tensor:
        """κ = max |u_i - u_j| / |p_i - p_j|, shape (G,); ``nan`` where no pair is resolved."""
        return self._shown(self.table[:, _CRITICALITY])

    @property
    def lower(self) -> Tensor:
        """Smallest ratio of distances after and before, shape (G,)."""
        return self._shown(-self.table[:, _LOWER])

    @property
    def upper(self) -> Tensor:
        """Largest ratio of distances after and before, shape (G,)."""
        return self._shown(self.table[:, _UPPER])

    @property
    def pair(self) -> Tensor:
        """The two neurons i < j that attain the criticality, shape (G, 2); -1 where no pair is resolved."""
        pairs = self.table[:, _I : _J + 1].long().sort(-1).values
        return pairs.masked_fill(self.criticality.isnan()[:, None], -1)

    @property
    def n_unresolved(self) -> Tensor:
        """Pairs that rounding leaves nothing of, shape (G,)."""
        return (self.table[:, _UNRESOLVED] - self.table[:, _SETTLED]).long()

    @property
    def finite(self) -> Tensor:
        """Whether all coordinates are finite, shape (G,). Where not, the constants are ``nan``."""
        return self.table[:, _SIZE].isfinite()

    @property
    def certain(self) -> Tensor:
        """Whether the constants and the number are those of all pairs, shape (G,).

        Where not, they are those of some pairs: evaluate the cloud by ``exact_constants``.
        """
        return _is_certain(self.table.unbind(1)) | ~self.finite

    def packed(self) -> Tensor:
        """The table."""
        return self.table

    @staticmethod
    def unpack(rows: Sequence[Sequence[float]]) -> list[tuple[BiLipschitz, bool, bool]]:
        """Constants of each cloud, whether it is finite, and if they are certain, from ``packed().tolist()``."""
        return [_unpacked(row) for row in rows]

    def _shown(self, values: Tensor) -> Tensor:
        return values.masked_fill(~(self.finite & values.isfinite()), math.nan)


def update_constants(before: Tensor, after: Tensor, eps: float) -> UpdateConstants:
    r"""Constants of ``bi_lipschitz`` for G clouds of one shape, with nothing read back from the device.

    Products in single precision (double for points in double) give all squared distances of the points, of their
    updates and of the sum of both, with bounds on their error. For each constant the pairs with the largest upper bound
    are evaluated from the differences, in double precision where the device has it, and so are those of which it is
    open if they are resolved. The result is certain when no other pair's bound exceeds the value found.

    Args:
        before: Points before the update, shape (G, n, D), floating point.
        after: The same points after it, same shape.
        eps: Relative spacing of the numbers that the points are stored in.

    Returns:
        The constants, as tensors.
    """
    return _constants(before, after, eps, crossed=True)


def update_criticality(before: Tensor, after: Tensor, eps: float) -> UpdateConstants:
    """The same with the criticality alone, for about two thirds of the cost: ``lower`` and ``upper`` are ``nan``."""
    return _constants(before, after, eps, crossed=False)


def _constants(before: Tensor, after: Tensor, eps: float, crossed: bool) -> UpdateConstants:
    _, n, dimension = before.shape
    if n < 2 or dimension == 0:
        return UpdateConstants.without_pairs(before, after)
    share = _POINTS_FOR_ONE if dimension < _MANY_COORDINATES else 2 * _POINTS_FOR_ONE
    count = min(_MANY if n >= _MANY_POINTS else max(2, min(_SOME, n // share)), n * (n - 1) // 2)
    clouds = update_clouds(before, after, crossed)
    found = candidates(clouds, eps, count + 1)
    return _evaluated(before.detach(), after.detach(), eps, clouds, found, count)


def _evaluated(
    before: Tensor, after: Tensor, eps: float, clouds: UpdateClouds, found: Candidates, count: int
) -> UpdateConstants:
    n = before.shape[1]
    pairs = torch.stack([where[..., :count].transpose(0, 1) for where in (found.i, found.j)], dim=1).flatten(2)
    hidden, ratios = _evaluated_pairs(before, after, eps, clouds.unit, pairs)
    settled = (found.bounds[-1, :, :count] > hidden[:, -count:]).sum(-1)  # open ones that are resolved
    crossed = len(found.bounds) == 4
    values = torch.cat([ratios, -ratios[1:]]) if crossed else ratios[:1]
    best, where = values.masked_fill_(hidden, -math.inf).max(-1)
    pair = pairs.gather(2, where[0, :, None, None].expand(-1, 2, 1))[..., 0]
    numbers = (n * (n - 1) // 2 - found.n_resolved, settled, clouds.ratio[:, 0], clouds.size)
    bounds = found.bounds[..., count]
    if crossed:
        columns = [best, pair.T, bounds, *(number[None] for number in numbers)]
    else:
        nothing = best.new_full((2, len(before)), math.nan)
        columns = [best, nothing, pair.T, bounds[:1], nothing, bounds[1:], *(number[None] for number in numbers)]
    return UpdateConstants(torch.cat(columns).T)


def _evaluated_pairs(before: Tensor, after: Tensor, eps: float, unit: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pairs are lost in rounding, shape (G, m), and |u_i - u_j| and |p_i' - p_j'| over |p_i - p_j|, (2, G, m).

    Args:
        before: Points before the update, shape (G, n, D).
        after: The same after it.
        eps: Relative spacing of the numbers that they are stored in.
        unit: Their size, shape (G, 1, 1).
        pairs: Indices, shape (G, 2, m).
    """
    groups, _, m = pairs.shape
    n, dimension = before.shape[1:]
    x = before.new_empty(3, groups, 2, m, dimension, dtype=_exact_dtype(before))
    u, p, q = x.unbind(0)
    rows = pairs.flatten(1)
    if dimension >= _MANY_COORDINATES:  # rows are copied whole
        first = torch.arange(0, groups * n, n, device=before.device)[:, None]
        rows = (rows + first).flatten()
        chosen = [cloud.detach().flatten(0, 1).index_select(0, rows) for cloud in (before, after)]
    else:
        rows = rows[..., None].expand(-1, -1, dimension)
        chosen = [cloud.detach().gather(1, rows) for cloud in (before, after)]
    p.copy_(chosen[0].view_as(p))
    q.copy_(chosen[1].view_as(q))
    if x.dtype != torch.float64:  # squares would not fit
        x[1:].div_(unit[..., None])
    torch.sub(q, p, out=u)
    lengths = torch.linalg.vector_norm(x[:, :, 0] - x[:, :, 1], dim=-1)
    moved, distance, _ = lengths.unbind(0)
    least_before, least_after = torch.linalg.vector_norm(x[1:], dim=(2, 4)).mul_(relative_resolution(eps)).unbind(0)
    hidden = ((moved < least_after) & (moved != 0)) | (distance <= least_before)
    return hidden, lengths[::2] / distance


def _is_certain(row: Sequence[Any]) -> Any:
    """Whether no pair that was left out may have a larger value: of a row of the table, or of its columns.

    Larger by more than a share of 1e-7, which is far below what training shows, and what equal ratios need: those of
    neurons that shrink by weight decay alone. Without the bounds of growth and shrinking, which are ``nan`` then, it is
    so of the criticality.
    """
    growth, shrinking, ratio = row[_GROWTH], row[_SHRINKING], row[_RATIO]
    largest = (row[_CRITICALITY] * row[_CRITICALITY] * (1 + _TOLERANCE) >= row[_CRITICAL]) & (row[_OPEN] <= 0)
    grown = ((row[_UPPER] * row[_UPPER] * (1 + _TOLERANCE) - 1) * ratio >= growth) | (growth != growth)
    shrunk = ((1 - row[_LOWER] * row[_LOWER] * (1 - _TOLERANCE)) * ratio >= shrinking) | (shrinking != shrinking)
    # Distances do not get smaller than nothing.
    return largest & grown & (shrunk | (row[_LOWER] == 0))


def _exact_dtype(points: Tensor) -> torch.dtype:
    return torch.float64 if has_double(points.device) else torch.float32


def _unpacked(row: Sequence[float]) -> tuple[BiLipschitz, bool, bool]:
    finite = math.isfinite(row[_SIZE])
    n_unresolved = int(row[_UNRESOLVED] - row[_SETTLED])
    if not finite or row[_CRITICALITY] == -math.inf:
        constants = BiLipschitz(math.nan, math.nan, math.nan, math.nan, None, n_unresolved)
    else:
        lower, upper = -row[_LOWER], row[_UPPER]
        distortion = upper / lower if lower != 0 else math.inf
        i, j = sorted((int(row[_I]), int(row[_J])))
        constants = BiLipschitz(lower, upper, distortion, row[_CRITICALITY], (i, j), n_unresolved)
    return constants, finite, not finite or bool(_is_certain(row))
