"""Down to where the largest of several κ have to come, so that all together keep a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence


def common_level(kappas: Sequence[float], bound: float) -> float:
    r"""The level c that the κ of several groups are cut at, so that their root of the sum of squares is the bound.

    $$\sqrt{\textstyle\sum_g \min(\kappa_g, c)^2} = b$$

    So the groups that move most come down to one level, which is at least b/√G, and the others stay as they are.

    Args:
        kappas: κ of each of the G groups, 0 or above; ``inf`` is allowed.
        bound: The bound b, 0 or above.

    Returns:
        The level c; ``inf`` where the bound is kept without any.

    Example:
        >>> round(common_level([3.0, 4.0, 12.0], 7.0), 3)
        4.899
        >>> common_level([3.0, 4.0], 5.0)
        inf
    """
    rest, count = bound * bound, len(kappas)
    for kappa in sorted(kappas):
        if kappa * kappa * count > rest:
            return math.sqrt(max(rest, 0.0) / count)
        rest -= kappa * kappa
        count -= 1
    return math.inf
