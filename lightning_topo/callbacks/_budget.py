"""How much of the training time a monitor may spend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# The rest is for Lightning's own calls of the hooks (1 to 2% of a step of 1 ms), and for the training steps after a
# measurement, which find the caches cold and take up to a quarter of its time longer.
_PLANNED_SHARE = 0.4
# What the first measurements whose cost is guessed may take in any run.
_GRANTED_SECONDS = 1.0

# The processes of a run ask again after this many refusals, however far off the prospect was.
_MAX_LEFT_OUT = 100


class OverheadBudget:
    """Admits a measurement when it keeps the time spent within a share of the training time.

    A measurement is expected to cost what the last of its kind did, and is admitted when
    spent + expected <= 0.4 · max_overhead · (elapsed - spent). The rest is left for what cannot be timed from within.
    The first of a kind is admitted without that, unless the caller can guess its cost.

    Args:
        max_overhead: Largest share of the training time, or None to admit everything.
        clock: Returns seconds; replaced in tests.
    """

    def __init__(self, max_overhead: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.max_overhead = max_overhead
        self.due = 0
        self.made = 0
        self.spent = 0.0
        self._clock = clock
        self._began: float | None = None
        self._spent_at_admission = 0.0
        self._costs: dict[str, float] = {}
        self._granted = 0.0
        self._kind: str | None = None
        self._counts_at_start = (0, 0)

    @property
    def coverage(self) -> float:
        """Share of the due measurements that were made."""
        return self.made / self.due if self.due else 1.0

    @property
    def left_all_out(self) -> bool:
        """Whether measurements have been due since the start, and none was made."""
        due, made = self._counts_at_start
        return self.due > due and self.made == made

    def forget(self) -> None:
        """Another run begins: neither the counts nor the costs of the one before hold there."""
        self.due = self.made = 0
        self._costs = {}

    def start(self) -> None:
        """Begin to count training time. The counts of a run that continues go on, its times do not."""
        self._began = self._clock()
        self._counts_at_start = (self.due, self.made)
        self.spent = self._spent_at_admission = self._granted = 0.0
        self._kind = None

    def admits(self, kind: str = "", guess: float = 0.0, run_time: float = 0.0) -> bool:
        """Count a due measurement and say whether to make it; what is spent from here on is its cost.

        Args:
            kind: What is measured; costs are known by kind.
            guess: Expected cost in seconds while no cost is known. Up to one second of all guesses is always granted.
            run_time: Expected training time of the whole run in seconds: the first of a kind may borrow from it.
        """
        if self._kind is not None:
            self._costs[self._kind] = self.spent - self._spent_at_admission
        self._kind = None
        self.due += 1
        if kind in self._costs:
            admitted = self.affords(kind)
        elif self._granted + guess <= _GRANTED_SECONDS:
            admitted = True
            self._granted += guess
        else:
            admitted = self.affords(kind, guess, run_time)
        if admitted:
            self.made += 1
            self._kind, self._spent_at_admission = kind, self.spent
        return admitted

    def affords(self, kind: str, guess: float = 0.0, run_time: float = 0.0, share: float = _PLANNED_SHARE) -> bool:
        """Whether there is time for a kind of work now, which need not be a measurement."""
        if self.max_overhead is None or self._began is None:
            return True
        training = max(self._clock() - self._began - self.spent, run_time)
        return self.spent + self._costs.get(kind, guess) <= share * self.max_overhead * training

    def due_until_affordable(self, kind: str, seen: int, guess: float = 0.0) -> int:
        """In how many due times, 1 to 100, to expect time for a kind that has been due ``seen`` times so far."""
        assert self.max_overhead is not None
        assert self._began is not None
        training = self._clock() - self._began - self.spent
        needed = (self.spent + self._costs.get(kind, guess)) / (_PLANNED_SHARE * self.max_overhead)
        return max(1, min(_MAX_LEFT_OUT, math.ceil((needed / training - 1) * seen)))

    @contextmanager
    def spending(self, device: torch.device | None = None, kind: str | None = None) -> Iterator[None]:
        """Charge the time of the block, without the training work that the device had queued before it.

        With a ``kind`` it is charged to that kind, not to the measurement admitted last.
        """
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began = self._clock()
        try:
            yield
        finally:
            cost = self._clock() - began
            self.spent += cost
            if kind is not None:
                self._costs[kind] = cost
                self._spent_at_admission += cost
