"""Bars that are certainly alive after a bi-Lipschitz map."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_topo.functional.distances import ROUNDING
from lightning_topo.functional.persistence import Persistence


def certified_betti(persistence: Persistence, lower: float, upper: float, scale: float = 0.25) -> tuple[int, ...]:
    r"""Bars of a reference diagram that are certainly alive now, after a map with known bi-Lipschitz constants.

    $$
    b \le s = \text{scale} \cdot \delta \cdot \frac{\text{lower}}{\text{upper}}, \qquad
    d > s' + 2r, \quad s' = \text{scale} \cdot (\delta + 2r) \cdot \frac{\text{upper}}{\text{lower}}
    $$

    with δ and r the diameter and covering radius of ``persistence``. The count is at most the Betti number of the
    mapped cloud at ``scale`` times its own diameter.

    Proof. Let X be the reference cloud, S its sample, Y the mapped cloud, t = scale · diam(Y). Since
    δ <= diam(X) <= δ + 2r and Y is stretched by lower to upper, upper · s <= t <= lower · s'. So
    VR_s(S) ⊆ VR_s(X) ⊆ VR_t(Y) ⊆ VR_s'(X), with points of X and Y identified; sending each point to its nearest one
    in S maps VR_s'(X) into VR_{s'+2r}(S). The composition is the inclusion VR_s(S) ⊆ VR_{s'+2r}(S), whose rank in
    homology is the number of bars with b <= s and d > s' + 2r; it factors through the homology of VR_t(Y). Stability
    of Rips filtrations under such maps: arXiv 1207.3885.

    Args:
        persistence: Diagrams of the reference cloud or of a sample of it.
        lower: Smallest ratio of a distance now to the same distance in the reference cloud, over all of its pairs, or
            a lower bound of it. 0 where points have merged: then only the component that never dies is certain.
        upper: Largest such ratio, or an upper bound of it.
        scale: Share of the diameter, at least 0; default a quarter.

    Returns:
        One count for each dimension of the diagrams.

    Raises:
        ValueError: When not 0 <= lower <= upper < inf, or the scale is negative or not finite.

    Example:
        >>> import math, torch
        >>> from lightning_topo.functional import certified_betti, persistence
        >>> angle = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
        >>> ring = persistence(torch.stack([angle.cos(), angle.sin()], dim=1))
        >>> certified_betti(ring, lower=0.8, upper=1.1), certified_betti(ring, lower=0.1, upper=1.0)
        ((1, 1), (1, 0))
    """
    if not 0.0 <= lower <= upper < math.inf:
        raise ValueError(f"certified_betti expects 0 <= lower <= upper < inf, but got lower={lower}, upper={upper}.")
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"certified_betti expects a finite scale >= 0, a share of the diameter, but got {scale}.")
    distortion = upper / lower if lower > 0 else math.inf
    slack = 2 * persistence.covering_radius
    # Rounding may only lower the count.
    born = max(0.0, scale / distortion - ROUNDING) * persistence.diameter
    alive = (scale + ROUNDING) * (persistence.diameter + slack) * distortion + slack
    return tuple(_count(diagram, born, alive) for diagram in persistence.diagrams)


def _count(diagram: Tensor, born: float, alive: float) -> int:
    birth, death = diagram.unbind(1)
    return int(((birth <= born) & ((death > alive) | death.isinf())).sum())
