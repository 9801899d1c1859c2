"""How much of the training time a monitor may spend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# The other half: Lightning's own calls of the hooks, caches that a measurement has cooled.
_PLANNED_SHARE = 0.5


class OverheadBudget:
    """Admits a measurement when it keeps the time spent within a share of the training time.

    The first measurement of a kind is always admitted. A later one is expected to cost what the last of its kind did,
    and is admitted when spent + expected <= ½ · max_overhead · (elapsed - spent). The other half is left for what
    cannot be timed from within.

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
        self._kind: str | None = None

    @property
    def coverage(self) -> float:
        """Share of the due measurements that were made."""
        return self.made / self.due if self.due else 1.0

    def start(self) -> None:
        """Begin to count training time. The counts of a restored run go on, its times do not."""
        self._began = self._clock()
        self.spent = self._spent_at_admission = 0.0
        self._kind = None

    def admits(self, kind: str = "") -> bool:
        """Count a due measurement and say whether to make it; what is spent from here on is its cost."""
        if self._kind is not None:
            self._costs[self._kind] = self.spent - self._spent_at_admission
        self._kind = None
        self.due += 1
        if not self._affordable(kind):
            return False
        self.made += 1
        self._kind, self._spent_at_admission = kind, self.spent
        return True

    def _affordable(self, kind: str) -> bool:
        if self.max_overhead is None or self._began is None or kind not in self._costs:
            return True
        training = self._clock() - self._began - self.spent
        return self.spent + self._costs[kind] <= _PLANNED_SHARE * self.max_overhead * training

    @contextmanager
    def spending(self, device: torch.device | None = None) -> Iterator[None]:
        """Charge the time of the block, without the training work that the device had queued before it."""
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began = self._clock()
        try:
            yield
        finally:
            self.spent += self._clock() - began
