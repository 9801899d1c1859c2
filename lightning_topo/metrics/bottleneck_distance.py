"""Bottleneck distance of the diagrams of two neuron clouds as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_topo.functional import bottleneck_distance, persistence
from lightning_topo.metrics._mean import MeanOverUpdates


class BottleneckDistance(MeanOverUpdates):
    r"""Bottleneck distance of the persistence diagrams of two neuron clouds: how far the topology moved.

    $$d_k = \min_{\gamma} \max_b |b - \gamma(b)|_\infty$$

    over the matchings γ of the bars of dimension k of one cloud with those of the other, or with the diagonal.

    ``update`` takes two clouds, (n, D) and (m, D'), e.g. the neurons before and after some training. ``compute``
    returns the mean over all updates in the units of the points, shape (max_dim + 1,), or a scalar for ``max_dim=0``.

    Reference: Cohen-Steiner, Edelsbrunner and Harer, Discrete Comput. Geom. 37, 2007.

    Args:
        max_dim: Largest homology dimension.
        max_neurons: Take the diagrams of farthest-point samples of this size; by default of all neurons.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``max_dim`` is negative.

    Example:
        >>> import torch
        >>> from lightning_topo.metrics import BottleneckDistance
        >>> metric = BottleneckDistance(max_dim=0)
        >>> metric(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0]]))
        tensor(1.)
    """

    higher_is_better = False

    def __init__(self, max_dim: int = 1, max_neurons: int | None = None, **kwargs: Any) -> None:
        super().__init__(max_dim, (max_neurons,), **kwargs)
        self.max_neurons = max_neurons

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add the distance of two neuron clouds, shapes (n, D) and (m, D')."""
        diagrams = (persistence(points, self.max_dim, self.max_neurons) for points in (before, after))
        self._add(bottleneck_distance(*diagrams))
