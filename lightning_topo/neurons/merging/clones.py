"""Which units coincide: the coarsest partition of them in which units of one class are made alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def coinciding(points: Callable[[Tensor], Tensor], n: int, limit: float) -> Tensor:
    r"""The unit that stands for each unit: those of one class are made from the same, up to ``limit``.

    Units $i$ and $j$ with incoming weights $a_i$ and $a_j$ coincide if $|a_i - a_j| \le$ ``limit``. Of a unit that
    reads units of its own group (a recurrent layer, a residual stream), $a_i$ holds the sum of its weights to each
    class. So classes are split, from a single one of all units on, until no class has units in it whose sums differ:
    for ``limit`` 0 that is the coarsest equitable partition of a graph.

    Args:
        points: Of an assignment of this kind, the incoming weights of all units, shape (n, D), float64.
        n: Number of units.
        limit: Largest distance of a unit from the one that stands for it.

    Returns:
        Shape (n,): the first unit of each unit's class.
    """
    merged = torch.zeros(n, dtype=torch.long)
    while True:
        finer = _split(points(merged), merged, limit)
        if torch.equal(finer, merged):
            return merged
        merged = finer


def distances(points: Tensor, merged: Tensor) -> Tensor:
    """Shape (n,): how far each unit lies from the one that stands for it."""
    return torch.linalg.vector_norm(points - points[merged], dim=1)


def _split(points: Tensor, classes: Tensor, limit: float) -> Tensor:
    """Within each class the first unit, and each that lies too far from all before it, stand for those near them.

    Points that lie close to each other do so along any direction too, which leaves few pairs to look at.
    """
    along = torch.randn(points.shape[1], dtype=points.dtype, generator=torch.Generator().manual_seed(0))
    keys = points @ (along / torch.linalg.vector_norm(along).clamp_min(1.0))
    largest = torch.linalg.vector_norm(points, dim=1).nan_to_num(0.0).max() if points.numel() else torch.zeros(())
    rounding = 1e-12 * points.shape[1] ** 0.5 * float(largest)
    merged = torch.arange(len(classes))
    left = torch.arange(len(classes))
    while len(left):
        first, left = left[0], left[1:]
        near = (classes[left] == classes[first]) & ~((keys[left] - keys[first]).abs() > limit + rounding)
        candidates = left[near]
        close = torch.linalg.vector_norm(points[candidates] - points[first], dim=1) <= limit
        merged[candidates[close]] = first
        near[near.clone()] = close
        left = left[~near]
    return merged
