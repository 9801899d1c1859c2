"""Vietoris-Rips persistence diagrams of a cloud."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_topo.functional._engines import ENGINES, Engine, engine_function
from lightning_topo.functional.distances import ROUNDING, as_cloud, pairwise_distances
from lightning_topo.functional.sampling import farthest_point_sample


@dataclass(frozen=True, eq=False)
class Persistence:
    """Persistence diagrams of a cloud, with edge lengths as filtration values.

    Attributes:
        diagrams: One (m_k, 2) float64 CPU tensor for each dimension k = 0, 1, ...: births and deaths in units of the
            points, sorted by birth, then death; death is ``inf`` for the one component that never dies.
        diameter: Largest distance between two of the points used.
        covering_radius: Largest distance of a point left out to its nearest point used; 0.0 when all were used.
        n_points: Number of points used.
    """

    diagrams: tuple[Tensor, ...]
    diameter: float
    covering_radius: float
    n_points: int

    def scaled(self, factor: float) -> Persistence:
        """The persistence of the same cloud with all coordinates multiplied by ``factor`` > 0.

        Args:
            factor: Positive finite number; ``1 / diameter`` makes the diameter 1.

        Returns:
            A new Persistence.

        Raises:
            ValueError: When the factor is not positive and finite.
        """
        if not 0.0 < factor < float("inf"):
            raise ValueError(f"Persistence.scaled expects a positive finite factor, but got {factor}.")
        return Persistence(
            diagrams=tuple(diagram * factor for diagram in self.diagrams),
            diameter=self.diameter * factor,
            covering_radius=self.covering_radius * factor,
            n_points=self.n_points,
        )


def persistence(
    points: Tensor, max_dim: int = 1, max_neurons: int | None = None, engine: Engine = "auto"
) -> Persistence:
    r"""Persistence diagrams of the Vietoris-Rips filtration of a cloud, over the field of two elements.

    $$VR_t(X) = \{\sigma \subseteq X : |x - y| \le t \text{ for all } x, y \in \sigma\}$$

    Components (H0) come from a minimum spanning tree; loops and voids (H1, H2, ...) from Ripser (arXiv 1908.02518) up
    to the enclosing radius, min over i of max over j of d_ij, beyond which the complex is a cone. The engine sees the
    ranks of the edge lengths instead of the lengths, so its float32 loses nothing: all values are float64 edge
    lengths, and every engine gives the same bars. Lengths that differ by less than 1e-12 of the diameter count as
    equal, so that rounding makes no bars; bars with birth = death are left out.

    Full H2 takes seconds for 256 points; for Betti numbers at one scale use ``betti_at_scale``.

    Args:
        points: Cloud of shape (n, D), floating point, on any device.
        max_dim: Highest homology dimension, at least 0.
        max_neurons: Use at most this many points, a farthest-point sample; default all. The sample's diagrams lie
            within bottleneck distance 2·covering_radius of the whole cloud's.
        engine: ``"ripser"``, ``"gudhi"`` (gudhi >= 3.11 with scikit-learn, twice as fast in H1), ``"redzed"``
            (redzed-tda, ten times as fast), or ``"auto"``: the first of redzed, gudhi and ripser that is installed.
            All three agreed on each bar of 10,000 random clouds with ties and duplicates.

    Returns:
        The diagrams of dimensions 0 to max_dim, the diameter and the covering radius.

    Raises:
        ValueError: When the points are not a finite (n, D) cloud, or an option is out of range.
        ImportError: When ``engine`` names an extra that is not installed.

    Example:
        >>> import math, torch
        >>> from lightning_topo.functional import persistence
        >>> angle = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 12
        >>> hexagons = persistence(torch.stack([angle.cos(), angle.sin()], dim=1))
        >>> hexagons.diagrams[1]  # born when neighbours join, filled when every fourth point does
        tensor([[0.5176, 1.7321]], dtype=torch.float64)
    """
    _validate(max_dim, max_neurons, engine)
    cloud, covering_radius = as_cloud(points, "persistence"), 0.0
    if max_neurons is not None and max_neurons < len(cloud):
        indices, covering_radius = farthest_point_sample(cloud, max_neurons)
        cloud = cloud[indices]
    return persistence_of_distances(pairwise_distances(cloud), max_dim, covering_radius, engine)


def persistence_of_distances(
    matrix: Tensor, max_dim: int, covering_radius: float = 0.0, engine: Engine = "auto"
) -> Persistence:
    """The same from the symmetric float64 matrix of distances, shape (n, n)."""
    distances = matrix.cpu().numpy()
    diagrams = [_components(distances)]
    # A flag complex needs 2k + 2 vertices for a k-dimensional hole.
    top = min(max_dim, len(distances) // 2 - 1)
    if top >= 1:
        diagrams += _holes(distances, top, engine)
    diagrams += [np.empty((0, 2))] * (max_dim + 1 - len(diagrams))
    return Persistence(
        diagrams=tuple(torch.from_numpy(_sorted(diagram)) for diagram in diagrams),
        diameter=float(distances.max()),
        covering_radius=covering_radius,
        n_points=len(distances),
    )


def _validate(max_dim: int, max_neurons: int | None, engine: str) -> None:
    if max_dim < 0:
        raise ValueError(f"persistence expects max_dim >= 0, but got {max_dim}.")
    if max_neurons is not None and max_neurons < 1:
        raise ValueError(f"persistence expects max_neurons >= 1 or None for all points, but got {max_neurons}.")
    if engine not in ENGINES:
        raise ValueError(
            f"persistence expects engine to be one of {', '.join(map(repr, ENGINES))}, but got {engine!r}."
        )


def _components(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    deaths = spanning_tree_lengths(distances)
    deaths = deaths[deaths > ROUNDING * distances.max()]
    return np.column_stack([np.zeros(len(deaths) + 1), np.append(deaths, np.inf)])


def spanning_tree_lengths(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edge lengths of a minimum spanning tree, by Prim's algorithm."""
    n = len(distances)
    lengths = np.empty(n - 1)
    outside = np.arange(1, n)
    reach = distances[0, 1:].copy()
    for step in range(n - 1):
        nearest = int(reach.argmin())
        lengths[step] = reach[nearest]
        row = distances[outside[nearest]]
        # The last point takes the place of the one that joins the tree.
        outside[nearest], reach[nearest] = outside[-1], reach[-1]
        outside = outside[:-1]
        reach = np.minimum(reach[:-1], row[outside])
    return lengths


