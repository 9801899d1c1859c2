"""Which points of a cloud are within a share of its diameter, exactly, from products in single precision."""

from __future__ import annotations

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
from lightning_topo.functional.distances import DIRECT_DIMENSION, ROUNDING, pairwise_distances

# Where more than this share of the pairs cannot be told apart, all distances are as fast.
_MANY = 1 / 64
_GATHER_ELEMENTS = 2**22


def near_graph(points: Tensor, scale: float) -> Tensor:
    r"""Pairs of points whose distance is at most a share of the diameter, itself included, shape (n, n).

    $$|x_i - x_j| \le (\text{scale} + 10^{-12}) \max_{kl} |x_k - x_l|$$

    One product in single precision tells most pairs; those for which its error leaves open whether they attain the
    diameter, or are within the distance, are evaluated in double precision.

    Args:
        points: Cloud of shape (n, D), float64, finite.
        scale: Share of the diameter.
    """
    graph = _told_apart(points, scale) if len(points) > 1 and points.shape[1] > DIRECT_DIMENSION else None
    if graph is not None:
        return graph
    distances = pairwise_distances(points)
    return distances <= (scale + ROUNDING) * distances.max()


def _told_apart(points: Tensor, scale: float) -> Tensor | None:
    """The same, or None where products leave open too much."""
    x = points - points.mean(0)
    unit = power_of_two(largest(x[None], (0, 1, 2)))
    x = x.div_(unit).float()
    if product_dtype(x) != torch.float32:
        return None
    squares = squared_lengths(x)
    # Of single precision's rounding of the coordinates, a few more are left than of the products.
    error = 2 * float(squares.max()) * relative_error(x.dtype, x.shape[1], x.device.type)
    squared = _squared_distances(x, squares)

    farthest = _pairs(squared >= squared.max() - 2 * error)
    if farthest is None:
        return None
    reach = (scale + ROUNDING) * _distances(points, farthest).max()
    limit = float((reach / unit) ** 2)
    open_pairs = _pairs((squared - limit).abs_() <= error)
    if open_pairs is None:
        return None
    graph = squared <= limit
    graph[tuple(open_pairs)] = _distances(points, open_pairs) <= reach
    graph.triu_(1)
    graph |= graph.T.clone()
    return graph.fill_diagonal_(True)


def _squared_distances(x: Tensor, squares: Tensor) -> Tensor:
    """Up to rounding, above the diagonal; 0 in most of what is below."""
    n = len(x)
    squared = x.new_zeros(n, n)
    for rows in row_blocks(1, n, x.device):
        block = (squares[rows, None] + squares[None, rows.start :])[None]
        subtract_products(block, x[None, rows], x[None, rows.start :])
        squared[rows, rows.start :] = block[0]
    return squared


def _pairs(chosen: Tensor) -> Tensor | None:
    """Pairs i < j that are chosen, shape (2, k), unless they are many."""
    pairs = chosen.triu_(1).nonzero().T
    return pairs if pairs.shape[1] <= _MANY * len(chosen) ** 2 else None


def _distances(points: Tensor, pairs: Tensor) -> Tensor:
    parts = pairs.split(max(1, _GATHER_ELEMENTS // points.shape[1]), dim=1)
    return torch.cat([torch.linalg.vector_norm(points[i] - points[j], dim=1) for i, j in parts])
