"""Farthest-point sampling, and the covering radius of the sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_topo.functional.distances import as_cloud, distances_to, pairwise_distances

# All distances at once cost one matrix product, a row at a time is bound by memory: this many rows cost the same.
_MATRIX_ROWS_PER_STEP = 16
_MATRIX_POINTS = 8192


def farthest_point_sample(points: Tensor, k: int) -> tuple[Tensor, float]:
    r"""Choose ``k`` points that cover the cloud, each the farthest from those chosen before.

    $$s_1 = \arg\max_i |p_i - \bar p|, \qquad s_{m+1} = \arg\max_i \min_{l \le m} |p_i - p_{s_l}|$$

    The covering radius is the largest distance of a point to its nearest chosen point, at most twice the best that
    any ``k`` points reach (Gonzalez, Theor. Comput. Sci. 38, 1985). Persistence diagrams of the sample, with edge
    lengths as filtration values, lie within bottleneck distance 2·(covering radius) of the whole cloud's
    (arXiv 1207.3885).

    Args:
        points: Cloud of shape (n, D), floating point, on any device.
        k: Number of points to choose, at least 1; all are chosen, in their own order, when k >= n.

    Returns:
        Indices of the chosen points, shape (min(k, n),), int64, on the points' device, in the order of choice; and the
        covering radius, in units of the points (0.0 when all are chosen).

    Raises:
        ValueError: When k < 1, or the points are not a finite (n, D) cloud.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import farthest_point_sample
        >>> line = torch.tensor([[0.0], [1.0], [2.0], [6.0]])
        >>> indices, radius = farthest_point_sample(line, 2)
        >>> indices.tolist(), radius
        ([3, 0], 2.0)
    """
    if k < 1:
        raise ValueError(f"farthest_point_sample expects k >= 1, but got k = {k}.")
    x = as_cloud(points, "farthest_point_sample")
    n = len(x)
    if k >= n:
        return torch.arange(n, device=points.device), 0.0
    if n <= min(_MATRIX_POINTS, _MATRIX_ROWS_PER_STEP * k):
        matrix = pairwise_distances(x)
        chosen, radius = choose_farthest(x, k, lambda index: matrix[index])
    else:
        chosen, radius = choose_farthest(x, k, lambda index: distances_to(x, index))
    return chosen.to(points.device), radius


def choose_farthest(points: Tensor, k: int, distances_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """The same for k < n float64 points, with the distances of a point to all, shape (n,), at hand."""
    chosen = torch.empty(k, dtype=torch.long, device=points.device)
    nearest = points.new_full((len(points),), torch.inf)
    farthest = (points - points.mean(0)).square().sum(1).argmax()
    for step in range(k):
        chosen[step] = farthest
        nearest = torch.minimum(nearest, distances_of(farthest))
        nearest[farthest] = -1  # none twice, also where all others are copies of chosen ones
        farthest = nearest.argmax()
    return chosen, float(nearest[farthest])
