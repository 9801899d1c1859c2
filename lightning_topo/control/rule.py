"""The rule by which a learning rate follows the critical one: at once when it falls, slowly when it rises."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The run's parts: until when its first updates are forgotten faster, and half-lives before and after; by
# docs/evidence/rate-control-settings.md.
WARM_UP, WARM_HALF_LIFE, HALF_LIFE = 0.1, 0.15, 0.5


@dataclass(frozen=True)
class RateState:
    """What is known of the smoothness K = κ / η of a run's updates.

    Attributes:
        smoothed: K̄, the running geometric mean of K; None before the first measurement.
        top: The K that decides: the largest K̄ so far, which fades.
    """

    smoothed: float | None = None
    top: float = 0.0


@dataclass(frozen=True)
class RateRule:
    r"""A share of the critical learning rate η* = 1/K, which falls at once with it and recovers slowly.

    With K of a window of updates, smoothed to $\bar K \leftarrow \sqrt{\bar K K}$,

    $$T \leftarrow \max(\bar K,\; 2^{-m/h}\, T), \qquad \eta = \text{share} / T$$

    m updates after the last window. Weights grow in training, and distances between neurons with them; without the
    memory T the rate would grow with both, without end.

    Args:
        share: Share of η* to train at, in (0, 1].
        half_life: Updates h after which half of a fall of η* is forgotten; infinite: never.
        warm_up: So many first updates are forgotten faster, with
        warm_half_life: their own half-life.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> rule = RateRule(share=0.15, half_life=100)
        >>> state = rule.step(RateState(), smoothness=3.0, updates=1)
        >>> rule.rate(state)
        0.05
        >>> later = rule.step(state, smoothness=1e-6, updates=100, at=500)  # η* is far higher by now
        >>> round(rule.rate(later), 9)
        0.1
    """

    share: float
    half_life: float = math.inf
    warm_up: float = 0.0
    warm_half_life: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 < self.share <= 1:
            raise ValueError(f"expected 0 < share <= 1, got {self.share!r}; it is the share of η* to train at")
        for name in ("half_life", "warm_half_life"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} > 0 updates, got {getattr(self, name)!r}; math.inf never forgets")

    @classmethod
    def of_run(cls, share: float, half_life: float | None, total_updates: float) -> RateRule:
        """The rule for a run of so many updates, infinite where that is not known.

        Args:
            share: Share of η* to train at.
            half_life: In updates; None: half of the run, and less while it warms up.
            total_updates: Length of the run.
        """
        if half_life is not None:
            return cls(share, half_life)
        return cls(share, HALF_LIFE * total_updates, WARM_UP * total_updates, WARM_HALF_LIFE * total_updates)

    def step(self, state: RateState, smoothness: float, updates: int, at: int = 0) -> RateState:
        """The state after a window.

        Args:
            state: The one before.
            smoothness: K = κ / η, positive, of the net displacement over the sum of the rates.
            updates: Updates in the window.
            at: Number of the window's last update.
        """
        if state.smoothed is None:
            return RateState(smoothness, smoothness)
        smoothed = math.sqrt(state.smoothed * smoothness)
        half_life = self.warm_half_life if at < self.warm_up else self.half_life
        return RateState(smoothed, max(smoothed, state.top * 0.5 ** (updates / half_life)))

    def rate(self, state: RateState) -> float:
        """The rate before the schedule's shape, after the first measurement."""
        return self.share / state.top
