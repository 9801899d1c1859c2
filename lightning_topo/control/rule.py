"""The rule by which a learning rate follows the critical one: at once when it falls, slowly when it rises."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class RateState:
    """What is known of the smoothness K = κ / η of a run's updates.

    Attributes:
        smoothed: K̄, the running geometric mean of K; None before the first measurement.
        top: The K that decides: the largest K̄ so far, which fades.
        latest: The K that was measured last.
    """

    smoothed: float | None = None
    top: float = 0.0
    latest: float = 0.0

    @property
    def critical_lr(self) -> float:
        """η* as it was measured last, 1 / K; infinite before the first measurement."""
        return 1 / self.latest if self.latest > 0 else math.inf


@dataclass(frozen=True)
class RateRule:
    r"""A share of the critical learning rate η* = 1/K, which falls at once with it and recovers slowly.

    With :math:`K_t = \kappa_t / \eta_t` of an update, smoothed to :math:`\bar K_t = \bar K_{t-1}^{a} K_t^{1-a}`,

    .. math::
        T_t = \max(\bar K_t,\; 2^{-1/h}\, T_{t-1}), \qquad
        \eta_{t+1} = \frac{\text{share}}{\max(T_t,\; \text{guard} \cdot K_t)}

    is the rate before the schedule's shape. Weights grow in training, and distances between neurons with them; without
    the memory T the rate would grow with both, without end.

    Args:
        share: Share of η* to train at, in (0, 1].
        half_life: Updates h after which half of a fall of η* is forgotten; infinite: never.
        smoothing: Weight a of what was known before, in [0, 1).
        guard: Share of the latest K that counts at once, however much it stands out.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> rule = RateRule(share=0.15, half_life=100)
        >>> state = rule.step(RateState(), smoothness=3.0, updates=1)
        >>> rule.rate(state)
        0.05
        >>> later = rule.step(state, smoothness=1e-3, updates=100)  # η* is far higher by now
        >>> round(rule.rate(later), 9)
        0.1
    """

    share: float = 0.15
    half_life: float = math.inf
    smoothing: float = 0.5
    guard: float = 0.3

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 < self.share <= 1:
            raise ValueError(f"expected 0 < share <= 1, got {self.share!r}; it is the share of η* to train at")
        if not self.half_life > 0:
            raise ValueError(f"expected half_life > 0 updates, got {self.half_life!r}; math.inf never forgets")
        if not 0 <= self.smoothing < 1 or not 0 <= self.guard <= 1:
            raise ValueError(
                f"expected 0 <= smoothing < 1 and 0 <= guard <= 1, got {self.smoothing!r} and {self.guard!r}"
            )

    def step(self, state: RateState, smoothness: float, updates: int) -> RateState:
        """The state after a measurement.

        Args:
            state: The one before.
            smoothness: K = κ / η, positive, of one update or of the net displacement of several over the sum of their
                rates.
            updates: Updates since the last measurement.
        """
        if state.smoothed is None:
            return RateState(smoothness, smoothness, smoothness)
        a = self.smoothing
        smoothed = math.exp(a * math.log(state.smoothed) + (1 - a) * math.log(smoothness))
        faded = state.top * 0.5 ** (updates / self.half_life)
        return replace(state, smoothed=smoothed, top=max(smoothed, faded), latest=smoothness)

    def rate(self, state: RateState) -> float:
        """The rate before the schedule's shape, after the first measurement."""
        return self.share / max(state.top, self.guard * state.latest)
