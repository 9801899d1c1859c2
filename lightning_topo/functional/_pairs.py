"""Squared distances of all pairs of points in row blocks, and which pairs rounding leaves something of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_topo.functional.double_precision import has_double

# A displacement difference counts as resolved when it is this many times the rounding error of the pair.
_RESOLUTION = 4.0
# Up to this many coordinates direct differences beat a matrix product, and are exact.
_DIRECT_DIMENSION = 8
# A Gram-matrix entry is trusted while its rounding error is below this share of it; others are evaluated directly.
_TRUSTED_ERROR = 1e-7
# Rows of a block: few, so that a block stays in the cache and the lower triangle is skipped, but enough for a product.
_BLOCK_ELEMENTS = 2**17
_MIN_BLOCK_ROWS = 64
# On an accelerator the calls cost more than the arithmetic.
_DEVICE_BLOCK_ELEMENTS = 2**22
_GATHER_ELEMENTS = 2**22


def for_products(points: Tensor) -> Tensor:
    """The points in the numbers whose matrix products are fast and rounded like single precision at the worst.

    The product is to be taken in place (``addmm_``): autocast would round the others.
    """
    if not has_double(points.device):
        return points.float()
    return points if points.dtype == torch.float32 and single_precision_is_kept() else points.double()


def single_precision_is_kept() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend alone, by torch.backends.<backend>.fp32_precision
        return False


def from_mean(points: Tensor) -> Tensor:
    """Lengths of points relative to their mean, shape (n,): of an update, without what all have in common."""
    return torch.linalg.vector_norm(points - points.mean(0), dim=1)


def pair_blocks(clouds: Sequence[Tensor], exact: bool = True) -> Iterator[tuple[slice, list[Tensor]]]:
    """Squared distances within each float64 cloud (n, D): rows i of a block against columns j >= its first row.

    Computed by a matrix product. With ``exact``, entries that lose digits there are evaluated again from the
    differences, so that each is right to 1e-7; else their error is 1e-15 of the points' squared norms.
    """
    n, dimension = clouds[0].shape
    norms = [cloud.square().sum(1) for cloud in clouds]
    elements = _BLOCK_ELEMENTS if clouds[0].device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS
    size = max(_MIN_BLOCK_ROWS, elements // max(n, 1))
    for start in range(0, n, size):
        rows = slice(start, min(n, start + size))
        if dimension <= _DIRECT_DIMENSION:
            yield rows, [_direct(cloud[rows], cloud[start:]) for cloud in clouds]
        else:
            squared = [_gram(cloud, norm, rows) for cloud, norm in zip(clouds, norms, strict=True)]
            if exact:
                _evaluate_directly(clouds, squared, _uncertain(squared, norms, rows, dimension), start)
            yield rows, squared


def resolution(squared_norms: Tensor, eps: float) -> Tensor:
    """Part of each point in the smallest squared length that its coordinates' rounding leaves, shape (n,)."""
    return relative_resolution(eps) ** 2 * squared_norms


def relative_resolution(eps: float) -> float:
    """The smallest length of a difference that rounding leaves, over the length of what it is the difference of."""
    return _RESOLUTION * eps / 2


def resolved(rows: slice, d2: Tensor, u2: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Pairs i < j of a block whose distance and relative displacement are not lost in rounding.

    Args:
        rows: Rows of the block; its columns are all points from the first of them on.
        d2: Squared distances before the update.
        u2: Squared distances of the displacements; 0 is no movement, and exact.
        before: ``resolution`` of the points before the update.
        after: That of the points after it.
    """
    limits = (part[rows, None] + part[None, rows.start :] for part in (before, after))
    return not_lost(d2, u2, *limits).triu_(1)


def not_lost(d2: Tensor, u2: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The same of any pairs, given the smallest squared lengths that rounding leaves before and after the update."""
    return ((u2 == 0) | (u2 >= after)) & (d2 > before)


def _direct(x: Tensor, y: Tensor) -> Tensor:
    total = (x[:, None, 0] - y[None, :, 0]).square_()
    for k in range(1, x.shape[1]):
        total += (x[:, None, k] - y[None, :, k]).square_()
    return total


def _gram(cloud: Tensor, norm: Tensor, rows: slice) -> Tensor:
    sums = norm[rows, None] + norm[None, rows.start :]
    return torch.addmm(sums, cloud[rows], cloud[rows.start :].T, alpha=-2.0)


def _uncertain(squared: list[Tensor], norms: list[Tensor], rows: slice, dimension: int) -> Tensor:
    """Pairs i < j of which some squared distance is small against the rounding of a dot product of D terms."""
    error = torch.finfo(torch.float64).eps * math.sqrt(dimension) / _TRUSTED_ERROR
    uncertain = torch.zeros((), dtype=torch.bool, device=norms[0].device)
    for values, norm in zip(squared, norms, strict=True):
        uncertain = uncertain | (values < (norm[rows, None] + norm[None, rows.start :]).mul_(error))
    return uncertain.triu(1).nonzero()


def _evaluate_directly(clouds: Sequence[Tensor], squared: list[Tensor], pairs: Tensor, start: int) -> None:
    chunk = max(1, _GATHER_ELEMENTS // clouds[0].shape[1])
    for part in pairs.split(chunk):
        i, j = part.unbind(1)
        for cloud, values in zip(clouds, squared, strict=True):
            values[i, j] = (cloud[i + start] - cloud[j + start]).square_().sum(1)
