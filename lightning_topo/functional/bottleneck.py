"""Bottleneck distance of persistence diagrams."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_topo.functional.persistence import Persistence

Array = NDArray[np.float64]


def bottleneck_distance(p: Persistence, q: Persistence) -> tuple[float, ...]:
    r"""Bottleneck distance of two persistence diagrams, per dimension.

    $$d_B = \min_\gamma \max_x |x - \gamma(x)|_\infty$$

    over the one-to-one matchings γ of the bars of both diagrams, where a finite bar may also be matched to the
    diagonal, at half its length (Cohen-Steiner, Edelsbrunner and Harer, Discrete Comput. Geom. 37, 2007). Infinite
    bars are matched among themselves, by their births. When each point of a cloud moves by at most ε, its diagrams
    move by at most 2ε.

    Exact. Where all bars are born at 0, as in dimension 0, the longest are matched in order, which takes a sort;
    otherwise a binary search over the values that the maximum can take, each decided by maximum bipartite matchings.

    Args:
        p: Diagrams of one cloud.
        q: Diagrams of another, of as many dimensions.

    Returns:
        One distance a dimension, in units of the points; ``inf`` when the numbers of infinite bars differ. To compare
        shapes whatever their size, pass ``p.scaled(1 / p.diameter)``.

    Raises:
        ValueError: When the numbers of dimensions differ.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import bottleneck_distance, persistence
        >>> near, far = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.5]])
        >>> bottleneck_distance(persistence(near, max_dim=0), persistence(far, max_dim=0))
        (0.5,)
    """
    if len(p.diagrams) != len(q.diagrams):
        raise ValueError(
            f"bottleneck_distance expects diagrams of the same dimensions, but got {len(p.diagrams)} and "
            f"{len(q.diagrams)} of them: compute both with one max_dim."
        )
    return tuple(_distance(a, b) for a, b in zip(p.diagrams, q.diagrams, strict=True))


def _distance(p: Tensor, q: Tensor) -> float:
    (a, a_births), (b, b_births) = _parts(p), _parts(q)
    if len(a_births) != len(b_births):
        return math.inf
    infinite = float(np.abs(a_births - b_births).max(initial=0.0))
    if not a[:, 0].any() and not b[:, 0].any():
        return max(infinite, _born_together(a[:, 1], b[:, 1]))
    return max(infinite, _matched(a, b))


def _parts(diagram: Tensor) -> tuple[Array, Array]:
    """Finite bars (m, 2), and the sorted births of infinite ones."""
    bars = diagram.double().cpu().numpy()
    finite = np.isfinite(bars[:, 1])
    return bars[finite], np.sort(bars[~finite, 0])


def _born_together(a: Array, b: Array) -> float:
    """Distance of diagrams whose bars are all born at 0 and die at ``a`` and ``b``.

    Sort both by falling death. Some optimal matching pairs the first k in this order and leaves the rest to the
    diagonal. For let a matching cost c, and let i be the first index with |a_i - b_i| > c, say a_i > b_i + c. Were
    a_1, ..., a_i all matched, one of them would have a partner of at most b_i, at a cost above c; so one goes to the
    diagonal, and a_i <= 2c. Then b_i < a_i - c <= c, and k = i - 1 costs at most c.
    """
    n = max(len(a), len(b)) + 1
    a, b = (np.sort(np.pad(deaths, (0, n - len(deaths))))[::-1] for deaths in (a, b))
    matched = np.maximum.accumulate(np.concatenate([[0.0], np.abs(a - b)[:-1]]))
    return float(np.maximum(matched, np.maximum(a, b) / 2).min())


def _matched(a: Array, b: Array) -> float:
    between = np.abs(a[:, None] - b[None]).max(2)
    a_half, b_half = (np.diff(bars, axis=1)[:, 0] / 2 for bars in (a, b))
    worst = max(a_half.max(initial=0.0), b_half.max(initial=0.0))  # all to the diagonal
    values = np.unique(np.concatenate([[0.0], a_half, b_half, between[between < worst]]))
    low, high = 0, int(np.searchsorted(values, worst))
    while low < high:
        middle = (low + high) // 2
        value = values[middle]
        # A matching that covers the long bars of both exists when one covers those of a and another those of b
        # (Mendelsohn and Dulmage, Canad. J. Math. 10, 1958).
        if _covers(between[a_half > value] <= value) and _covers(between.T[b_half > value] <= value):
            high = middle
        else:
            low = middle + 1
    return float(values[low])


def _covers(allowed: NDArray[np.bool_]) -> bool:
    """Whether every row can be matched to a column of its own."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if allowed.shape[0] > allowed.shape[1] or not allowed.any(1).all():
        return False
    return bool((maximum_bipartite_matching(csr_array(allowed), perm_type="column") >= 0).all())
