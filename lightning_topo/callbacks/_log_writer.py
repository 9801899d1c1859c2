"""Writing figures to every logger, and to what other callbacks read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._found_groups import FoundGroups
from lightning_topo.callbacks._per_group import PerGroup, groups_in, is_of_group, shows_groups
from lightning_topo.callbacks._processes import Processes
from lightning_topo.callbacks._tensorboard import is_tensorboard, tags_of


def logger_step(trainer: Any) -> int:
    """The step under which Lightning itself logs what happens in the current batch."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def somebody_looks_next(trainer: Any) -> bool:
    """Whether somebody may look at the figures, or log a later step, before the next batch ends."""
    following, every = logger_step(trainer) + 1, trainer.log_every_n_steps
    due = every > 0 and (following % every == 0 or (following + 1) % every == 0)
    return due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class LogWriter:
    """Sends figures to every logger and to ``trainer.callback_metrics``; a logger that fails is said once.

    Args:
        announcer: Says what failed.
        neurons: The neuron groups of the fit; where it is left out, they are counted by the figures of them.
        per_group: Whether loggers get the figures of each group.

    Attributes:
        last: The figures that were written last, by key.
    """

    def __init__(self, announcer: Announcer, neurons: FoundGroups | None = None, per_group: PerGroup = "auto") -> None:
        self._announcer, self._neurons, self._per_group = announcer, neurons, per_group
        self.last: dict[str, float] = {}

    @property
    def shows_groups(self) -> bool:
        """Whether loggers get the figures of each group."""
        n = len(groups_in(self.last)) if self._neurons is None else len(self._neurons.found)
        return shows_groups(self._per_group, n)

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
        self.last |= finite
        shown = finite if self.shows_groups else {k: v for k, v in finite.items() if not is_of_group(k)}
        for logger in trainer.loggers if processes.lead and shown else ():
            with self._announcer.never_fatal(f"write to {type(logger).__name__}"):
                separator = logger.group_separator
                named = tags_of(shown) if is_tensorboard(logger) else shown
                logger.log_metrics({k.replace("/", separator): v for k, v in named.items()}, step=step)
        self._publish(trainer, finite)
        if processes.lead:
            for callback in trainer.callbacks:
                if hasattr(callback, "hear_metrics"):  # an alarm
                    callback.hear_metrics(trainer, finite, step)

    def publish_last(self, trainer: Any) -> None:
        """Have other callbacks (EarlyStopping, ModelCheckpoint) know the last figures, as after a resume."""
        self._publish(trainer, self.last)

    def _publish(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        if metrics:
            values = torch.tensor(list(metrics.values())).to(trainer.strategy.root_device, non_blocking=True).unbind()
            trainer.callback_metrics.update(dict(zip(metrics, values, strict=True)))
