"""How near an update may come to a bound on κ, from distances of an earlier time: upper bounds that are certain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_topo.functional._products import (
    largest,
    power_of_two,
    product_dtype,
    relative_error,
    row_blocks,
    squared_lengths,
    subtract_products,
)

# Lengths are made larger, and distances smaller, by more than rounding can have made them smaller or larger.
_SLACK = 5e-5


def nearest_distances(points: Tensor) -> Tensor:
    """Distance of each point to the nearest other of its cloud, not above the true one; nothing is read back.

    Args:
        points: Clouds of finite points, shape (G, n, D).

    Returns:
        Distances, shape (G, n); ``inf`` in a cloud of one point.
    """
    groups, n, dimension = points.shape
    x = in_product_precision(points)
    unit = size_unit(x)
    x = x / unit
    x.sub_(x.mean(1, keepdim=True))
    size = size_unit(x)
    x.div_(size)
    lengths = squared_lengths(x)
    error = relative_error(x.dtype, dimension, x.device.type)
    nearest = x.new_full((groups, n), math.inf)
    for rows in row_blocks(groups, n, x.device):
        columns = slice(rows.start, None)
        squared = (lengths[:, rows, None] + lengths[:, None, columns]).mul_(1 - error)
        subtract_products(squared, x[:, rows], x[:, columns])
        squared.diagonal(dim1=1, dim2=2).fill_(math.inf)
        for part, axis in ((nearest[:, rows], 2), (nearest[:, columns], 1)):
            torch.minimum(part, squared.amin(axis), out=part)
    return nearest.clamp_min_(0.0).sqrt_().mul_(size[..., 0] * (1 - _SLACK)).mul_(unit[..., 0])


def update_lengths(before: Tensor, after: Tensor) -> Tensor:
    """How far each point moves relative to the mean movement of its cloud, not below the true length and right to 1e-4.

    Args:
        before: Finite points before the update, shape (G, n, D).
        after: The same after it.

    Returns:
        Lengths, shape (G, n); nothing is read back.
    """
    dtype = product_dtype(before, after)
    unit = torch.maximum(size_unit(before), size_unit(after)).to(dtype)
    update = (after / unit).sub_(before / unit)
    rounding = squared_lengths(update).sqrt_().mul_(torch.finfo(dtype).eps)
    update.sub_(update.mean(1, keepdim=True))
    size = size_unit(update)
    lengths = squared_lengths(update.div_(size)).sqrt_().mul_(size[..., 0] * (1 + _SLACK))
    return lengths.add_(rounding).mul_(unit[..., 0])


def displacement_lengths(update: Tensor) -> Tensor:
    """The same from displacements, each rounded once in at least single precision.

    The bound on |u_i - u_j| that two lengths make holds about any centre, so that the mean need not be exact.

    Args:
        update: Displacements, shape (G, n, D), float32 or float64.

    Returns:
        Lengths, shape (G, n), not below the true ones; right to 1e-4, and to what rounding leaves of the longest.
        Nothing is read back.
    """
    size = size_unit(update)
    rounding = size[..., 0] * (4 * math.sqrt(update.shape[-1]) * torch.finfo(update.dtype).eps)
    centred = (update - update.mean(1, keepdim=True)).div_(size)
    return torch.linalg.vector_norm(centred, dim=-1).mul_(size[..., 0] * (1 + _SLACK)).add_(rounding)


def reaches(lengths: Tensor, drift: Tensor | float, nearest: Tensor, bound: float | Tensor) -> Tensor:
    r"""How near the criticality of an update may come to a bound, from distances of an earlier time.

    With positions $p^0$ of that time, the way s since and the update u, both relative to their mean, and the
    bound b,

    $$\frac{|u_i - u_j|}{b |p_i - p_j|} \le \frac{|u_i| + |u_j|}{b (|p^0_i - p^0_j| - |s_i| - |s_j|)}$$

    reaches 1 only where $(|u_i| + b |s_i| + |u_j| + b |s_j|) / (b |p^0_i - p^0_j|)$ does, and is below that
    where it does not.

    Args:
        lengths: Lengths of the update, ``update_lengths``, shape (G, n).
        drift: The same of the way since, shape (G, n), or 0.
        nearest: ``nearest_distances`` at that time, shape (G, n).
        bound: The bound, above 0; it may be a tensor of one number.

    Returns:
        An upper bound of κ / bound where it is below 1, shape (G,); at least 1 where κ may reach the bound.
    """
    reach = lengths / bound + drift
    farthest = reach.amax(-1, keepdim=True)
    # Points that stay where they are may be as close as they like.
    ratio = ((reach + farthest) / nearest).masked_fill_(farthest == 0, 0.0)
    return ratio.amax(-1)


def in_product_precision(points: Tensor) -> Tensor:
    """Points in numbers whose products are fast, detached."""
    return points.detach().to(product_dtype(points))


def size_unit(points: Tensor) -> Tensor:
    """The power of two below the largest coordinate of each cloud, shape (G, 1, 1), in at least single precision."""
    size = largest(points.detach(), (1, 2))[:, None, None]
    return power_of_two(size.to(torch.promote_types(size.dtype, torch.float32)))
