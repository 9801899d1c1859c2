"""Which neuron groups are measured at an update: all of them, or in turns those that have waited longest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._processes import Processes
from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import AlikeGroups, LearningRate, MeasuredSet, Measurement, UpdateMeter, expected_seconds

# On a limited budget, groups are measured together while that is expected to take no longer than this.
SECONDS_PER_TURN = 0.3


class Turns:
    """The groups that one optimizer moves, measured in turns.

    Args:
        optimizer: The optimizer.
        model: The module that holds the groups' parameters.
        groups: The groups.
        max_neurons: Largest number of neurons compared in a group, None for all.
        processes: Those of the fit.
        limited: Whether the time is limited; otherwise all groups are measured each time.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: Any,
        groups: Sequence[NeuronGroup],
        max_neurons: int | None,
        processes: Processes,
        limited: bool,
    ) -> None:
        self._max_neurons, self._limited = max_neurons, limited
        self._meter = UpdateMeter(
            optimizer, model, groups, max_neurons, sharded=processes.sharded, compares=processes.lead
        )
        self._queue = deque(self._portions())

    def expected_seconds(self) -> float:
        """What the next turn is going to take."""
        return expected_seconds(self._next(), self._max_neurons)

    def before(self) -> dict[str, LearningRate]:
        """Keep the neurons of the next turn, and tell at which rates they are about to be moved."""
        turn = self._next()
        rates = self._meter.learning_rates(turn)
        self._queue.rotate(-len(turn))
        self._meter.before(turn)
        return rates

    def after(self) -> Measurement | None:
        """Compare them with what they are now."""
        return self._meter.after()

    def _next(self) -> list[MeasuredSet]:
        if self._meter.refresh():
            self._queue = deque(self._portions())
        if not self._limited:
            return list(self._queue)
        turn: list[MeasuredSet] = []
        expected = 0.0
        for one in self._queue:
            expected += expected_seconds([one], self._max_neurons)
            if turn and expected > SECONDS_PER_TURN:
                break
            turn.append(one)
        return turn

    def _portions(self) -> list[MeasuredSet]:
        """The sets of groups, on a limited budget none that takes longer than a turn if it can be divided."""
        if not self._limited:
            return self._meter.sets
        portions: list[MeasuredSet] = []
        for one in self._meter.sets:
            parts = math.ceil(expected_seconds([one], self._max_neurons) / max(SECONDS_PER_TURN, 1e-9))
            portions += one.split(-(-len(one.groups) // parts)) if isinstance(one, AlikeGroups) else [one]
        return portions
