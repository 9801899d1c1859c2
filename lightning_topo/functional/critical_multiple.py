"""How far an update may be stretched before the loss is no longer below what it was: the critical multiple."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# The smallest and the largest multiple that are tried: at a power of 2 whose exponent grows as 1, 3, 7, 15, 31.
_SMALLEST, _LARGEST = 2.0**-15, 2.0**31


@dataclass(frozen=True)
class CriticalMultiple:
    """Where the loss along an update comes back to what it was before.

    Attributes:
        multiple: The critical multiple; 0 where the loss does not fall along the update, ``inf`` where it is lower as
            far as was looked, ``nan`` where it was not finite before the update.
        bracket: The largest multiple below it at which the loss was seen to be lower (0: none), and the smallest above
            it at which it was not (``inf``: none).
        loss_before: The loss before the update.
        evaluations: How often the loss was evaluated.
    """

    multiple: float
    bracket: tuple[float, float]
    loss_before: float
    evaluations: int


def critical_multiple(
    loss: Callable[[float], float],
    *,
    start: float = 1.0,
    tolerance: float = 0.1,
    resolution: float = 1e-6,
) -> CriticalMultiple:
    r"""Find the smallest multiple of an update at which the loss is no longer below what it was before the update.

    $$t_c = \min \{ t > 0 : L(\theta + t\,\Delta\theta) \ge L(\theta) \}$$

    With η the learning rate of the update, $\eta_c = t_c\,\eta$ is the critical learning rate of the loss, and
    $2 / \eta_c$ its critical sharpness. For a quadratic loss with Hessian H and gradient g,

    $$\eta_c = -2\eta\, \frac{g \cdot \Delta\theta}{\Delta\theta \cdot H \Delta\theta},$$

    which for gradient descent is at least $2 / \lambda_{\max}$, and equal to it where the gradient is the leading
    eigenvector.

    From ``start`` the multiple grows (or shrinks) by factors of 2, 4, 16, 256 ... until the loss is no longer (or is
    again) lower; then the bracket is halved in the logarithm. Told is where the parabola through the loss at 0 and at
    both ends of the bracket comes back to the loss at 0, which lies in the bracket, and needs no further evaluation. A
    start near the result takes six evaluations. Where the loss comes back more than once, one of these places is found.

    Reference: arXiv 2601.16979, definition 2.1 and the search after it.

    Args:
        loss: The loss at a multiple of the update: of 0, what it was before; of 1, what it is after it. Every call must
            evaluate the same function.
        start: The first multiple to try, such as the last result.
        tolerance: Relative width of the final bracket.
        resolution: Differences up to this share of the loss before are rounding, and do not count as higher or lower.
            Default: of a loss in single precision.

    Returns:
        The critical multiple, its bracket and the number of evaluations.

    Raises:
        ValueError: When start or tolerance is not positive and finite, or the resolution is negative.

    Example:
        >>> from lightning_topo.functional import critical_multiple
        >>> curvature, lr, weight = 4.0, 0.1, 3.0
        >>> found = critical_multiple(lambda t: curvature / 2 * (weight * (1 - t * lr * curvature)) ** 2)
        >>> found.multiple * lr  # 2 / curvature
        0.5
    """
    if not (0 < start < math.inf and 0 < tolerance < math.inf and resolution >= 0):
        raise ValueError(
            "expected start and tolerance positive and finite, and resolution at least 0; "
            f"got start={start}, tolerance={tolerance}, resolution={resolution}"
        )
    before = loss(0.0)
    if not math.isfinite(before):
        return CriticalMultiple(math.nan, (0.0, math.inf), before, 1)
    line = _Line(loss, before, resolution * abs(before))
    line.bracket(min(max(start, _SMALLEST), _LARGEST))
    line.halve(tolerance)
    lower, upper, falls = line.ends()
    return CriticalMultiple(line.crossing(), (lower if falls else 0.0, upper), before, 1 + len(line.changes))


class _Line:
    """The loss along the update less that before it, at the multiples that have been tried."""

    def __init__(self, loss: Callable[[float], float], before: float, rounding: float) -> None:
        self._loss, self._before, self._rounding = loss, before, rounding
        self.changes: dict[float, float] = {}

    def sign(self, multiple: float) -> int:
        """Whether the loss is lower there (-1), cannot be told from the loss before (0), or neither (1)."""
        self.changes[multiple] = change = self._loss(multiple) - self._before
        if change < -self._rounding:
            return -1
        return 0 if change <= self._rounding else 1  # also where it is not finite

    def ends(self) -> tuple[float, float, bool]:
        """The bracket: the largest multiple before the first at which the loss is not lower, and that; and if it falls.

        What cannot be told from the loss before is too near the start, until the loss has been seen to fall.
        """
        lower, falls = 0.0, False
        for multiple in sorted(self.changes):
            change = self.changes[multiple]
            if change < -self._rounding:
                falls = True
            elif falls or not abs(change) <= self._rounding:
                return lower, multiple, falls
            lower = multiple
        return lower, math.inf, falls

    def bracket(self, multiple: float) -> None:
        """Grow or shrink a multiple until the loss is lower at one end of the bracket and no longer at the other."""
        sign = self.sign(multiple)
        if sign == 0:  # at the very result, or too near the start to tell
            half = self.sign(multiple / 2)
            sign, multiple = (half, multiple / 2) if half else (0, multiple)
        grows, factor = sign <= 0, 2.0
        while True:
            lower, upper, _ = self.ends()
            if (math.isfinite(upper) or multiple >= _LARGEST) if grows else (lower > 0 or multiple <= _SMALLEST):
                return
            multiple = min(multiple * factor, _LARGEST) if grows else max(multiple / factor, _SMALLEST)
            factor *= factor
            self.sign(multiple)

    def halve(self, tolerance: float) -> None:
        """Halve the bracket in the logarithm until it is narrow; sooner where the loss has not been seen to fall."""
        while True:
            lower, upper, falls = self.ends()
            if not 0 < lower < upper < math.inf or upper <= lower * (1 + tolerance if falls else 2):
                return
            self.sign(math.sqrt(lower * upper))

    def crossing(self) -> float:
        """Where the parabola through both ends of the bracket comes back to the loss before."""
        lower, upper, falls = self.ends()
        if not falls:
            return 0.0
        if not math.isfinite(self.changes.get(upper, math.inf)):
            return upper
        # The mean slope from 0 on is linear for a parabola: below 0 at one end, not below at the other.
        left, right = self.changes[lower] / lower, max(self.changes[upper], 0.0) / upper
        return lower + (upper - lower) * left / (left - right)
