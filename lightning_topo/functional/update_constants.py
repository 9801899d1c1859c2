"""Bi-Lipschitz constants of an update of many neuron clouds at once, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._candidates import Candidates, candidates
from lightning_topo.functional._pairs import relative_resolution
from lightning_topo.functional._products import UpdateClouds, update_clouds
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


@dataclass(frozen=True)
class UpdateConstants:
    """Constants of an update of G clouds, as tensors on the points' device.

    Attributes:
        criticality: κ = max |u_i - u_j| / |p_i - p_j|, shape (G,); ``nan`` where no pair is resolved.
        lower: Smallest ratio of distances after and before, shape (G,).
        upper: Largest ratio of distances after and before, shape (G,).
        pair: The two neurons i < j that attain the criticality, shape (G, 2); -1 where no pair is resolved.
        n_unresolved: Pairs that rounding leaves nothing of, shape (G,).
        finite: Whether all coordinates are finite, shape (G,). Where not, the constants are ``nan``.
        certain: Whether the constants and the number are those of all pairs, shape (G,). Where not, they are those
            of some pairs: evaluate the cloud by ``exact_constants``.
    """

    criticality: Tensor
    lower: Tensor
    upper: Tensor
    pair: Tensor
    n_unresolved: Tensor
    finite: Tensor
    certain: Tensor

    def packed(self) -> Tensor:
        """All of it in one tensor, shape (G, 8), so that one copy brings it to the host."""
        pairs = self.pair.unbind(-1)
        columns = (self.criticality, self.lower, self.upper, *pairs, self.n_unresolved, self.finite, self.certain)
        return torch.stack([column.to(self.criticality.dtype) for column in columns], dim=-1)

    @staticmethod
    def unpack(rows: Sequence[Sequence[float]]) -> list[tuple[BiLipschitz, bool, bool]]:
        """Constants of each cloud, whether it is finite, and if they are certain, from ``packed().tolist()``."""
        return [_unpacked(*row) for row in rows]


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
        return _without_pairs(before, after)
    share = _POINTS_FOR_ONE if dimension < _MANY_COORDINATES else 2 * _POINTS_FOR_ONE
    count = min(_MANY if n >= _MANY_POINTS else max(2, min(_SOME, n // share)), n * (n - 1) // 2)
    clouds = update_clouds(before, after, crossed)
    found = candidates(clouds, eps, count + 1)
    return _evaluated(before.detach(), after.detach(), eps, clouds, found, count)


def _without_pairs(before: Tensor, after: Tensor) -> UpdateConstants:
    groups, n, _ = before.shape
    nan = before.new_full((groups,), math.nan, dtype=_exact_dtype(before))
    number = torch.full((groups,), n * (n - 1) // 2, device=before.device)
    finite = (before.isfinite() & after.isfinite()).all(-1).all(-1)
    pair = torch.full((groups, 2), -1, device=before.device)
    return UpdateConstants(nan, nan, nan, pair, number, finite, torch.ones_like(finite))


def _evaluated(
    before: Tensor, after: Tensor, eps: float, clouds: UpdateClouds, found: Candidates, count: int
) -> UpdateConstants:
    groups, n, _ = before.shape
    pairs = torch.stack([found.i[..., :count], found.j[..., :count]]).permute(2, 0, 1, 3)
    pairs = pairs.clone(memory_format=torch.contiguous_format).view(groups, 2, -1)
    resolved, ratios = _evaluated_pairs(before, after, eps, clouds.unit, pairs)
    settled = resolved[:, -count:] & (found.bounds[-1, :, :count] > 0)
    n_unresolved = n * (n - 1) // 2 - (found.n_resolved + settled.sum(-1))
    hidden = ~(resolved & clouds.finite[:, None])
    # The criticality and, with crossed clouds, the largest ratio and minus the smallest.
    kinds = len(found.bounds) - 1
    values = torch.cat([ratios, -ratios[1:]]) if kinds == 3 else ratios[:1]
    best, where = values.masked_fill_(hidden, -math.inf).max(-1)
    certain = _nothing_is_above(best, found.bounds[:-1, :, count], clouds.ratio[:, 0])
    certain = (certain & (found.n_possible - found.n_resolved <= count)) | ~clouds.finite
    none = best == -math.inf
    best.masked_fill_(none, math.nan)
    pair = pairs.gather(2, where[0, :, None, None].expand(-1, 2, 1))[..., 0].masked_fill_(none[0, :, None], -1)
    lower, upper = (-best[2], best[1]) if kinds == 3 else (torch.full_like(best[0], math.nan),) * 2
    return UpdateConstants(best[0], lower, upper, pair, n_unresolved, clouds.finite, certain)


def _nothing_is_above(best: Tensor, bounds: Tensor, ratio: Tensor) -> Tensor:
    """Whether no pair that was left out may have a larger value, for all kinds, shape (G,).

    Args:
        best: The criticality, the largest ratio and minus the smallest, shape (1 or 3, G).
        bounds: Of its square, of t times the growth of the squared distance, and of its shrinking, same shape.
        ratio: t, shape (G,).
    """
    squares = best.square()
    squares[1:].sub_(1.0).mul_(ratio)
    squares[2:].neg_()
    certain = squares >= bounds
    certain[2:] |= best[2:] == 0  # distances do not get smaller than nothing
    return certain.all(0)


def _evaluated_pairs(before: Tensor, after: Tensor, eps: float, unit: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pairs are resolved, shape (G, m), and |u_i - u_j| and |p_i' - p_j'| over |p_i - p_j|, shape (2, G, m)."""
    groups, _, m = pairs.shape
    n, dimension = before.shape[1:]
    first = torch.arange(0, groups * n, n, device=before.device)[:, None, None]
    rows = (pairs + first).flatten()
    x = before.new_empty(3, groups, 2, m, dimension, dtype=_exact_dtype(before))
    u, p, q = x.unbind(0)
    for cloud, points in ((p, before), (q, after)):
        cloud.copy_(points.flatten(0, 1).index_select(0, rows).view_as(cloud))
    if x.dtype != torch.float64:  # squares would not fit
        x[1:].div_(unit[..., None])
    torch.sub(q, p, out=u)
    lengths = torch.linalg.vector_norm(x[:, :, 0] - x[:, :, 1], dim=-1)
    moved, distance, _ = lengths.unbind(0)
    least_before, least_after = torch.linalg.vector_norm(x[1:], dim=(2, 4)).mul_(relative_resolution(eps)).unbind(0)
    resolved = ((moved >= least_after) | (moved == 0)) & (distance > least_before)
    return resolved, lengths[::2] / distance


def _exact_dtype(points: Tensor) -> torch.dtype:
    return torch.float32 if points.device.type == "mps" else torch.float64


def _unpacked(*row: float) -> tuple[BiLipschitz, bool, bool]:
    criticality, lower, upper, i, j, n_unresolved, finite, certain = row
    distortion = upper / lower if lower != 0 else math.inf
    pair = (int(i), int(j)) if i >= 0 else None
    constants = BiLipschitz(lower, upper, distortion, criticality, pair, int(n_unresolved))
    return constants, bool(finite), bool(certain)
