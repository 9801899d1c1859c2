"""SharpnessMonitor: the largest Hessian eigenvalue of the training loss, the other edge of stability."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo.callbacks._admission import Admission
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._due import multiple_reached
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks._log_writer import LogWriter, logger_step
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._processes import Processes
from lightning_topo.callbacks._run_length import batches_left
from lightning_topo.callbacks._state import SavedState, count, count_or_none, figures
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.callbacks._unseen_passes import UnseenPasses
from lightning_topo.callbacks.log_keys import SHARPNESS
from lightning_topo.functional.sharpness import largest_eigenvalue
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


class SharpnessMonitor(OptionedCallback):
    """Measures the sharpness λmax of the training loss on the batch at hand.

    λmax is the largest eigenvalue of the Hessian of the batch's loss over all trainable parameters, by Lanczos
    iteration on Hessian-vector products. They are taken from the graph that the training step has just built, before
    it goes backward: the training step runs once, as always. Hooks of modules and of parameters for the backward pass
    are left out of these passes; what a ``torch.autograd.Function`` or a hook on an activation draws and counts is put
    back where it can be reached from the module. 1/λmax is what the experiments of arXiv 2510.02670 plot beside η*
    (edge of stability: gradient descent is stable up to 2/λmax).

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
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.history: list[SharpnessRecord] = []
        self.active = self.ready = False
        self._announcer = Announcer(type(self).__name__)
        self._budget = OverheadBudget(self.max_overhead)
        self._writer = LogWriter(self._announcer)
        self._processes = Processes()
        self._admission = Admission(self._budget, self._processes)
        self._unseen = UnseenPasses()
        self._last_step: int | None = None
        self._batch_began = 0.0
        self._batches = 0.0
        self.skip_empty_hooks()
        self.hear("on_before_backward", False)

    def state_dict(self) -> dict[str, Any]:
        """Counts of measurements, the step at which the last batch began, and the figures that were logged last."""
        counts = {"due": self._budget.due, "made": self._budget.made}
        return {**counts, "last_step": self._last_step, "last": dict(self._writer.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        saved = SavedState(state_dict, self._announcer)
        self._budget.due, self._budget.made = saved.get("due", count, 0), saved.get("made", count, 0)
        self._last_step = saved.get("last_step", count_or_none, None)
        self._writer.last = saved.get("last", figures, {}, since="0.2.0")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure."""
        self.ready = False
        self._processes = Processes.of(trainer)
        self._admission = Admission(self._budget, self._processes)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._budget.forget()
            self._announcer.forget()
            self._last_step, self._writer.last = None, {}
        if self.active and shards_parameters(trainer.strategy):
            self.active = False
            if self._processes.lead:
                self._announcer.warn_once(
                    f"{type(self).__name__} does not measure under {type(trainer.strategy).__name__}: a loss of "
                    "sharded parameters has no second derivative, because the whole parameters are gone after the "
                    "forward pass. Training goes on unmonitored."
                )
        self.hear("on_train_batch_start", self.active)
        self.hear("on_before_backward", False)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        self.ready = True
        self._batches = batches_left(trainer)
        if self.active:
            self._writer.publish_last(trainer)
        if self._processes.lead:
            with self._announcer.never_fatal("write the layout of TensorBoard's charts"):
                write_layout(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Listen to the loss of the first batch of a due step."""
        step = trainer.global_step
        due = multiple_reached(self.every_n_train_steps, step, self._last_step)
        self.hear("on_before_backward", due)
        self._unseen.uncover()  # where the last batch had no loss
        if due and self._processes.lead:
            self._unseen.cover(pl_module)
        self._last_step = step
        self._batch_began = time.perf_counter()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Measure on the graph of the loss, which stays as it is."""
        self.hear("on_before_backward", False)
        self._unseen.uncover()
        forward = time.perf_counter() - self._batch_began
        if not self._admission.admits(guess=_FORWARD_PASSES * forward, run_time=3 * forward * self._batches):
            return
        metrics: dict[str, float] = {}
        if self._processes.lead:
            with self._announcer.never_fatal(), self._budget.spending(pl_module.device):
                with self._unseen.made(pl_module):
                    value = _sharpness(loss, pl_module) / _loss_scale(trainer, pl_module)
                record = SharpnessRecord(logger_step(trainer), value, 1 / value if value else float("inf"))
                remember(self.history, [record])
                metrics = {SHARPNESS.of_run("lambda_max"): record.lambda_max}
                metrics |= {SHARPNESS.of_run("inverse"): record.inverse, SHARPNESS.coverage: self._budget.coverage}
        with self._budget.spending():
            self._writer.write(trainer, metrics, self._processes)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so when the fit was too short to measure anything."""
        self._unseen.forget()
        if self.active and self._processes.lead and self._budget.left_all_out:
            self._announcer.warn_once(
                "SharpnessMonitor measured nothing in this fit: one measurement takes about as long as "
                f"{_FORWARD_PASSES // 3} training steps, more than max_overhead={self.max_overhead:g} leaves in a fit "
                "of this length. Pass a larger max_overhead, or None to measure every due step."
            )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module's hooks as they were."""
        self._unseen.forget()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module's hooks as they were."""
        self._unseen.forget()

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        return {"inverse sharpness": [SHARPNESS.of_run("inverse")]}


def _sharpness(loss: Tensor, module: Any) -> float:
    # A value within a few per cent is enough for a curve, and one that falls short is a lower bound.
    return largest_eigenvalue(loss, module.parameters(), _MAX_ITER, _TOLERANCE).value


def _loss_scale(trainer: Any, pl_module: Any) -> float:
    """By how much the loss that goes backward is larger than the loss of the batch."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if pl_module.automatic_optimization else scale
