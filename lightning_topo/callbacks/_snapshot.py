"""A group's neurons at one time: all of them, and a sample that is followed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional import (
    BiLipschitz,
    Persistence,
    bi_lipschitz,
    bottleneck_distance,
    certified_betti,
    farthest_point_sample,
)
from lightning_topo.functional.distances import as_cloud, pairwise_distances
from lightning_topo.functional.persistence import persistence_of_distances
from lightning_topo.functional.sampling import choose_farthest

# Up to this many neurons all distances at once are no dearer than those that each question needs.
_MATRIX_NEURONS = 2048


class Cloud:
    """All neurons of a group at one time. What is asked of it shares one matrix of distances, where that is cheaper.

    Args:
        points: Finite points, shape (n, D).
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self._double = as_cloud(points, "PersistenceMonitor")
        self._matrix: Tensor | None = pairwise_distances(self._double) if len(points) <= _MATRIX_NEURONS else None

    def sample(self, indices: Tensor) -> Tensor:
        """Points of the neurons ``indices``, shape (k, D), on the CPU."""
        return self.points[indices.to(self.points.device)].cpu()

    def farthest_point_sample(self, k: int) -> Tensor:
        """Indices of a farthest-point sample, shape (min(k, n),), on the CPU."""
        matrix = self._matrix
        if matrix is None or k >= len(self.points):
            return farthest_point_sample(self._double, k)[0].cpu()
        return choose_farthest(self._double, k, lambda index: matrix[index])[0].cpu()

    def distances(self, indices: Tensor) -> Tensor:
        """Distances between the neurons ``indices``, shape (k, k)."""
        indices = indices.to(self._double.device)
        return pairwise_distances(self._double[indices]) if self._matrix is None else self._matrix[indices][:, indices]

    def covering_radius(self, indices: Tensor) -> float:
        """Largest distance of a neuron to the nearest of the neurons ``indices``."""
        if len(indices) == len(self.points):
            return 0.0
        indices = indices.to(self._double.device)
        if self._matrix is not None:
            return float(self._matrix[indices].amin(0).max())
        centred = self._double - self._double.mean(0)
        return float(torch.cdist(centred, centred[indices]).amin(1).max())


@dataclass(frozen=True)
class Snapshot:
    """Some neurons of a group, the same at each time, and their diagrams.

    Attributes:
        indices: Which neurons, shape (k,).
        points: Their points, shape (k, D), on the CPU.
        diagrams: Their persistence diagrams.
    """

    indices: Tensor
    points: Tensor
    diagrams: Persistence

    @classmethod
    def take(cls, cloud: Cloud, indices: Tensor, max_dim: int) -> Snapshot:
        """The neurons ``indices`` of a cloud."""
        return cls(indices, cloud.sample(indices), persistence_of_distances(cloud.distances(indices), max_dim))

    def still_holds(self, cloud: Cloud, tolerance: float) -> bool:
        """Whether the diagrams are certain to have moved by at most ``tolerance`` since, in log scale."""
        if tolerance == 0:
            return False
        way = _way(self.points, cloud.sample(self.indices))
        return way.n_unresolved == 0 and 0.5 * math.log(way.distortion) <= tolerance

    def drift_from(self, first: Snapshot) -> tuple[float, ...]:
        """Bottleneck distances to the first diagrams, both divided by their diameter."""
        before, now = first.diagrams, self.diagrams
        if not (before.diameter > 0 and now.diameter > 0):
            return ()  # all neurons coincide: there is no size to divide by
        if self is first:
            return (0.0,) * len(now.diagrams)
        return bottleneck_distance(before.scaled(1 / before.diameter), now.scaled(1 / now.diameter))

    def certified_since(self, first: Snapshot, scale: float) -> tuple[int, ...]:
        """Bars of the first diagrams that are certainly alive now, at ``scale`` times the diameter."""
        if self is first:
            return certified_betti(first.diagrams, 1.0, 1.0, scale)
        way = _way(first.points, self.points)
        if math.isnan(way.lower) or way.n_unresolved:
            return ()  # neurons that coincided at first have no ratio: any factor may lie between then and now
        return certified_betti(first.diagrams, way.lower, way.upper, scale)


def _way(before: Tensor, after: Tensor) -> BiLipschitz:
    # eps=0: the diagrams are of the points as they are stored, whatever rounding brought them there.
    return bi_lipschitz(before, after, eps=0.0)
