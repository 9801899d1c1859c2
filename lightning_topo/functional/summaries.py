"""Numbers that sum up a persistence diagram."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional.persistence import Persistence


def persistence_entropy(persistence: Persistence) -> tuple[float, ...]:
    r"""Entropy of the lengths of the bars, per dimension.

    .. math:: E_k = -\sum_i \frac{\ell_i}{L} \log \frac{\ell_i}{L}, \qquad \ell_i = d_i - b_i, \quad L = \sum_i \ell_i

    over the finite bars of dimension k (arXiv 1701.07857, definition 5). It is the logarithm of the number of bars when
    they are equally long, and does not change when the cloud is scaled.

    Args:
        persistence: Diagrams of a cloud.

    Returns:
        One entropy a dimension, in nats; 0.0 without finite bars.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence, persistence_entropy
        >>> line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # three components die at 1
        >>> persistence_entropy(persistence(line, max_dim=0))
        (1.0986,)
    """
    return tuple(float(torch.special.entr(lengths / lengths.sum()).sum()) for lengths in _lengths(persistence))


def total_persistence(persistence: Persistence, order: float = 1.0) -> tuple[float, ...]:
    r"""Sum of powers of the lengths of the bars, per dimension.

    .. math:: T_k = \sum_i (d_i - b_i)^{\text{order}}

    over the finite bars of dimension k (Cohen-Steiner, Edelsbrunner, Harer and Mileyko, Found. Comput. Math. 10, 2010).

    Args:
        persistence: Diagrams of a cloud.
        order: Positive power; default 1.

    Returns:
        One sum a dimension, in units of the points to the power ``order``; 0.0 without finite bars.

    Raises:
        ValueError: When the order is not positive.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence, total_persistence
        >>> total_persistence(persistence(torch.tensor([[0.0], [1.0], [3.0]]), max_dim=0))
        (3.0,)
    """
    if not order > 0:
        raise ValueError(f"total_persistence expects order > 0, but got {order}.")
    return tuple(float((lengths**order).sum()) for lengths in _lengths(persistence))


def _lengths(persistence: Persistence) -> list[Tensor]:
    finite = [diagram[diagram.isfinite().all(1)] for diagram in persistence.diagrams]
    return [diagram[:, 1] - diagram[:, 0] for diagram in finite]
