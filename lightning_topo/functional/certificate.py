"""Bars that a bi-Lipschitz map cannot have destroyed."""

from __future__ import annotations

import math

from lightning_topo.functional.persistence import Persistence

# The engines round diagrams to float32: a bar this close to the limit is not counted.
_ROUNDING = 2.0**-22


def certified_betti(persistence: Persistence, lower: float, upper: float, scale: float = 0.25) -> tuple[int, ...]:
    r"""Count the bars of a reference that are certainly alive after a bi-Lipschitz map, without a new diagram.

    A cloud X is mapped one-to-one to X' with lower · |x - y| <= |x' - y'| <= upper · |x - y|. A bar (b, d) of X is
    certainly alive at t' = ``scale`` · diameter(X') in X' when

    .. math::

        b \le \text{scale} \cdot \Delta \cdot \frac{\text{lower}}{\text{upper}}, \qquad
        d > \text{scale} \cdot (\Delta + 2r) \cdot \frac{\text{upper}}{\text{lower}} + 2r

    with Δ the diameter and r the covering radius of the points that the diagram was computed from (r = 0 when they are
    all of X). Proof: the Rips complexes of the sample S and of X, X' include one another,
    S(t'/upper) -> X(t'/upper) -> X'(t') -> X(t'/lower) -> S(t'/lower + 2r), so a bar of S that lives from t'/upper to
    t'/lower + 2r passes through X'(t') and counts there; and lower · Δ <= diameter(X') <= upper · (Δ + 2r).

    Args:
        persistence: Diagrams of the reference cloud, or of a sample of it.
        lower: Smallest ratio of distances after and before the map, over all of the cloud; 0 certifies nothing.
        upper: Largest ratio.
        scale: Share of the diameter at which Betti numbers are counted; default a quarter.

    Returns:
        One count a dimension, never above the Betti number of the mapped cloud at ``scale`` times its diameter.

    Raises:
        ValueError: When not 0 <= lower <= upper < inf, or the scale is negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import certified_betti, persistence
        >>> t = torch.arange(60) * (2 * torch.pi / 60)
        >>> circle = persistence(torch.stack([t.cos(), t.sin()], 1))
        >>> certified_betti(circle, lower=0.9, upper=1.1), certified_betti(circle, lower=0.1, upper=1.1)
        ((1, 1), (1, 0))
    """
    if not 0 <= lower <= upper < math.inf:
        raise ValueError(f"certified_betti expects 0 <= lower <= upper < inf, but got lower={lower}, upper={upper}.")
    if not 0 <= scale < math.inf:
        raise ValueError(f"certified_betti expects a finite scale >= 0, a share of the diameter, but got {scale}.")
    if lower == 0:
        return (0,) * len(persistence.diagrams)
    r, diameter = persistence.covering_radius, persistence.diameter
    born_by = scale * diameter * lower / upper * (1 - _ROUNDING)
    alive_until = (scale * (diameter + 2 * r) * upper / lower + 2 * r) * (1 + _ROUNDING)
    return tuple(int(((d[:, 0] <= born_by) & (d[:, 1] > alive_until)).sum()) for d in persistence.diagrams)
