"""How often a rate that follows η* is measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable

from lightning_topo.callbacks._processes import Processes
from lightning_topo.control import RateController

# Updates in a window where the time allows it: longer ones know too late, shorter ones count noise that cancels
# (docs/evidence/rate-control-settings.md).
_WINDOW = 10
_LONGEST = 64
# Decided from the time between these updates of a run.
_TIMED = range(4, 12)
# Of the time allowed, what is planned: the rest is for what cannot be known beforehand.
_PLANNED_SHARE = 0.6
# Of that, what the watch on each update may take: it matters more than the length of the windows. Without it a
# convolutional net with momentum ends at 1.3 to 1.4 of a sweep's best, with it at 0.93 in windows of 10 or of 64.
_WATCHED_SHARE = 0.8


class Cadence:
    """Chooses the length of the windows, and whether each update is watched, once in a run, by what that costs.

    Args:
        max_overhead: Share of the training time that measuring may take; None: what is best, whatever it costs.
        every: Updates in a window, where the user has set it.
        processes: Those of the fit, of which the first decides.

    Attributes:
        updates: Updates in a window until that is decided.
        decides: Whether it is still to be decided.
    """

    def __init__(self, max_overhead: float | None, every: int | None, processes: Processes) -> None:
        self._max_overhead, self._processes = max_overhead, processes
        self.decides = every is None and max_overhead is not None
        self._times: list[float] = []
        self.updates = every or _WINDOW

    def decide(self, controller: RateController, everybody: Iterable[RateController]) -> None:
        """Before an update, while it ``decides``: take its time, and decide for all controllers when it is time."""
        if controller.updates in _TIMED or self._times:
            self._times.append(time.perf_counter())
        if len(self._times) > len(_TIMED):
            self.decides = False
            between = [later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False)]
            every, watches = self._processes.agreed(self._affordable(controller, statistics.median(between)))
            for one in everybody:
                one.every, one.watches = every, watches

    def _affordable(self, controller: RateController, step: float) -> tuple[int, bool]:
        """Updates in a window, and whether to watch each update, for steps of so many seconds."""
        assert self._max_overhead is not None
        watch = controller.watch_seconds
        allowed = _PLANNED_SHARE * self._max_overhead * max(step - watch, 1e-9)
        watches = controller.watches and watch <= _WATCHED_SHARE * allowed
        allowed -= watch if watches else 0.0
        updates = min(max(controller.measure_seconds / allowed, 1.0), _LONGEST)
        return max(_WINDOW, 2 ** math.ceil(math.log2(updates))), watches
