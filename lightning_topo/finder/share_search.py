"""The search for the share of η* to train at: a descent by factors of two, by the losses of short trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Shares that are tried: the largest one and halves of it, 2^-14 of η* at the least.
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
        losses: The training loss of each batch, in order; fewer than the others' where it was stopped.
        steps: Optimizer steps spent.
        loss: Median of the last losses, by which the trials are compared, of those that were seen where it was stopped
            as it could not end lowest; ``inf`` where it diverged.
    """

    lr: float
    losses: tuple[float, ...]
    steps: int
    loss: float


@dataclass(frozen=True)
class ShareSearch:
    r"""Search for the share of η* at which a short trial ends lowest.

    It starts at a share and goes down by two while the median of a trial's last losses gets lower, or their mean is not
    above that of the best, whose batches are the same: a course that one batch decides is not over. Where the first
    step down does not get lower, it goes up by two while that does, at most to the largest share. With the logarithms
    a, b, c of the losses at twice the best share, at it and at its half, the share is

    $$s = s_{best} \cdot 2^{-x}, \qquad x = \frac{a - c}{2 (a - 2 b + c)}$$

    the lowest point of the parabola through them: where two shares cannot be told apart, it lies between.

    Args:
        steps: Optimizer steps of a trial, at least 5.
        start: The largest share to start at.
        largest: The largest share to try, in (0, 1].

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
    largest: float = 0.5

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
        least, first = (min(_MOST_HALVINGS, math.ceil(-math.log2(share))) for share in (self.largest, self.start))
        if not trials:
            return max(least, first)
        best, low, high = self.best(trials), max(trials), min(trials)
        if low < _MOST_HALVINGS and (best == low or _not_above(trials[low], trials[best])):
            return low + 1
        return high - 1 if best == high and high > least else None

    def best(self, trials: Mapping[int, ShareTrial]) -> int:
        """The one that ended lowest, of those that cannot be told apart the lowest share."""
        return min(trials, key=lambda halvings: (trials[halvings].loss, -halvings))

    def trial(self, lr: float, losses: Sequence[float], steps: int, others: Sequence[ShareTrial] = ()) -> ShareTrial:
        """What a course of losses is worth; nothing where it diverged.

        Args:
            lr: The base learning rate.
            losses: The loss of each batch.
            steps: Optimizer steps spent.
            others: The trials before it, by which it may have been stopped.
        """
        whole = steps >= self.steps
        count = len(losses) if whole else max((len(trial.losses) for trial in others), default=0)
        last = _last(losses, count)
        comparable = whole or (self.beaten(losses, others) and not self.hopeless(losses))
        loss = statistics.median(last) if last and comparable else math.inf
        return ShareTrial(lr, tuple(losses), steps, loss if math.isfinite(loss) else math.inf)

    def enough(self, losses: Sequence[float], others: Sequence[ShareTrial]) -> bool:
        """Whether a trial need not go on.

        Args:
            losses: Its losses so far.
            others: The trials before it.
        """
        return self.hopeless(losses) or self.beaten(losses, others)

    def hopeless(self, losses: Sequence[float]) -> bool:
        """Whether its loss has risen far above where it started."""
        return len(losses) >= self.steps // 2 and min(losses[-3:]) > _RISEN * abs(losses[0])

    def beaten(self, losses: Sequence[float], others: Sequence[ShareTrial]) -> bool:
        """Whether so many of its last losses are above the best trial's median that its own will certainly be."""
        best = min(others, key=lambda trial: trial.loss, default=None)
        if best is None:
            return False
        count = len(best.losses)
        above = sum(loss > best.loss for loss in _last(losses, count))
        return above > math.ceil(_LAST * count) / 2

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


def _last(losses: Sequence[float], count: int) -> Sequence[float]:
    """Those of a trial's losses that are in the last part of so many."""
    return losses[count - math.ceil(_LAST * count) :]


def _not_above(trial: ShareTrial, best: ShareTrial) -> bool:
    """Whether the mean of a trial's last losses is not above the best one's over the same batches."""
    count = len(best.losses)
    pairs = list(zip(_last(trial.losses, count), _last(best.losses, count), strict=False))
    return bool(pairs) and math.isfinite(trial.loss) and math.fsum(own - other for own, other in pairs) <= 0
