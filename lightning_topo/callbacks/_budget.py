"""How much of the training time a monitor may spend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The rest is for Lightning's own calls of the hooks (up to 1% of a step of 1 ms), and for the training steps after a
# measurement, which find the caches cold and take up to a quarter of its time longer.
_PLANNED_SHARE = 0.6
# What first measurements may take in any run, by guess: too short to be felt.
_GRANTED_SECONDS = 0.02

# The processes of a run ask again after this many refusals, however far off the prospect was.
_MAX_LEFT_OUT = 100


class OverheadBudget:
    """Admits a measurement when it keeps the time spent within a share of the training time.

    A measurement is expected to cost what the last of its kind did, the first what the caller guesses from its shapes,
    and is admitted when spent + expected <= 0.6 · max_overhead · (elapsed - spent). The rest is left for what cannot be
    timed from within. As each measurement has to earn the next one, they are spread evenly over a run. The first of a
    kind may borrow from the time that the whole run is expected to take.

    Work on an accelerator is timed there, by events that are read when they have passed, so that nobody waits. Host and
    device work at the same time: of what a block took on the one and on the other, the longer is charged.

    Args:
        max_overhead: Largest share of the training time, or None to admit everything.
        clock: Returns seconds; replaced in tests.
    """

    def __init__(self, max_overhead: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.max_overhead = max_overhead
        self.due = 0
        self.made = 0
        self._clock = clock
        self._began: float | None = None
        self._spent = 0.0
        self._costs: dict[str, float] = {}
        self._spent_on: dict[str, float] = {}
        self._granted = 0.0
        self._kind: str | None = None
        self._charged = 0.0
        self._on_device: list[tuple[str | None, Any, Any, float]] = []
        self._counts_at_start = (0, 0)
        # The kind that was refused last, and the time before which it would be refused again.
        self._refused: tuple[str, float] = ("", -math.inf)

    @property
    def coverage(self) -> float:
        """Share of the due measurements that were made."""
        return self.made / self.due if self.due else 1.0

    @property
    def spent(self) -> float:
        """Seconds spent so far, as far as they are known."""
        self._settle()
        return self._spent

    @property
    def left_all_out(self) -> bool:
        """Whether measurements have been due since the start, and none was made."""
        due, made = self._counts_at_start
        return self.due > due and self.made == made

    @property
    def training(self) -> float:
        """Seconds of training since the start, without what was spent here."""
        return 0.0 if self._began is None else self._clock() - self._began - self.spent

    def forget(self) -> None:
        """Another run begins: neither the counts nor the costs of the one before hold there."""
        self.due = self.made = 0
        self._costs = {}

    def start(self) -> None:
        """Begin to count training time. The counts of a run that continues go on, its times do not."""
        self._began = self._clock()
        self._counts_at_start = (self.due, self.made)
        self._spent = self._granted = self._charged = 0.0
        self._kind = None
        self._on_device, self._spent_on = [], {}
        self._refused = ("", -math.inf)

    def spent_on(self, kind: str) -> float:
        """Seconds spent on a kind of work that is no measurement, since the start and as far as they are known."""
        self._settle()
        return self._spent_on.get(kind, 0.0)

    @property
    def waiting(self) -> bool:
        """Whether the kind of measurement that was refused last would be refused again."""
        return self._clock() < self._refused[1]

    def admits(self, kind: str = "", guess: float = 0.0, run_time: float = 0.0) -> bool:
        """Count a due measurement and say whether to make it; what is spent from here on is its cost.

        Args:
            kind: What is measured; costs are known by kind.
            guess: Expected cost in seconds while no cost is known.
            run_time: Expected training time of the whole run in seconds: the first of a kind may borrow from it.
        """
        self.due += 1
        if kind == self._refused[0] and self._clock() < self._refused[1]:
            return False
        self._close()
        if kind in self._costs:
            admitted = self.affords(kind)
        elif self._granted + guess <= _GRANTED_SECONDS:
            admitted = True
            self._granted += guess
        else:
            admitted = self.affords(kind, guess, run_time)
        if admitted:
            self.made += 1
            self._kind, self._charged = kind, 0.0
            if guess:
                self._costs.setdefault(kind, guess)
        elif kind in self._costs:
            self._refused = kind, self._affordable_at(kind)
        return admitted

    def _affordable_at(self, kind: str) -> float:
        """When there will be time for a kind whose cost is known, if nothing else is spent until then."""
        assert self.max_overhead is not None
        assert self._began is not None
        spent = self.spent
        return self._began + spent + (spent + self._costs[kind]) / (_PLANNED_SHARE * self.max_overhead)

    def affords(self, kind: str, guess: float = 0.0, run_time: float = 0.0, share: float = _PLANNED_SHARE) -> bool:
        """Whether there is time for a kind of work now, which need not be a measurement."""
        if self.max_overhead is None or self._began is None:
            return True
        spent = self.spent
        training = max(self._clock() - self._began - spent, run_time)
        return spent + self._costs.get(kind, guess) <= share * self.max_overhead * training

    def knows(self, kind: str) -> bool:
        """Whether the cost of a kind of measurement is known."""
        return self._kind == kind or kind in self._costs

    def due_until_affordable(self, kind: str, seen: int, guess: float = 0.0) -> int:
        """In how many due times, 1 to 100, to expect time for a kind that has been due ``seen`` times so far."""
        assert self.max_overhead is not None
        assert self._began is not None
        needed = (self.spent + self._costs.get(kind, guess)) / (_PLANNED_SHARE * self.max_overhead)
        training = max(self.training, 1e-9)
        return max(1, min(_MAX_LEFT_OUT, math.ceil((needed / training - 1) * seen)))

    @contextmanager
    def spending(self, device: torch.device | None = None, kind: str | None = None) -> Iterator[None]:
        """Charge the time of the block, on the host and on the device.

        With a ``kind`` it is charged to that kind, not to the measurement admitted last.
        """
        on_cuda = device is not None and device.type == "cuda"
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_cuda else []
        if on_cuda:
            events[0].record(torch.cuda.current_stream(device))
        began = self._clock()
        try:
            yield
        finally:
            cost = self._clock() - began
            self._charge(kind, cost)
            if on_cuda:
                events[1].record(torch.cuda.current_stream(device))
                self._on_device.append((self._kind if kind is None else kind, events[0], events[1], cost))

    def _charge(self, kind: str | None, cost: float) -> None:
        self._spent += cost
        if kind is None:
            self._charged += cost
        else:
            self._costs[kind] = cost
            self._spent_on[kind] = self._spent_on.get(kind, 0.0) + cost

    def _close(self) -> None:
        """The cost of the measurement admitted last is what has been spent since."""
        self._settle()
        if self._kind is not None and self._charged:
            self._costs[self._kind] = self._charged
        self._kind = None

    def _settle(self) -> None:
        """Charge what the device has done by now."""
        while self._on_device and self._on_device[0][2].query():
            kind, start, end, charged = self._on_device.pop(0)
            seconds = max(0.0, start.elapsed_time(end) / 1000 - charged)
            self._spent += seconds
            if kind == self._kind:
                self._charged += seconds
            elif kind is not None:
                self._costs[kind] = self._costs.get(kind, 0.0) + seconds
                self._spent_on[kind] = self._spent_on.get(kind, 0.0) + seconds
