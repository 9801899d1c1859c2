"""Persistence entropy of neuron clouds as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_topo.functional import persistence, persistence_entropy
from lightning_topo.metrics._mean import MeanOverUpdates


class PersistenceEntropy(MeanOverUpdates):
    r"""Persistence entropy of a neuron cloud: how evenly its finite bars share their total length.

    $$E_k = -\sum_b \frac{\ell_b}{L_k} \log \frac{\ell_b}{L_k}, \qquad L_k = \sum_b \ell_b,$$

    over the finite bars b of dimension k, of length $\ell_b$.

    ``update`` takes one cloud, (n, D), on any device and of any float dtype. ``compute`` returns the mean over all
    updates in nats, shape (max_dim + 1,), or a scalar for ``max_dim=0``.

    Reference: arXiv 1701.07857, definition 5.

    Args:
        max_dim: Largest homology dimension.
        max_neurons: Take the diagrams of a farthest-point sample of this size; by default of all neurons.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``max_dim`` is negative.

    Example:
        >>> import torch
        >>> from lightning_topo.metrics import PersistenceEntropy
        >>> metric = PersistenceEntropy(max_dim=0)
        >>> metric(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]))  # four bars of length 1: log 4
        tensor(1.3863)
    """

    higher_is_better = None

    def __init__(self, max_dim: int = 1, max_neurons: int | None = None, **kwargs: Any) -> None:
        super().__init__(max_dim, (max_neurons,), **kwargs)
        self.max_neurons = max_neurons

    def update(self, points: Tensor) -> None:
        """Add one neuron cloud, shape (n, D)."""
        self._add(persistence_entropy(persistence(points, self.max_dim, self.max_neurons)))