def _holes(distances: NDArray[np.float64], top: int, engine: Engine) -> list[NDArray[np.float64]]:
    """Diagrams of dimensions 1 to ``top``."""
    ranks, lengths = _ranks(distances)
    return [lengths[diagram.astype(np.int64)] for diagram in engine_function(engine)(ranks, top)]


def _ranks(distances: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrix with each length replaced by its rank (0 for zero), and the length of each rank.

    Lengths above the enclosing radius share one rank. Ranks are exact in float32 up to 2^24, the number of edges of
    5,793 points; beyond, they round to a neighbouring rank.
    """
    radius = distances.max(axis=1).min()
    tolerance = ROUNDING * distances.max()
    i, j = np.nonzero(np.triu(distances <= radius + tolerance, 1))
    values = distances[i, j]
    order = np.argsort(values)
    ascending = np.concatenate([[0.0], values[order]])
    starts = np.diff(ascending) > tolerance
    lengths = np.concatenate([[0.0], ascending[1:][starts]])
    ranks = np.full(distances.shape, float(len(lengths)))
    np.fill_diagonal(ranks, 0.0)
    of_edge = np.empty(len(values))
    of_edge[order] = np.cumsum(starts)
    ranks[i, j] = ranks[j, i] = of_edge
    return ranks, lengths


def _sorted(bars: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ascontiguousarray(bars[np.lexsort((bars[:, 1], bars[:, 0]))])
