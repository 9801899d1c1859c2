"""Writing figures to every logger, and to what other callbacks read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._processes import Processes


def logger_step(trainer: Any) -> int:
    """The step under which Lightning itself logs what happens in the current batch."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


class LogWriter:
    """Sends figures to every logger and to ``trainer.callback_metrics``; a logger that fails is said once.

    Args:
        announcer: Says what failed.

    Attributes:
        last: The figures that were written last, by key.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self.last: dict[str, float] = {}

    def write(
        self, trainer: Any, metrics: Mapping[str, float | None], processes: Processes, step: int | None = None
    ) -> None:
        """Write the finite values under a step, default the current batch's.

        Of several processes all enter, with what the first has measured or nothing: it logs, and all know the metrics.
        """
        metrics = processes.agreed(dict(metrics))
        finite = {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}
        if not finite:
            return
        step = logger_step(trainer) if step is None else step
        for logger in trainer.loggers if processes.lead else ():
            separator = logger.group_separator
            with self._announcer.never_fatal(f"write to {type(logger).__name__}"):
                logger.log_metrics({k.replace("/", separator): v for k, v in finite.items()}, step=step)
        self.last |= finite
        self._publish(trainer, finite)

    def publish_last(self, trainer: Any) -> None:
        """Have other callbacks (EarlyStopping, ModelCheckpoint) know the last figures, as after a resume."""
        self._publish(trainer, self.last)

    def _publish(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        if metrics:
            values = torch.tensor(list(metrics.values())).to(trainer.strategy.root_device, non_blocking=True).unbind()
            trainer.callback_metrics.update(dict(zip(metrics, values, strict=True)))
