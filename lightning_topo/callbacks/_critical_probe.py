"""Measuring the critical learning rate of the loss for one update of a run, from its first batch to the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_topo.functional import critical_multiple
from lightning_topo.updates import LearningRate, ParametersBefore, RecordedSteps, StepHooks, loss_along

# Final bracket of the search: with it and a start near the result five evaluations suffice, and where the loss is
# smooth the parabola through the bracket is within a per cent of the result.
_TOLERANCE = 0.2
# Rounding of a loss, relative: five times the largest that was seen on a residual net, a ViT, a GPT and a perceptron
# when parameters moved by a hundredth of an update (2e-7 in single precision, 9e-5 in bfloat16).
_RESOLUTION, _HALF_RESOLUTION = 1e-6, 5e-4


@dataclass(frozen=True)
class CriticalRate:
    """What was found along an update.

    Attributes:
        learning_rate: η, the largest of the optimizer's parameter groups.
        critical_lr: η_c, the smallest rate at which the batch's loss is no longer below what it was; 0 where the loss
            does not fall along the update at all.
        evaluations: Evaluations of the loss.
    """

    learning_rate: float
    critical_lr: float
    evaluations: int


class CriticalProbe:
    """Keeps what leads to an update, and searches along it.

    Args:
        arrived: Called right after the update, with what leads to it at hand: it may call ``measure``.
    """

    def __init__(self, arrived: Callable[[], None]) -> None:
        self._arrived = arrived
        self._recorded = RecordedSteps()
        self._hooks = StepHooks(self._before_step, self._after_step)
        self._last: float | None = None
        self._forget_update()

    def _forget_update(self) -> None:
        self._recorded.stop()
        self._trainer: Any = None
        self._module: Any = None
        self._before: ParametersBefore | None = None
        self._index = 0
        self._rate = LearningRate(())

    @property
    def waiting(self) -> bool:
        """Whether the update is still to come."""
        return self._recorded.recording

    @property
    def seconds(self) -> float:
        """How long it took to the loss from which the update was made."""
        return self._recorded.seconds

    def begin(self, trainer: Any, module: Any) -> None:
        """Keep what happens from here on, before a batch.

        Raises:
            NotRepeatableError: When the training step cannot be made again.
        """
        self.end()
        self._recorded.start(trainer, module)
        self._trainer, self._module = trainer, module
        self._hooks.attach(trainer.optimizers)

    def next_batch(self) -> None:
        """Another batch begins that belongs to the same update."""
        self._recorded.next_batch()

    def end(self) -> None:
        """Wait for the update no more; between steps, as an optimizer is calling its hooks within one."""
        self._forget_update()
        self._hooks.release()

    def forget(self) -> None:
        """Nothing of a fit is left."""
        self.end()
        self._recorded.forget()
        self._last = None

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        if self._before is not None or not self._recorded.heeds_run:
            return
        settings = optimizer.param_groups
        moved = {id(p): p for setting in settings for p in setting["params"] if p.layout is torch.strided}
        self._before, self._index = ParametersBefore(list(moved.values())), index
        self._before.take()
        self._rate = LearningRate(setting.get("lr", math.nan) for setting in settings)

    def _after_step(self, index: int, optimizer: Optimizer) -> None:
        if self._before is not None and index == self._index:
            try:
                self._arrived()
            finally:
                self._forget_update()

    def measure(self, max_evaluations: float = math.inf) -> CriticalRate | None:
        """Search along the update, in so many evaluations where they can be enough; None where it has moved nothing.

        Raises:
            NotRepeatableError: When the training step cannot be made again.
        """
        assert self._before is not None
        pairs = zip(self._before.parameters, self._before.copies, strict=True)
        if all(torch.equal(now, before) for now, before in pairs):
            return None
        rate = float(self._rate)
        half = "32" not in str(self._trainer.precision) and "64" not in str(self._trainer.precision)
        start = self._last / rate if self._last and rate > 0 else 1.0
        resolution = _HALF_RESOLUTION if half else _RESOLUTION
        with loss_along(self._trainer, self._module, self._recorded, self._before) as loss:
            found = critical_multiple(
                loss, start=start, tolerance=_TOLERANCE, resolution=resolution, max_evaluations=max_evaluations
            )
        critical = found.multiple * rate
        if 0 < critical < math.inf:
            self._last = critical
        return CriticalRate(rate, critical, found.evaluations)
