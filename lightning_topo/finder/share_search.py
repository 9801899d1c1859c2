"""The search for the share of η* to train at: a descent by factors of two, by the losses of short trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Shares that are tried: η* and halves of it, 2^-14 at the least.
_MOST_HALVINGS = 14
# Of a short trial's losses, the last part whose mean is compared.
_LAST = 0.4
# A trial whose loss is so many times what it was at the start is given up.
_RISEN = 1.5
# Without decay so much less is best.
_WITHOUT_DECAY = 0.5


@dataclass(frozen=True)
class ShareTrial:
    """A short trial at a share of η*, from the same start over the same batches as the others.

    Attributes:
        lr: The base learning rate.
        losses: The training loss of each batch, in order; fewer than the others' where it was given up.
        steps: Optimizer steps spent.
        loss: Mean of the last losses, by which the trials are compared; ``inf`` where it was given up.
    """

    lr: float
    losses: tuple[float, ...]
    steps: int
    loss: float


@dataclass(frozen=True)
class ShareSearch:
    r"""Search for the share of η* at which a short trial ends lowest.

    It starts at a share and goes down by two while the mean loss of the last part of a trial gets lower; where the
    first step down does not get lower, it goes up by two while that does, at most to η* itself.

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
        first = math.ceil(-math.log2(self.start))
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
        loss = sum(last) / len(last) if steps >= self.steps and last else math.inf
        return ShareTrial(lr, tuple(losses), steps, loss if math.isfinite(loss) else math.inf)

    def hopeless(self, losses: Sequence[float], trials: Mapping[int, ShareTrial]) -> bool:
        """Whether a trial need not go on: its loss has risen far above where it started, and others' has not."""
        return len(losses) >= self.steps // 2 and min(losses[-3:]) > _RISEN * losses[0]

    def share(self, trials: Mapping[int, ShareTrial], decays: bool) -> float:
        """The share that the trials suggest.

        Args:
            trials: All that were wanted.
            decays: Whether the rate falls in the course of the run.
        """
        return 2.0 ** -self.best(trials) * (1.0 if decays else _WITHOUT_DECAY)
