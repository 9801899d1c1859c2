"""What the metrics of persistence diagrams share: one value a homology dimension, averaged over updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanOverUpdates(Metric):
    """Mean over updates, and over processes, of one value a homology dimension.

    Args:
        max_dim: Largest homology dimension.
        options: Whatever else the values depend on.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_legend_name = "dimension"

    total: Tensor
    count: Tensor
    identity: Tensor

    def __init__(self, max_dim: int, options: tuple[Any, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_dim < 0:
            raise ValueError(f"expected max_dim >= 0, got {max_dim}")
        self.max_dim = max_dim
        self.add_state("total", torch.zeros(max_dim + 1), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        # A MetricCollection takes metrics whose states agree after the first update for one, and updates only one
        # of them from then on. Ours may agree by chance (Betti numbers at two scales), so a state tells them apart.
        identity = repr((type(self).__name__, options)).encode()
        self.add_state("identity", torch.tensor(list(identity), dtype=torch.uint8), dist_reduce_fx="max")

    def compute(self) -> Tensor:
        """Mean over all updates, shape (max_dim + 1,), or a scalar for ``max_dim=0``."""
        return self.total / self.count

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one result, or several over time.

        Args:
            val: A result of ``forward`` or ``compute``, or a sequence of them; by default that of ``compute``.
            ax: Matplotlib axes to draw on.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)

    def _add(self, values: Sequence[float]) -> None:
        self.total += torch.tensor(values, dtype=self.total.dtype, device=self.total.device)
        self.count += 1
