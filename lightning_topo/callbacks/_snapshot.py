"""The sampled neurons of a group at one time, and what became of them later."""

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
    persistence,
)


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
    def take(cls, points: Tensor, indices: Tensor, max_dim: int) -> Snapshot:
        """The neurons ``indices`` of a cloud of shape (n, D)."""
        sample = points[indices.to(points.device)]
        return cls(indices, sample.cpu(), persistence(sample, max_dim))

    def still_holds(self, points: Tensor, tolerance: float) -> bool:
        """Whether the diagrams are certain to have moved by at most ``tolerance`` since, in log scale."""
        if tolerance == 0:
            return False
        way = _way(self.points, points[self.indices.to(points.device)].cpu())
        return way.n_unresolved == 0 and 0.5 * math.log(way.distortion) <= tolerance

    def drift_from(self, first: Snapshot) -> tuple[float, ...]:
        """Bottleneck distances to the first diagrams, both divided by their diameter."""
        before, now = first.diagrams, self.diagrams
        if not (before.diameter > 0 and now.diameter > 0):
            return ()  # all neurons coincide: there is no size to divide by
        return bottleneck_distance(before.scaled(1 / before.diameter), now.scaled(1 / now.diameter))

    def certified_since(self, first: Snapshot, scale: float) -> tuple[int, ...]:
        """Bars of the first diagrams that are certainly alive now, at ``scale`` times the diameter."""
        way = _way(first.points, self.points)
        if math.isnan(way.lower) or way.n_unresolved:
            return ()  # neurons that coincided at first have no ratio: any factor may lie between then and now
        return certified_betti(first.diagrams, way.lower, way.upper, scale)


def _way(before: Tensor, after: Tensor) -> BiLipschitz:
    # eps=0: the diagrams are of the points as they are stored, whatever rounding brought them there.
    return bi_lipschitz(before, after, eps=0.0)


def covering_radius(points: Tensor, indices: Tensor) -> float:
    """Largest distance of a point (n, D) to the nearest of the points ``indices``."""
    if len(indices) == len(points):
        return 0.0
    points = (points.cpu() if points.device.type == "mps" else points).double()  # MPS has no float64
    points = points - points.mean(0)
    return float(torch.cdist(points, points[indices.to(points.device)]).min(1).values.max())
