"""SharpnessMonitor: how sharp the training loss is, by its critical learning rate and by its Hessian."""

from __future__ import annotations

import math
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_topo._lightning import rank_zero_info
from lightning_topo.callbacks._admission import Admission
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._charts import Charts, loss_charts
from lightning_topo.callbacks._critical_probe import CriticalProbe
from lightning_topo.callbacks._due import multiple_reached
from lightning_topo.callbacks._findings import gather, ours
from lightning_topo.callbacks._history import PresentRun
from lightning_topo.callbacks._log_writer import LogWriter, logger_step
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._processes import Processes, hidden_updates
from lightning_topo.callbacks._run_length import batches_left
from lightning_topo.callbacks._sharpness_record import SharpnessRecord, remember_sharpness, why_no_sharpness
from lightning_topo.callbacks._state import SavedState, count, count_or_none, figures
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.callbacks._unseen_passes import UnseenPasses
from lightning_topo.callbacks.log_keys import SHARPNESS
from lightning_topo.functional.leading_eigenpair import leading_eigenpair
from lightning_topo.sharding import shards_parameters
from lightning_topo.verdict import Findings, Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = ("auto", "critical", "hessian")
_MAX_ITER = 40
_TOLERANCE = 1e-2
# Each tenth search of λmax starts anew.
_ANEW = 10
# One measurement of λmax took as long as 50 to 60 forward passes of a convolutional net and of a transformer. One of
# η_c takes five or six; on a limited budget the first of a run, which starts from no earlier result, is cut there: with
# the twelve that it may take otherwise, a minute of a transformer of 11 M parameters at 0.8 s a step could not pay it.
_HESSIAN_PASSES, _CRITICAL_PASSES = 60, 6
# Where steps are slow, η_c is also due when so many seconds have passed: a measurement a minute is affordable then.
_SECONDS = 20.0


