"""SharpnessMonitor: the largest Hessian eigenvalue of the training loss, the other edge of stability."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_topo.callbacks._monitor import Monitor, logger_step, multiple_reached
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.functional import sharpness
from lightning_topo.sharding import shards_parameters

_MAX_ITER = 40
_TOLERANCE = 1e-2
# One measurement took as long as 50 to 60 forward passes of a convolutional net and of a transformer.
_FORWARD_PASSES = 60


@dataclass(frozen=True)
class SharpnessRecord:
    """Sharpness of one batch's loss.

    Attributes:
        step: Step under which it was logged.
        lambda_max: λmax, the largest eigenvalue of the Hessian of the loss.
        inverse: 1/λmax; for gradient descent a bound on η* on the safe side, for other rules a figure beside it.
    """

    step: int
    lambda_max: float
    inverse: float


class SharpnessMonitor(Monitor[SharpnessRecord]):
    """Measures the sharpness λmax of the training loss on the batch at hand.

    λmax is the largest eigenvalue of the Hessian of the batch's loss over all trainable parameters, by Lanczos
    iteration on Hessian-vector products. They are taken from the graph that the training step has just built, before
    it goes backward: the training step runs once, as always. 1/λmax is what the experiments of arXiv 2510.02670 plot
    beside η* (edge of stability: gradient descent is stable up to 2/λmax).

    Logged as ``sharpness/{lambda_max, inverse, coverage}``. With gradient accumulation or several backward passes
    in one batch, the first loss is measured.

    The loss must have second derivatives, and the parameters must be real. Compiled modules and fused attention
    kernels have no second derivatives: the monitor then warns once and logs nothing, as with complex parameters. Where
    parameters are sharded over processes it says at the start that it does nothing.

    Args:
        every_n_train_steps: Measure every n-th optimizer step; where a batch makes several, at the start of the next.
        max_overhead: Share of the training time that measuring may take; None measures every due step.

    Attributes:
        history: List of ``SharpnessRecord``.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.SharpnessMonitor(every_n_train_steps=50)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].lambda_max
    """

    name = "sharpness"

    def __init__(self, every_n_train_steps: int = 100, max_overhead: float | None = 0.05) -> None:
        super().__init__(every_n_train_steps, max_overhead)
        self._armed = False
        self._last_step: int | None = None
        self._batch_began = 0.0
        self._batches = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Counts of measurements, and the step at which the last batch began."""
        return {**super().state_dict(), "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        super().load_state_dict(state_dict)
        self._last_step = state_dict.get("last_step")

    def forget(self) -> None:
        """A run begins anew."""
        super().forget()
        self._last_step = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        super().on_train_start(trainer, pl_module)
        self.ready = True
        self._batches = _batches_left(trainer)
        if self._processes.lead:
            write_layout(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Arm the monitor at the first batch of a due step."""
        step = trainer.global_step
        self._armed = self.active and multiple_reached(self.every_n_train_steps, step, self._last_step)
        self._last_step = step
        self._batch_began = time.perf_counter()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Measure on the graph of the loss, which stays as it is."""
        if not self._armed:
            return
        self._armed = False
        forward = time.perf_counter() - self._batch_began
        if not self.admits(guess=_FORWARD_PASSES * forward, run_time=3 * forward * self._batches):
            return
        metrics: dict[str, float] = {}
        if self._processes.lead:
            with self.never_fatal(), self._budget.spending(pl_module.device):
                value = _sharpness(loss, pl_module) / _loss_scale(trainer, pl_module)
                record = SharpnessRecord(logger_step(trainer), value, 1 / value if value else float("inf"))
                self.remember([record])
                metrics = {"sharpness/lambda_max": record.lambda_max, "sharpness/inverse": record.inverse}
        with self.never_fatal(), self._budget.spending():
            self.write(trainer, metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so when the fit was too short to measure anything."""
        if self.active and self._processes.lead and self._budget.left_all_out:
            self._warn_once(
                "SharpnessMonitor measured nothing in this fit: one measurement takes about as long as "
                f"{_FORWARD_PASSES // 3} training steps, more than max_overhead={self.max_overhead:g} leaves in a fit "
                "of this length. Pass a larger max_overhead, or None to measure every due step."
            )

    def _obstacle(self, strategy: Any) -> str | None:
        if shards_parameters(strategy):
            return (
                f"under {type(strategy).__name__}: a loss of sharded parameters has no second derivative, because the "
                "whole parameters are gone after the forward pass"
            )
        return None

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        return {"inverse sharpness": ["sharpness/inverse"]}


def _batches_left(trainer: Any) -> float:
    """Training batches of a fit that is about to begin, as far as the run's limits tell."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs - trainer.current_epoch
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps - trainer.global_step
    return min(epochs * trainer.num_training_batches, steps * trainer.accumulate_grad_batches)


def _sharpness(loss: Tensor, module: Any) -> float:
    with warnings.catch_warnings(), _buffers_kept(module):
        # A value within a few per cent is enough for a curve, and one that falls short is a lower bound.
        warnings.filterwarnings("ignore", "sharpness did not converge")
        return sharpness(loss, module.parameters(), max_iter=_MAX_ITER, tolerance=_TOLERANCE)


@contextmanager
def _buffers_kept(module: Any) -> Iterator[None]:
    """Leave the buffers as they were: checkpointed activations are computed again, with their running statistics."""
    kept = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.layout is torch.strided
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in kept:
            owner._buffers[name] = buffer
            if not torch.equal(buffer, value):  # others may be views that cannot be written to
                # Past autograd: a raised version would forbid the backward pass that is to come.
                buffer.data.copy_(value)


def _loss_scale(trainer: Any, pl_module: Any) -> float:
    """By how much the loss that goes backward is larger than the loss of the batch."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if pl_module.automatic_optimization else scale
