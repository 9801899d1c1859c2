"""Total persistence of neuron clouds as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_topo.functional import persistence, total_persistence
from lightning_topo.metrics._mean import MeanOverUpdates


class TotalPersistence(MeanOverUpdates):
    r"""Total persistence of a neuron cloud: the summed length of its finite bars.

    $$L_k = \sum_b (\text{death}_b - \text{birth}_b) \quad \text{over the finite bars } b \text{ of dimension } k$$

    ``update`` takes one cloud, (n, D), on any device and of any float dtype. ``compute`` returns the mean over all
    updates in the units of the points, shape (max_dim + 1,), or a scalar for ``max_dim=0``.

    Reference: Cohen-Steiner, Edelsbrunner, Harer and Mileyko, Found. Comput. Math. 10, 2010.

    Args:
        max_dim: Largest homology dimension.
        max_neurons: Take the diagrams of a farthest-point sample of this size; by default of all neurons.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``max_dim`` is negative.

    Example:
        >>> import torch
        >>> from lightning_topo.metrics import TotalPersistence
        >>> metric = TotalPersistence(max_dim=0)
        >>> metric(torch.tensor([[0.0], [1.0], [3.0]]))  # bars of length 1 and 2
        tensor(3.)
    """

    higher_is_better = None

    def __init__(self, max_dim: int = 1, max_neurons: int | None = None, **kwargs: Any) -> None:
        super().__init__(max_dim, (max_neurons,), **kwargs)
        self.max_neurons = max_neurons

    def update(self, points: Tensor) -> None:
        """Add one neuron cloud, shape (n, D)."""
        self._add(total_persistence(persistence(points, self.max_dim, self.max_neurons)))