class SharpnessMonitor(OptionedCallback):
    r"""Measures how sharp the training loss is on the batch at hand.

    ``critical`` measures the critical learning rate of the loss along the update that was just made,

    $$\eta_c = \eta \min \{ t > 0 : L(\theta + t\,\Delta\theta) \ge L(\theta) \},$$

    by an exponential and then a binary search of forward passes (arXiv 2601.16979). L is the loss of the batch, or with
    accumulation of the batches, from which the update came. The passes draw the same random numbers from the same
    buffers, log nothing, and leave no trace; a measurement takes as long as two or three training steps. It holds for
    any optimizer, at any size of network. η* of ``BiLipschitzMonitor`` is the critical rate of the neurons, η_c that of
    the loss: TensorBoard shows both, and η, in one chart.

    ``hessian`` measures λmax, the largest eigenvalue of the Hessian of the batch's loss over all trainable parameters,
    by Hessian-vector products. They are taken from the graph that the training step has just built, before it goes
    backward. Hooks of modules and of parameters for the backward pass are left out of these passes; what a
    ``torch.autograd.Function`` or a hook on an activation draws and counts is put back where it can be reached from the
    module. Gradient descent is stable up to 2/λmax, which for a quadratic loss is the least that η_c can be; for Adam
    and others that scale the gradient it is no limit. 1/λmax is what the experiments of arXiv 2510.02670 plot.

    ``auto`` measures η_c, and λmax where the loss has second derivatives (compiled modules and fused attention have
    none) and the time suffices.

    Logged as ``sharpness/{learning_rate, critical_lr, lambda_max, inverse, coverage}``. λmax is of the first loss of a
    batch or of several that are accumulated; with several updates in a batch, η_c is of the first.

    A training step that cannot be made again has no η_c, and a warning says so once: one that changes parameters
    itself, draws its own batch, calls ``loss.backward()`` in the place of ``manual_backward``, or depends on what lies
    outside the module. Complex parameters have no λmax. Where parameters are sharded over processes the monitor says at
    the start that it does nothing.

    Args:
        every_n_train_steps: Measure every n-th optimizer step; where a batch makes several, at the start of the next.
            η_c is measured at the next step that moves a parameter, and on a limited budget also where 20 seconds have
            passed.
        max_overhead: Share of the training time that measuring may take; None measures every due step.
        method: ``auto``, ``critical`` or ``hessian``.

    Attributes:
        history: List of ``SharpnessRecord``.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.SharpnessMonitor(every_n_train_steps=50, method="critical")
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); print(monitor.summary()); monitor.plot()
        >>> print(monitor.summary().lines[0])  # before a fit it says what is missing
        No sharpness was measured: SharpnessMonitor has seen no fit. Put it into Trainer(callbacks=[...]) and call fit.
    """

    name = "sharpness"
    later_options = MappingProxyType({"method": "auto"})

    def __init__(self, every_n_train_steps: int = 100, max_overhead: float | None = 0.05, method: str = "auto") -> None:
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        if method not in _METHODS:
            raise ValueError(f"expected method to be one of {', '.join(_METHODS)}, got {method!r}")
        self.method = method
        self.history: list[SharpnessRecord] = []
        self.active = self.ready = False
        self._announcer = Announcer(type(self).__name__)
        self._budget = OverheadBudget(self.max_overhead)
        self._writer = LogWriter(self._announcer)
        self._processes = Processes()
        self._admission = Admission(self._budget, self._processes)
        self._unseen = UnseenPasses()
        self._probe = CriticalProbe(self._after_update)
        self._last_step: int | None = None
        self._run = PresentRun()
        self._companions: tuple[OptionedCallback, ...] = ()
        self._seen_a_fit = False
        self._forget_fit()
        self.skip_empty_hooks()
        self.hear("on_before_backward", False)

    def _forget_fit(self) -> None:
        """Nothing of a fit is left."""
        self._trainer: Any = None
        self._batch_began = self._due_at = 0.0
        self._batches = 0.0
        self._wants_critical = self.method != "hessian"
        self._wants_hessian = self.method != "critical"
        self._tried = self._admitted = self._unmoved = False
        self._direction: Tensor | None = None
        self._searches = 0
        self._probe.forget()
        self._unseen.forget()

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
        self._forget_fit()
        self._processes = Processes.of(trainer)
        self._admission = Admission(self._budget, self._processes)
        self._companions = ours(callback for callback in trainer.callbacks if callback is not self)
        self._seen_a_fit = True
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._budget.forget()
            self._announcer.forget()
            self._run.begin_anew(self.history)
            self._last_step, self._writer.last = None, {}
        if self.active:
            self._refuse(trainer)
        self.hear("on_train_batch_start", self.active)
        self.hear("on_before_backward", False)

    def _refuse(self, trainer: Any) -> None:
        """Say what cannot be measured under a strategy."""
        if shards_parameters(trainer.strategy):
            self.active = False
            if self._processes.lead:
                self._announcer.warn_once(
                    f"{type(self).__name__} does not measure under {type(trainer.strategy).__name__}: a loss of "
                    "sharded parameters has no second derivative, because the whole parameters are gone after the "
                    "forward pass, and it is not evaluated outside of a step. Training goes on unmonitored."
                )
        elif self._wants_critical and (obstacle := hidden_updates(trainer.strategy)) is not None:
            self._wants_critical, self.active = False, self._wants_hessian
            message = f"{type(self).__name__} does not measure the critical rate of the loss {obstacle}."
            if self.active:
                rank_zero_info(trainer, message)
            elif self._processes.lead:
                self._announcer.warn_once(f"{message} Training goes on unmonitored.")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        self.ready = True
        self._trainer, self._batches = trainer, batches_left(trainer)
        self._due_at = time.perf_counter()
        if self.active:
            self._writer.publish_last(trainer)
        if self._processes.lead:
            with self._announcer.never_fatal("write the layout of TensorBoard's charts"):
                write_layout(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Listen to the loss of the first batch of a due step, and to its update."""
        step, began = trainer.global_step, time.perf_counter()
        due = multiple_reached(self.every_n_train_steps, step, self._last_step)
        hessian = due and self._wants_hessian
        self.hear("on_before_backward", hessian)
        self._unseen.uncover()  # where the last batch had no loss
        if hessian and self._processes.lead:
            self._unseen.cover(pl_module)
        if self._wants_critical:
            self._follow(trainer, pl_module, due or self._slow(began), more=step == self._last_step)
        self._last_step, self._batch_began = step, began
        if due:
            self._due_at = began

    def _slow(self, now: float) -> bool:
        """Whether steps take so long that a measurement is due by the clock; processes have one each."""
        if self.max_overhead is None or self._processes.several or now - self._due_at < _SECONDS:
            return False
        self._due_at = now
        return True

    def _follow(self, trainer: Any, pl_module: Any, due: bool, more: bool) -> None:
        """Keep the batches that lead to an update that is to be measured; ``more``: of the same as the last batch."""
        if self._probe.waiting and more:
            self._probe.next_batch()
            return
        self._probe.end()  # whose update was left out by a gradient scaler
        if not due and not self._unmoved:
            return
        # What it costs is known but for the first time: then it is asked for once the forward pass has been timed.
        self._admitted = self._tried and self._admission.admits("critical")
        if self._admitted or not self._tried:
            self._unmoved = False
            with self._announcer.never_fatal(_CRITICAL), self._budget.spending(pl_module.device, kind="recording"):
                self._probe.begin(trainer, pl_module)
            self._tried = self._tried or not self._probe.waiting

    def _after_update(self) -> None:
        """Search along the update that has just been made; every process enters."""
        trainer, forward = self._trainer, self._probe.seconds
        times = {"guess": _CRITICAL_PASSES * forward, "run_time": 3 * forward * self._batches}
        if not self._admitted and not self._admission.admits("critical", **times):
            return
        self._tried = True
        with self._budget.spending(trainer.lightning_module.device, kind="critical"):
            metrics: dict[str, float] = {}
            with self._announcer.never_fatal(_CRITICAL):
                found = self._probe.measure(math.inf if self.max_overhead is None else _CRITICAL_PASSES)
                self._unmoved = found is None
                if found is not None and self._processes.lead:
                    metrics = {"learning_rate": found.learning_rate, "critical_lr": found.critical_lr}
            self._log(trainer, metrics)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Measure on the graph of the loss, which stays as it is."""
        self.hear("on_before_backward", False)
        self._unseen.uncover()
        if self._wants_critical and not self._tried and self.max_overhead is not None:
            return  # the cheaper method first
        forward = time.perf_counter() - self._batch_began
        times = {"guess": _HESSIAN_PASSES * forward, "run_time": 3 * forward * self._batches}
        if not self._admission.admits("hessian", **times):
            return
        metrics: dict[str, float] = {}
        if self._processes.lead:
            with self._budget.spending(pl_module.device):
                metrics = self._of_hessian(trainer, pl_module, loss)
        with self._budget.spending():
            self._wants_hessian = self._processes.agreed(self._wants_hessian)
            self._log(trainer, metrics)

    def _of_hessian(self, trainer: Any, pl_module: Any, loss: Tensor) -> dict[str, float]:
        with self._announcer.never_fatal():
            try:
                with self._unseen.made(pl_module):
                    value = self._lambda_max(loss, pl_module) / _loss_scale(trainer, pl_module)
                return {"lambda_max": value, "inverse": 1 / value if value else math.inf}
            except Exception as error:
                if self.method == "hessian":
                    raise
                self._wants_hessian = False
                rank_zero_info(
                    trainer,
                    f"{type(self).__name__} measures the critical rate of the loss alone, and not the largest "
                    f"eigenvalue of its Hessian ({type(error).__name__}: {error}).",
                )
        return {}

    def _lambda_max(self, loss: Tensor, pl_module: Any) -> float:
        """From the last eigenvector, where there is one of these parameters; now and then anew.

        A direction that another has overtaken would be followed for long otherwise.
        """
        size = sum(parameter.numel() for parameter in dict.fromkeys(pl_module.parameters()) if parameter.requires_grad)
        start = self._direction if self._searches % _ANEW else None
        if start is not None and (len(start) != size or not start.isfinite().all()):
            start = None
        # A value within a few per cent is enough for a curve, and one that falls short is a lower bound.
        found = leading_eigenpair(loss, pl_module.parameters(), start=start, max_iter=_MAX_ITER, tolerance=_TOLERANCE)
        self._direction, self._searches = found.vector.cpu(), self._searches + 1
        return found.value

    def _log(self, trainer: Any, values: dict[str, float]) -> None:
        """Remember and write what was measured at a step; every process enters."""
        metrics: dict[str, float] = {}
        if values:
            metrics = remember_sharpness(self.history, logger_step(trainer), values)
            metrics[SHARPNESS.coverage] = self._budget.coverage
        self._writer.write(trainer, metrics, self._processes)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say so when nothing could be measured."""
        if self.active and self._processes.lead:
            if self._budget.left_all_out:
                steps = (_CRITICAL_PASSES if self._wants_critical else _HESSIAN_PASSES) // 3
                self._announcer.warn_once(
                    f"SharpnessMonitor measured nothing in this fit: one measurement takes about as long as {steps} "
                    f"training steps, more than max_overhead={self.max_overhead:g} leaves in a fit of this length. "
                    "Pass a larger max_overhead, or None to measure every due step."
                )
            elif self._unmoved:
                self._announcer.warn_once(
                    "The last updates of this fit moved no parameter, as with a learning rate of 0: SharpnessMonitor "
                    "tells no critical rate of them."
                )
        self._forget_fit()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module's hooks and the strategy as they were."""
        self._forget_fit()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module's hooks and the strategy as they were."""
        self._forget_fit()

    def charts(self) -> Charts:
        """TensorBoard charts: title and the tags drawn together."""
        return loss_charts(critical=self._wants_critical, hessian=self._wants_hessian)

    def findings(self) -> Findings:
        """What has been measured in the present or last fit, for a verdict or a report."""
        sharpness = self._run.records(self.history)
        nothing = "" if sharpness else why_no_sharpness(self._seen_a_fit, self._budget)
        return Findings(sharpness=sharpness, no_sharpness_because=nothing)

    def summary(self) -> Verdict:
        """Say how near the present or last fit came to the critical rate of its loss; ``print`` it.

        What the Trainer's other callbacks of ours have measured is part of it.
        """
        return verdict(gather((self, *self._companions)))

    def plot(self, ax: Axes | None = None, show: bool = False) -> Axes:
        """Plot η beside η_c, and 2/λmax, over the steps; see ``plots.plot_sharpness``."""
        from lightning_topo.plots import plot_sharpness

        return plot_sharpness(self._run.records(self.history), ax, show)


_CRITICAL = "measure the critical rate of the loss"


def _loss_scale(trainer: Any, pl_module: Any) -> float:
    """By how much the loss that goes backward is larger than the loss of the batch."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if pl_module.automatic_optimization else scale
