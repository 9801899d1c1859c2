"""The pairs of points that may attain the constants of an update, found by products in single precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._pairs import resolution
from lightning_topo.functional._products import UpdateClouds, least_square, row_blocks, subtract_products

# Pairs are told apart by squared norms that are right to this much, when they are compared to what rounding leaves.
_SLACK = 1e-5


@dataclass(frozen=True)
class Candidates:
    """For each of several quantities the pairs for which an upper bound of it is largest.

    The quantities are the criticality, with crossed clouds then the growth of the distance and its shrinking, and
    last whether it is open if a pair is resolved.

    Attributes:
        bounds: The bounds, descending; of the last quantity 1 for an open pair and 0 for others, shape (K, G, m).
        i: First point of each pair, shape (K, G, m).
        j: The other.
        n_resolved: Pairs that are certainly resolved, shape (G,).
        n_open: Pairs of which it is open, shape (G,).
        certain: Whether the bounds are finite numbers, shape (G,).
    """

    bounds: Tensor
    i: Tensor
    j: Tensor
    n_resolved: Tensor
    n_open: Tensor
    certain: Tensor


def candidates(clouds: UpdateClouds, eps: float, count: int) -> Candidates:
    r"""Pairs i < j with the largest bounds.

    With ρ the ratio of the scales of update and cloud, x = d/ρ for squared distances before, y of the update, z of the
    sum of both, bounds are taken of y/x (the criticality squared, over ρ²) and of ±(z - x - (1 - ρ) y)/x, which is the
    growth of the squared distance relative to itself, over ρ, and right to the same digits however small the update.

    Args:
        clouds: Before the update, its displacements and, for growth and shrinking, their sum.
        eps: Relative spacing of the numbers that the points were stored in.
        count: Pairs of each kind, m.
    """
    terms, ratio, equal = _terms(clouds, eps)
    _, groups, n = clouds.hashes.shape
    parts = [_block(clouds, terms, ratio, equal, rows, count) for rows in row_blocks(groups, n, clouds.points.device)]
    bounds, i, j, n_resolved, n_possible = parts[0]
    if len(parts) > 1:
        bounds, i, j = (torch.cat(part, -1) for part in list(zip(*parts, strict=True))[:3])
        bounds, where = bounds.topk(count)
        i, j = i.gather(-1, where), j.gather(-1, where)
        n_resolved, n_possible = (torch.stack(part).sum(0) for part in list(zip(*parts, strict=True))[3:])
    return Candidates(bounds, i, j, n_resolved, n_possible - n_resolved, terms.isfinite().all(0).all(-1))


def _terms(clouds: UpdateClouds, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What each point adds to -2 times the products, shape (5 or 7, G, n), 1 - ρ, and two bounds, shape (2, G, 1, 1).

    The rows: lower bound of x less what cannot be resolved, upper bound of y, [z and the error of the growth,] from the
    lower bound of x to the upper one, the upper bound of y where it is certainly resolved, and where it may be.
    Equal points have a lower bound of x up to the first bound, and are not resolved; where their updates are equal,
    the upper bound of y is not above the second.
    """
    (x, y), error = clouds.norms[:2], clouds.error
    rounding, least = torch.finfo(x.dtype).eps, least_square(x.dtype)
    before, after = (resolution(clouds.raw + least**1.25, eps) / clouds.scales / clouds.scales).unbind(0)
    # The update itself was rounded where it was not small: relative to its coordinates, not to those from the mean.
    length = y.sqrt()
    longest = (length.amax(-1, keepdim=True) + clouds.common).mul_(4 * rounding)
    x_error = x * error + least
    y_error = torch.addcmul(y * error + least, length, longest)
    low = x - x_error - before * (1 + _SLACK)
    rows = [low, y + y_error]
    ratio = clouds.scales[1] / clouds.scales[0]
    if len(clouds.norms) == 3:
        growth_error = torch.addcmul((clouds.norms[2] + x) * error + 3 * least, x.sqrt() + length, longest)
        growth_error.addcmul_(y * error, 1 + ratio)
        rows += [clouds.norms[2] + (low - x) + (1 - ratio) * y_error + growth_error, 2 * growth_error]
    rows += [2 * (x_error + before), 2 * y_error + (1 + _SLACK) * after, (1 - _SLACK) * after]
    equal = torch.stack([(x_error + _SLACK * before).amax(-1).neg_(), y_error.amax(-1)]).mul_(4.0)
    return torch.stack(rows), (1 - ratio)[..., None], equal[..., None, None]


def _block(
    clouds: UpdateClouds, terms: Tensor, ratio: Tensor, equal: Tensor, rows: slice, count: int
) -> tuple[Tensor, ...]:
    """Bounds, i and j of the best pairs of some rows and the columns from the first of them on, and their numbers."""
    x, kinds = clouds.points, len(clouds.points)
    columns = slice(rows.start, None)
    sums = terms[:, :, rows, None] + terms[:, :, None, columns]
    subtract_products(sums[:kinds].flatten(0, 1), x[:, :, rows].flatten(0, 1), x[:, :, columns].flatten(0, 1))
    low, (y_sure, y_maybe) = sums[0], sums[-2:]
    together, still = (clouds.hashes[:, :, rows, None] == clouds.hashes[:, :, None, columns]).unbind(0)
    still &= sums[1] <= equal[1]
    resolved = (((sums[1] >= y_sure) | still) & (low > 0)).triu_(1)
    possible = (((sums[1] >= y_maybe) | still) & (low > equal[0]) & ~together).triu_(1)
    if kinds == 3:
        sums[2].sub_(low).addcmul_(sums[1], -ratio)
        sums[3].sub_(sums[2])
    bounds, high = sums[1:-3], sums[-3].add_(low)
    # Pairs of points that move alike, or not at all, have not changed at all.
    bounds.masked_fill_(still, 0.0)
    torch.maximum(bounds / high, bounds.div_(low), out=bounds)
    bounds.masked_fill_(~resolved, -math.inf)
    high.copy_(possible ^ resolved)
    return *_largest(sums[1:-2], rows.start, count), resolved.sum((-2, -1)), possible.sum((-2, -1))


def _largest(values: Tensor, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entries of each matrix, shape (K, G, count), which lie in rows that have large ones; their places."""
    r, c = values.shape[2:]
    rows = values.amax(-1).topk(min(count, r)).indices
    best = values.gather(2, rows[..., None].expand(-1, -1, -1, c)).flatten(2)
    bounds, where = best.topk(min(count, best.shape[-1]))
    return bounds, rows.gather(2, where // c) + start, where % c + start
