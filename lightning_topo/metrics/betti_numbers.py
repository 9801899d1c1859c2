"""Betti numbers of neuron clouds as a torchmetrics class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_topo.functional import betti_at_scale
from lightning_topo.metrics._mean import MeanOverUpdates


class BettiNumbers(MeanOverUpdates):
    r"""Betti numbers of a neuron cloud at a share of its diameter: components, loops, voids.

    $$\beta_k = \dim H_k(\text{Vietoris-Rips complex at scale} \cdot \text{diameter}; \mathbb{Z}/2)$$

    ``update`` takes one cloud, (n, D), on any device and of any float dtype. ``compute`` returns the mean over all
    updates, shape (max_dim + 1,), or a scalar for ``max_dim=0``; means of Betti numbers may be fractions.

    Reference: arXiv 2510.02670, whose experiments take a quarter of the diameter.

    Args:
        scale: Where to count, as a share of the diameter.
        max_dim: Largest homology dimension.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``scale`` is not positive or ``max_dim`` is negative.

    Example:
        >>> import torch
        >>> from lightning_topo.metrics import BettiNumbers
        >>> t = torch.linspace(0, 6.2, 40)
        >>> circle = torch.stack([t.cos(), t.sin()], dim=1)
        >>> metric = BettiNumbers(max_dim=1)
        >>> metric(circle)
        tensor([1., 1.])
        >>> metric(torch.cat([circle, circle + 9]))  # two circles
        tensor([2., 0.])
        >>> metric.compute()
        tensor([1.5000, 0.5000])
    """

    higher_is_better = None

    def __init__(self, scale: float = 0.25, max_dim: int = 2, **kwargs: Any) -> None:
        super().__init__(max_dim, (scale,), **kwargs)
        if not scale > 0:
            raise ValueError(f"expected scale > 0, got {scale}")
        self.scale = scale

    def update(self, points: Tensor) -> None:
        """Add one neuron cloud, shape (n, D)."""
        self._add(betti_at_scale(points, self.scale, self.max_dim))
