"""How long a fit will be, as far as its limits tell."""

from __future__ import annotations

import math
from typing import Any


def batches_left(trainer: Any) -> float:
    """Training batches of a fit from now on; infinite where no limit is known."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs - trainer.current_epoch
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps - trainer.global_step
    return min(epochs * trainer.num_training_batches, steps * trainer.accumulate_grad_batches)


def is_last_batch(trainer: Any, batch_idx: int) -> bool:
    """Whether a batch will be the last of the fit, as far as its limits tell."""
    epochs = trainer.max_epochs
    last_epoch = epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs
    last_step = trainer.max_steps != -1 and trainer.global_step + 1 >= trainer.max_steps
    return last_step or (last_epoch and batch_idx + 1 >= trainer.num_training_batches)


class RunLength:
    """The training time that a whole fit will take, from what its batches took so far.

    Args:
        trainer: A Trainer at the start of its training.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._batches = batches_left(trainer)
        self._first = self._done

    @property
    def _done(self) -> int:
        return self._trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def doubled(self) -> bool:
        """Whether the number of batches done is a power of two: when to ask again for what was not affordable."""
        return (self._done - self._first).bit_count() == 1

    def seconds(self, training: float) -> float:
        """Expected seconds of the whole fit, given those of its training so far; 0 where its length is not known."""
        expected = training / max(1, self._done - self._first) * self._batches
        return expected if math.isfinite(expected) else 0.0
