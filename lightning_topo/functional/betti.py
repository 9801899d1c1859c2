"""Betti numbers of a cloud at one scale."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_topo.functional._collapse import link_collapse, strong_collapse, strongly_collapsible
from lightning_topo.functional._near_graph import near_graph
from lightning_topo.functional.distances import ROUNDING, as_cloud
from lightning_topo.functional.persistence import Persistence

# Share of the diameter at which the paper counts (arXiv 2510.02670).
PAPER_SCALE = 0.25
# A further round of a collapse costs less than it saves while it removes this share of the points.
_ROUNDS = ((strong_collapse, 0.05), (link_collapse, 0.2))
# In larger graphs the first round is estimated before: it costs ten times as much.
_ESTIMATED = 512


def betti_numbers(persistence: Persistence, scale: float = 0.25) -> tuple[int, ...]:
    r"""Number of bars alive at a share of the diameter.

    $$\beta_k = \#\{(b, d) \in D_k : b \le t < d\}, \qquad t = \text{scale} \cdot \text{diameter}$$

    A bar that dies at t is dead, since an edge of length t is in the complex; lengths within 1e-12 of the diameter
    count as equal to t. The paper counts at a quarter of the diameter (arXiv 2510.02670).

    The numbers are those of the points used: those of a sample are not those of the whole cloud at the same scale,
    see ``certified_betti``.

    Args:
        persistence: Diagrams of a cloud.
        scale: Share of the diameter, at least 0; default a quarter.

    Returns:
        One number for each dimension of the diagrams.

    Raises:
        ValueError: When the scale is negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import betti_numbers, persistence
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> betti_numbers(persistence(square), scale=0.5), betti_numbers(persistence(square), scale=0.75)
        ((4, 0), (1, 1))
    """
    t = (_valid(scale, "betti_numbers") + ROUNDING) * persistence.diameter
    return tuple(int(((bars[:, 0] <= t) & (bars[:, 1] > t)).sum()) for bars in persistence.diagrams)


def betti_at_scale(points: Tensor, scale: float = 0.25, max_dim: int = 2) -> tuple[int, ...]:
    r"""Betti numbers of the Vietoris-Rips complex of all points at a share of their diameter, fast.

    $$\beta_k = \dim H_k(VR_t(X); \mathbb{F}_2), \qquad t = \text{scale} \cdot \max_{ij} |x_i - x_j|$$

    At one scale the complex is decided by its graph, and most points can be taken out of the graph without changing
    the homotopy type: first those whose neighbourhood another point's contains (strong collapse, arXiv 0907.2954),
    then those whose neighbourhood can itself be collapsed (s-dismantling, arXiv 0809.1751). Each round is a matrix
    product on the points' device; Ripser counts what is left. The same numbers as ``betti_numbers`` of the full
    persistence, typically many times faster. Memory: about 10 n² bytes.

    Args:
        points: Cloud of shape (n, D), floating point, on any device.
        scale: Share of the diameter, at least 0; default a quarter.
        max_dim: Highest homology dimension, at least 0.

    Returns:
        (b_0, ..., b_max_dim).

    Raises:
        ValueError: When the points are not a finite (n, D) cloud, or an option is out of range.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import betti_at_scale
        >>> octahedron = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> betti_at_scale(octahedron, scale=0.8)
        (1, 0, 1)
    """
    if max_dim < 0:
        raise ValueError(f"betti_at_scale expects max_dim >= 0, but got {max_dim}.")
    scale = _valid(scale, "betti_at_scale")
    return _betti_of_graph(near_graph(as_cloud(points, "betti_at_scale"), scale), max_dim)


def betti_of_distances(distances: Tensor, scale: float, max_dim: int) -> tuple[int, ...]:
    """The same from the symmetric float64 matrix of distances, shape (n, n)."""
    return _betti_of_graph(distances <= (scale + ROUNDING) * distances.max(), max_dim)


def _betti_of_graph(adjacency: Tensor, max_dim: int) -> tuple[int, ...]:
    connected = adjacency.sum(1) > 1
    n_alone = len(connected) - int(connected.sum())
    if n_alone > 0:
        adjacency = adjacency[connected][:, connected]
    if max_dim > 0:
        # Autocast would round the counts of common neighbours.
        with torch.autocast(adjacency.device.type, enabled=False):
            adjacency = _collapsed(adjacency)
    n_components, *holes = _count(adjacency.cpu(), max_dim)
    return (n_alone + n_components, *holes)


def _valid(scale: float, caller: str) -> float:
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"{caller} expects a finite scale >= 0, a share of the diameter, but got {scale}.")
    return scale


def _collapsed(adjacency: Tensor) -> Tensor:
    for collapse, worthwhile in _ROUNDS:
        if collapse is strong_collapse and len(adjacency) > _ESTIMATED and strongly_collapsible(adjacency) < worthwhile:
            continue
        before = math.inf
        while 0 < len(adjacency) <= (1 - worthwhile) * before:
            before = len(adjacency)
            adjacency = collapse(adjacency)
    return adjacency


def _count(adjacency: Tensor, max_dim: int) -> tuple[int, ...]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(adjacency)
    i, j = adjacency.triu(1).nonzero().T.int().numpy()  # scipy 1.11 counts no components by wider indices
    # Equal lengths, which float32 cannot reorder.
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(n, n))
    n_components = int(connected_components(graph, directed=False)[0])
    holes = [0] * max_dim
    # A flag complex needs 2k + 2 vertices for a k-dimensional hole, and a forest has none.
    top = min(max_dim, n // 2 - 1)
    if top >= 1 and len(i) > n - n_components:
        from ripser import ripser

        diagrams = ripser(graph, maxdim=top, thresh=1.0, coeff=2, distance_matrix=True)["dgms"]
        holes[:top] = [int(np.isinf(bars[:, 1]).sum()) for bars in diagrams[1:]]
    return (n_components, *holes)
