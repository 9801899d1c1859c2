"""Betti numbers over all scales, and the scale at which they are the most stable."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional.betti import PAPER_SCALE
from lightning_topo.functional.distances import ROUNDING
from lightning_topo.functional.persistence import Persistence


def betti_curves(persistence: Persistence, scales: Tensor) -> Tensor:
    r"""Betti numbers at many scales: the number of bars alive at each, of each homology dimension.

    $$\beta_k(s) = \#\{(b, d) \in D_k : b \le s \cdot \text{diameter} < d\}$$

    Where ``betti_numbers`` asks at one scale, the curves show at which scales there is something to see. They are the
    Betti curves of topological data analysis (Umeda, Trans. Jpn. Soc. Artif. Intell. 32, 2017), with the diameter as
    the unit.

    Args:
        persistence: Diagrams of a cloud.
        scales: Shares of the diameter, at least 0, shape (m,).

    Returns:
        Shape (K, m), int64: a row each homology dimension, a column each scale.

    Raises:
        ValueError: When the scales are not a vector of finite numbers of at least 0.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import betti_curves, persistence
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> betti_curves(persistence(square), torch.tensor([0.0, 0.5, 0.75, 1.0]))
        tensor([[4, 4, 1, 1],
                [0, 0, 1, 0]])
    """
    if scales.ndim != 1 or not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError(
            f"betti_curves expects scales of shape (m,), finite shares of the diameter of at least 0, but got {scales}."
        )
    t = (scales.detach().cpu().double() + ROUNDING) * persistence.diameter
    return torch.stack([_alive(bars, t) for bars in persistence.diagrams])


def _alive(bars: Tensor, t: Tensor) -> Tensor:
    births, deaths = bars[:, 0].contiguous().sort().values, bars[:, 1].contiguous().sort().values
    return torch.searchsorted(births, t, right=True) - torch.searchsorted(deaths, t, right=True)


def longest_bar_scale(persistence: Persistence) -> float:
    r"""Scale in the middle of the longest bar, as a share of the diameter.

    $$s = \frac{b + d}{2 \cdot \text{diameter}}, \qquad (b, d) \text{ the finite bar of largest } d - b$$

    of all dimensions of the diagrams. There the feature that is the most pronounced is farthest from being born and
    from dying, so that the Betti numbers change when it goes, and only then. In a cloud whose points are all about as
    far from each other, as neurons are at a default initialisation, that is a component: the scale is then half the
    largest distance of a neuron to its neighbours, and b_0 counts neurons until they have come that close, where at a
    quarter of the diameter it would too, but only after they have come closer still.

    Args:
        persistence: Diagrams of a cloud.

    Returns:
        A share from 0 to 1; a quarter, as in the paper (arXiv 2510.02670), where all points coincide and no bar ends.

    Example:
        >>> import math, torch
        >>> from lightning_topo.functional import betti_numbers, longest_bar_scale, persistence
        >>> angle = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 12
        >>> ring = persistence(torch.stack([angle.cos(), angle.sin()], dim=1))
        >>> round(longest_bar_scale(ring), 3)  # the loop lives from 0.259 to 0.866 of the diameter
        0.562
        >>> betti_numbers(ring, longest_bar_scale(ring)), betti_numbers(ring, 0.25)
        ((1, 1), (12, 0))
    """
    bars = torch.cat(persistence.diagrams)
    bars = bars[bars[:, 1].isfinite()]
    if len(bars) == 0 or not persistence.diameter > 0:
        return PAPER_SCALE
    longest = bars[(bars[:, 1] - bars[:, 0]).argmax()]
    return float(longest.mean()) / persistence.diameter
