"""The pairs of points that may attain the constants of an update, found by products in single precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._pairs import resolution
from lightning_topo.functional._products import UpdateClouds, least_square, row_blocks, subtract_products

# Squared lengths of the points are right to this much, when the differences are compared to what rounding leaves.
_SLACK = 1e-5
# Up to so many entries of a matrix are searched at once, of larger ones first the rows.
_FLAT = 2**14


@dataclass(frozen=True)
class Candidates:
    """For each of several quantities the pairs for which an upper bound of it is largest.

    The quantities are the criticality squared, with crossed clouds then the growth and the shrinking of the squared
    distance, both relative to the distance before and times t, and last whether it is open if a pair is resolved.

    Attributes:
        bounds: The bounds, descending; of the last quantity 1 for an open pair and 0 for others, shape (K, G, m).
        i: First point of each pair, shape (K, G, m).
        j: The other.
        n_resolved: Pairs that are certainly resolved, shape (G,).
    """

    bounds: Tensor
    i: Tensor
    j: Tensor
    n_resolved: Tensor


def candidates(clouds: UpdateClouds, eps: float, count: int) -> Candidates:
    r"""Pairs i < j with the largest bounds.

    With squared distances x of the points, y of the update and z of points + t updates, the criticality squared is y/x,
    and t times the growth (z - x - (t² - t) y)/x, which is right to the same digits however small the update.

    Args:
        clouds: Before the update, its displacements and, for growth and shrinking, a sum of both.
        eps: Relative spacing of the numbers that the points were stored in.
        count: Pairs of each kind, m.
    """
    terms, ratio2, cross = _terms(clouds, eps)
    _, groups, n = clouds.hashes.shape
    parts = [_block(clouds, terms, ratio2, cross, rows, count) for rows in row_blocks(groups, n, terms.device)]
    bounds, i, j, n_resolved = parts[0]
    if len(parts) > 1:
        bounds, i, j = (torch.cat(part, -1) for part in list(zip(*parts, strict=True))[:3])
        bounds, where = bounds.topk(count)
        i, j = i.gather(-1, where), j.gather(-1, where)
        n_resolved = torch.stack([part[-1] for part in parts]).sum(0)
    return Candidates(bounds, i, j, n_resolved)


def _terms(clouds: UpdateClouds, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What each point adds to -2 times the products, shape (6 or 7, G, n), t² and t - t², shape (G, 1, 1).

    The rows: x, y, [z,] the errors of x and y, and what rounding leaves nothing of, of x and of y.
    """
    ratio2 = clouds.ratio.square()
    least = resolution(clouds.raw, eps * (1 - _SLACK))
    # What underflow took from the squares of small points counts as well.
    errors = (clouds.squares[:2] * clouds.error).add_(clouds.drift).add_(least_square(least.dtype))
    errors[0].add_(least[0], alpha=3 * _SLACK)
    terms = torch.cat([clouds.squares, errors, least])
    return terms, ratio2[..., None], (clouds.ratio - ratio2)[..., None]


def _block(
    clouds: UpdateClouds, terms: Tensor, ratio2: Tensor, cross: Tensor, rows: slice, count: int
) -> tuple[Tensor, ...]:
    """Bounds, i and j of the best pairs of some rows and the columns from the first of them on, and their number."""
    points, kinds = clouds.points, len(clouds.points)
    columns = slice(rows.start, None)
    sums = terms[:, :, rows, None] + terms[:, :, None, columns]
    subtract_products(sums[:kinds].flatten(0, 1), points[:, :, rows].flatten(0, 1), points[:, :, columns].flatten(0, 1))
    (x, y), (x_error, y_error, least_before, least_after) = sums[:2].unbind(0), sums[-4:].unbind(0)
    together, still = (clouds.hashes[:, :, rows, None] == clouds.hashes[:, :, None, columns]).unbind(0)
    values = torch.empty_like(sums[: kinds + 1] if kinds == 3 else sums[:2])
    bounds = values[:-1]
    still &= y <= y_error
    y_high = torch.add(y, y_error, out=bounds[0])
    if kinds == 3:  # the error of z is at most twice those of x and t² y
        growth, error = sums[2].sub_(x).addcmul_(y, cross), torch.addcmul(x_error, y_error, ratio2)
        torch.add(growth, error, alpha=4.0, out=bounds[1])
        torch.sub(bounds[1], growth, alpha=2.0, out=bounds[2])
    x_low, x_high = x - x_error, x_error.add_(x)

    flags = torch.empty_like(sums[:2], dtype=torch.bool)
    resolved, possible = flags.unbind(0)
    torch.ge(y_high, least_after, out=possible)
    torch.ge(y, y_error.add_(least_after, alpha=1 + 3 * _SLACK), out=resolved)
    flags |= still
    resolved &= x_low > least_before
    torch.gt(possible, together, out=possible).logical_and_(x_high > least_before)
    flags.triu_(1)

    # Pairs of points that move alike, or not at all, have not changed at all.
    bounds.masked_fill_(still, 0.0)
    if kinds == 3:  # a bound below zero is that over the longest distance
        torch.maximum(bounds / x_high, bounds.div_(x_low), out=bounds)
    else:
        bounds.div_(x_low)
    bounds.masked_fill_(~resolved, -math.inf)
    torch.gt(possible, resolved, out=values[-1])
    return *_largest(values, rows.start, count), resolved.sum((-2, -1))


def _largest(values: Tensor, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entries of each matrix, shape (K, G, count), which lie in rows that have large ones; their places."""
    r, c = values.shape[2:]
    if r * c <= _FLAT:
        bounds, where = values.flatten(2).topk(min(count, r * c))
        rows = where // c
    else:
        best = values.amax(-1).topk(min(count, r)).indices
        values = values.gather(2, best[..., None].expand(-1, -1, -1, c)).flatten(2)
        bounds, where = values.topk(min(count, values.shape[-1]))
        rows = best.gather(2, where // c)
    columns = where % c
    return (bounds, rows + start, columns + start) if start else (bounds, rows, columns)
