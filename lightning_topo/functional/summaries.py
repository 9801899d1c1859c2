"""Numbers that sum up a persistence diagram."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_topo.functional.persistence import Persistence


def persistence_entropy(persistence: Persistence) -> tuple[float, ...]:
    r"""Shannon entropy of the bar lengths of each dimension.

    $$E_k = -\sum_i \frac{\ell_i}{L} \log \frac{\ell_i}{L}, \qquad \ell_i = d_i - b_i, \quad L = \sum_i \ell_i$$

    over the finite bars, with the natural logarithm: 0 for a single bar, log m for m bars of equal length. It does
    not change with the scale of the cloud, and is stable (arXiv 1803.08304).

    Args:
        persistence: Diagrams of a cloud.

    Returns:
        One entropy in nats for each dimension; 0.0 where there is no finite bar.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence, persistence_entropy
        >>> evenly_spaced = torch.arange(5.0)[:, None]  # four merges at equal lengths
        >>> persistence_entropy(persistence(evenly_spaced))  # log 4
        (1.3863, 0.0)
    """
    return tuple(_entropy(_finite_lengths(diagram)) for diagram in persistence.diagrams)


def total_persistence(persistence: Persistence, order: float = 1.0) -> tuple[float, ...]:
    r"""Sum of the bar lengths of each dimension, each to a power.

    $$P_k = \sum_i (d_i - b_i)^{\text{order}}$$

    over the finite bars (Cohen-Steiner, Edelsbrunner, Harer and Mileyko, Found. Comput. Math. 10, 2010). In dimension
    0 and order 1 it is the length of a minimum spanning tree.

    Args:
        persistence: Diagrams of a cloud.
        order: Positive finite power; default 1.

    Returns:
        One sum for each dimension, in the points' units to the power ``order``; 0.0 where there is no finite bar.

    Raises:
        ValueError: When the order is not positive and finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence, total_persistence
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> total_persistence(persistence(square))  # three edges; one loop from 1 to √2
        (3.0, 0.4142)
    """
    if not 0.0 < order < math.inf:
        raise ValueError(f"total_persistence expects a positive finite order, but got {order}.")
    return tuple(float((_finite_lengths(diagram) ** order).sum()) for diagram in persistence.diagrams)


def _finite_lengths(diagram: Tensor) -> Tensor:
    lengths = diagram[:, 1] - diagram[:, 0]
    return lengths[lengths.isfinite()]


def _entropy(lengths: Tensor) -> float:
    if len(lengths) < 2:
        return 0.0
    share = lengths / lengths.sum()
    return float(-(share.xlogy(share)).sum())
