"""Bi-Lipschitz constants of updates of neuron clouds as a torchmetrics class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_topo.functional import bi_lipschitz


class BiLipschitzDistortion(Metric):
    r"""Bi-Lipschitz constants of updates of neuron clouds: the worst of all that were seen.

    $$
    r_{ij} = \frac{|p_i' - p_j'|}{|p_i - p_j|}, \qquad
    \kappa = \max_{i<j} \frac{|u_i - u_j|}{|p_i - p_j|}, \qquad u_i = p_i' - p_i
    $$

    ``update`` takes the cloud before and after an update, both (n, D), on any device and of any float dtype.
    ``compute`` returns a dictionary of scalars, each the worst over all updates and processes: ``lower`` (smallest
    min r), ``upper`` (largest max r), ``distortion`` (largest max r / min r of one update) and ``criticality`` (largest
    κ; below 1 every update was one-to-one on the neurons). An update of which no pair of neurons can be resolved counts
    for nothing; where there was no other, the values are NaN.

    Reference: arXiv 2510.02670, section 3.

    Args:
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> from lightning_topo.metrics import BiLipschitzDistortion
        >>> points = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        >>> metric = BiLipschitzDistortion()
        >>> metric.update(points, 0.75 * points)
        >>> metric.update(points, 1.5 * points)
        >>> metric.compute()
        {'lower': tensor(0.7500), 'upper': tensor(1.5000), 'distortion': tensor(1.), 'criticality': tensor(0.5000)}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0

    lower: Tensor
    upper: Tensor
    distortion: Tensor
    criticality: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("lower", torch.tensor(math.inf), dist_reduce_fx="min")
        for name in ("upper", "distortion", "criticality"):
            self.add_state(name, torch.tensor(-math.inf), dist_reduce_fx="max")

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add one update of a neuron cloud, both of shape (n, D)."""
        result = bi_lipschitz(before, after)
        # NaN means that no pair was resolved: clamping to it would forget the updates before.
        if math.isnan(result.criticality):
            return
        self.lower = self.lower.clamp(max=result.lower)
        self.upper = self.upper.clamp(min=result.upper)
        self.distortion = self.distortion.clamp(min=result.distortion)
        self.criticality = self.criticality.clamp(min=result.criticality)

    def compute(self) -> dict[str, Tensor]:
        """Worst constants over all updates, each a scalar."""
        unseen = self.criticality == -math.inf
        names = ("lower", "upper", "distortion", "criticality")
        return {name: getattr(self, name).masked_fill(unseen, math.nan) for name in names}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Plot one result, or several over time.

        Args:
            val: A result of ``forward`` or ``compute``, or a sequence of them; by default that of ``compute``.
            ax: Matplotlib axes to draw on.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)
