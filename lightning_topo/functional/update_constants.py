"""Bi-Lipschitz constants of an update of many neuron clouds at once, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._candidates import Candidates, candidates
from lightning_topo.functional._pairs import not_lost, resolution
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
    count = min(_MANY if n >= _MANY_POINTS else max(2, min(_SOME, n // _POINTS_FOR_ONE)), n * (n - 1) // 2)
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
    n = before.shape[1]
    i, j = (where[..., :count].transpose(0, 1).flatten(1) for where in (found.i, found.j))
    pairs = _pairs(before, after, eps, clouds.unit, i, j)
    resolved = pairs.resolved & clouds.finite[:, None]
    squared, where = pairs.criticality.masked_fill(~resolved, -math.inf).max(-1)
    best = [squared]
    lower = upper = torch.full_like(squared, math.nan)
    if len(found.bounds) == 4:
        ratios = torch.stack([pairs.ratio, -pairs.ratio, pairs.growth, -pairs.growth])
        upper, lower, *changes = ratios.masked_fill_(~resolved, -math.inf).amax(-1).unbind(0)
        upper = upper.sqrt()
        lower = torch.where(upper.isnan(), upper, lower.neg().sqrt_())
        best += changes
    # An unresolved pair has minus infinity, of which the root is nan.
    chosen = torch.stack([i, j], dim=-1).gather(1, where[:, None, None].expand(-1, 1, 2))[:, 0].sort(-1).values
    settled = (found.bounds[-1, :, :count] > 0) & pairs.resolved[:, -count:]
    n_unresolved = n * (n - 1) // 2 - found.n_resolved - settled.sum(-1)
    certain = _nothing_is_above(torch.stack(best), found.bounds[:-1, :, count], clouds, lower)
    certain = (certain & found.certain & (found.n_open <= count)) | ~clouds.finite
    chosen = chosen.masked_fill_((squared == -math.inf)[:, None], -1)
    return UpdateConstants(squared.sqrt(), lower, upper, chosen, n_unresolved, clouds.finite, certain)


def _nothing_is_above(best: Tensor, bounds: Tensor, clouds: UpdateClouds, lower: Tensor) -> Tensor:
    """Whether no pair that was left out may have a larger value, for all kinds, shape (G,)."""
    update, size = clouds.scales[..., 0].to(best.dtype).flip(0)
    ratio = update / size
    below = bounds * torch.stack([ratio.square(), ratio, ratio][: len(best)]) <= best
    if len(best) == 3:
        below[2] |= lower == 0
    return below.all(0)


@dataclass(frozen=True)
class _Pairs:
    """Some pairs of each group, evaluated from the differences, each shape (G, m).

    Attributes:
        criticality: |u_i - u_j|² / |p_i - p_j|².
        ratio: |p_i' - p_j'|² / |p_i - p_j|².
        growth: The same less 1, without the digits that this loses.
        resolved: Whether rounding leaves something of them.
    """

    criticality: Tensor
    ratio: Tensor
    growth: Tensor
    resolved: Tensor


def _pairs(before: Tensor, after: Tensor, eps: float, unit: Tensor, i: Tensor, j: Tensor) -> _Pairs:
    groups, n, _ = before.shape
    m, dtype = i.shape[1], _exact_dtype(before)
    first = torch.arange(0, groups * n, n, device=before.device)[:, None]
    rows = (torch.cat([i, j], dim=1) + first).flatten()
    p, q = (
        cloud.flatten(0, 1).index_select(0, rows).to(dtype).unflatten(0, (groups, 2, m)) for cloud in (before, after)
    )
    if dtype != torch.float64:  # squares would not fit
        p, q = p / unit[..., None], q / unit[..., None]
    least_before, least_after = (resolution(cloud.square().sum((1, 3)), eps) for cloud in (p, q))
    u = q - p
    (d, a, u) = (cloud[:, 0] - cloud[:, 1] for cloud in (p, q, u))
    d2, a2, u2 = (cloud.square().sum(-1) for cloud in (d, a, u))
    growth = a.add_(d).mul_(u).sum(-1)
    return _Pairs(u2 / d2, a2 / d2, growth / d2, not_lost(d2, u2, least_before, least_after))


def _exact_dtype(points: Tensor) -> torch.dtype:
    return torch.float32 if points.device.type == "mps" else torch.float64


def _unpacked(*row: float) -> tuple[BiLipschitz, bool, bool]:
    criticality, lower, upper, i, j, n_unresolved, finite, certain = row
    distortion = upper / lower if lower != 0 else math.inf
    pair = (int(i), int(j)) if i >= 0 else None
    constants = BiLipschitz(lower, upper, distortion, criticality, pair, int(n_unresolved))
    return constants, bool(finite), bool(certain)
