"""The search for the share of η* to train at: a descent by factors of two, by the losses of short trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Shares that are tried: η* and halves of it, 2^-14 at the least.
_MOST_HALVINGS = 14
# Of a short trial's losses, the last part whose median is compared; how these constants were chosen is told in
# docs/evidence/finder-rule.md.
_LAST = 0.4
# A trial whose loss is so many times what it was at the start, half way through, is given up.
_RISEN = 1.5
# A run without decay is best at about so much of the rate that starts best.
_WITHOUT_DECAY = 0.5


@dataclass(frozen=True)
class ShareTrial:
    """A short trial at a share of η*, from the same start over the same batches as the others.

    Attributes:
        lr: The base learning rate.
        losses: The training loss of each batch, in order; fewer than the others' where it was given up.
        steps: Optimizer steps spent.
        loss: Median of the last losses, by which the trials are compared; ``inf`` where it was given up.
    """

    lr: float
    losses: tuple[float, ...]
    steps: int
    loss: float


@dataclass(frozen=True)
class ShareSearch:
    r"""Search for the share of η* at which a short trial ends lowest.

    It starts at a share and goes down by two while the median of a trial's last losses gets lower; where the first
    step down does not get lower, it goes up by two while that does, at most to η* itself. With the logarithms a, b, c
    of the losses at twice the best share, at it and at its half, the share is

    $$s = s_{best} \cdot 2^{-x}, \qquad x = \frac{a - c}{2 (a - 2 b + c)}$$

    the lowest point of the parabola through them: where two shares cannot be told apart, it lies between.

    Args:
        steps: Optimizer steps of a trial, at least 5.
        start: The largest share to start at.

    Raises:
        ValueError: When the steps are too few to tell anything.

    Example:
        >>> search = ShareSearch(steps=10)
        >>> trials = {}
        >>> while (k := search.halvings(trials)) is not None:
        ...     trials[k] = ShareTrial(2.0**-k, (), 10, loss=abs(k - 3))  # the eighth part of η* is best
        >>> sorted(trials), search.best(trials)
        ([1, 2, 3, 4], 3)
    """

    steps: int = 25
    start: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 5:
            raise ValueError(
                f"expected trial_steps to be an integer of at least 5, got {self.steps!r}; fewer tell no learning rate "
                "from another, and safety=0.25 needs none"
            )

    def halvings(self, trials: Mapping[int, ShareTrial]) -> int | None:
        """The share to try next, as a number of halvings of η*; None where enough is known.

        Args:
            trials: Those made so far, by their number of halvings.
        """
        first = min(_MOST_HALVINGS, math.ceil(-math.log2(self.start)))
        if not trials:
            return first
        best, low, high = self.best(trials), max(trials), min(trials)
        if best == low and low < _MOST_HALVINGS:
            return low + 1
        return high - 1 if best == high and high > 0 else None

    def best(self, trials: Mapping[int, ShareTrial]) -> int:
        """The one that ended lowest, of those that cannot be told apart the lowest share."""
        return min(trials, key=lambda halvings: (trials[halvings].loss, -halvings))

    def trial(self, lr: float, losses: Sequence[float], steps: int) -> ShareTrial:
        """What a course of losses is worth; nothing where it ended early."""
        last = losses[-math.ceil(_LAST * len(losses)) :]
        loss = statistics.median(last) if steps >= self.steps and last else math.inf
        return ShareTrial(lr, tuple(losses), steps, loss if math.isfinite(loss) else math.inf)

    def hopeless(self, losses: Sequence[float]) -> bool:
        """Whether a trial need not go on: its loss has risen far above where it started."""
        return len(losses) >= self.steps // 2 and min(losses[-3:]) > _RISEN * abs(losses[0])

    def share(self, trials: Mapping[int, ShareTrial], decays: bool) -> float:
        """The share that the trials suggest.

        Args:
            trials: All that were wanted.
            decays: Whether the rate falls in the course of the run.
        """
        share = 2.0 ** -(self.best(trials) + self._between(trials))
        return min(1.0, share) * (1.0 if decays else _WITHOUT_DECAY)

    def _between(self, trials: Mapping[int, ShareTrial]) -> float:
        """How far from the best number of halvings, to either side, the parabola through its neighbours is lowest."""
        best = self.best(trials)
        near = [trials.get(best + step) for step in (-1, 0, 1)]
        losses = [trial.loss for trial in near if trial is not None and 0 < trial.loss < math.inf]
        if len(losses) < len(near):
            return 0.0
        above, at, below = map(math.log, losses)
        bend = above - 2 * at + below
        return (above - below) / (2 * bend) if bend > 0 else 0.0
