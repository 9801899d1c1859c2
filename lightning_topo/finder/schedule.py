"""A run's schedule as far as it is known, and the part of it that a trial follows."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

# Rates of the parameter groups over their base rates.
Factors = tuple[float, ...]

# Of a trial's updates, how many a warm-up may take; a longer one is compressed into that: the rest is at its peak.
_MOST_WARM_UP = 0.6
# A schedule decays if it falls to this share of its peak by the end of the run.
_DECAYED = 0.5


@dataclass(frozen=True)
class Schedule:
    """Rates of an optimizer's parameter groups over their base rates, update by update.

    Args:
        starts: Updates from which on the factors change, ascending, the first 0.
        factors: From each of them on, one number a parameter group.
        complete: Whether it is known to the end of the run.

    Example:
        >>> warm_up = Schedule(tuple(range(1000)), tuple((min(1.0, (t + 1) / 100),) for t in range(1000)))
        >>> warm_up.warm_up, warm_up.decays
        (99, False)
        >>> [factor for (factor,) in warm_up.followed(5)]  # its warm-up compressed into three updates
        [0.01, 0.34, 0.67, 1.0, 1.0]
    """

    starts: tuple[int, ...]
    factors: tuple[Factors, ...]
    complete: bool = True

    @classmethod
    def constant(cls, n_groups: int) -> Schedule:
        """The base rates at every update."""
        return cls((0,), ((1.0,) * n_groups,))

    def at(self, update: int) -> Factors:
        """The factors of an update; of those beyond what is known, the last."""
        return self.factors[bisect_right(self.starts, update) - 1]

    @property
    def _heights(self) -> list[float]:
        return [max(factors) for factors in self.factors]

    @property
    def peak(self) -> Factors:
        """The factors where the largest of them is largest."""
        heights = self._heights
        return self.factors[heights.index(max(heights))]

    @property
    def warm_up(self) -> int:
        """Updates before the peak."""
        heights = self._heights
        return self.starts[heights.index(max(heights))]

    @property
    def is_constant(self) -> bool:
        """Whether the base rates never change."""
        return all(factors == (1.0,) * len(factors) for factors in self.factors)

    @property
    def decays(self) -> bool:
        """Whether it falls to half of its peak or less; where its end is not known, whether it falls at all."""
        heights = self._heights
        top = max(heights)
        least = min(heights[heights.index(top) :])
        return least <= _DECAYED * top if self.complete else least < top

    def followed(self, steps: int, most_warm_up: float = _MOST_WARM_UP, plateau: bool = False) -> list[Factors]:
        """What a trial of so many updates follows: the first of them, a longer warm-up compressed.

        Args:
            steps: Updates of the trial.
            most_warm_up: Share of them that a warm-up may take.
            plateau: Whether to stay at the peak once it is reached.
        """
        most = math.floor(most_warm_up * steps)
        length = min(self.warm_up, most)
        followed = [self.at(t * self.warm_up // length) for t in range(length)]
        after = range(self.warm_up, self.warm_up + steps - length)
        return followed + [self.peak if plateau else self.at(t) for t in after]

    def __str__(self) -> str:
        """In words."""
        if len(self.factors) == 1:
            return "constant" if self.is_constant else f"constant at {max(self.peak):.3g} of the base rate"
        parts = [f"warm-up over {self.warm_up:,} updates"] if self.warm_up else []
        parts += ["decay"] if self.decays else []
        return ", then ".join(parts) or "nearly constant"
