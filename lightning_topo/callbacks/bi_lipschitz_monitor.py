"""BiLipschitzMonitor: how far each update stretches and squeezes the neurons, and how close it is to η*."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord
from lightning_topo.callbacks._charts import Charts, update_charts
from lightning_topo.callbacks._clone_certificate import CloneCertificate
from lightning_topo.callbacks._findings import gather, ours
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._log_writer import somebody_looks_next
from lightning_topo.callbacks._measured_updates import MeasuredUpdate, MeasuredUpdates
from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._overview import Overview
from lightning_topo.callbacks._per_group import PerGroup, require_per_group
from lightning_topo.callbacks._processes import hidden_updates
from lightning_topo.callbacks._state import count
from lightning_topo.callbacks._update_watch import UpdateWatch
from lightning_topo.callbacks._verdict import speak
from lightning_topo.callbacks.log_keys import BILIPSCHITZ
from lightning_topo.verdict import Findings, Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNSEEN = (
    "Neurons move although no optimizer of the Trainer made a step that BiLipschitzMonitor could see, so that these "
    "updates are not measured: an optimizer steps within the backward pass, by another method than step() (as SAM's "
    "first_step), or is unknown to the Trainer. Return it from configure_optimizers, and call its step()."
)


class BiLipschitzMonitor(OptionedCallback):
    """Measures how optimizer updates move the neurons relative to each other.

    For a neuron group with points p_i (all parameters that move with unit i) an update has

    - lower, upper: the smallest and largest ratio |p_i' - p_j'| / |p_i - p_j|, and distortion = upper / lower,
    - criticality κ = max |u_i - u_j| / |p_i - p_j| with u = p' - p; below 1 the update is one-to-one on the neurons,
    - critical learning rate η* = η / κ.

    Reference: arXiv 2510.02670, section 3. Logged as ``bilipschitz/<group>/{learning_rate, lower, upper, distortion,
    criticality, critical_lr}`` for up to eight groups, and over all groups ``bilipschitz/{learning_rate, criticality,
    median_criticality, critical_lr, squeeze, stretch, broken_updates, coverage}``: the largest and the median κ, the
    smallest η*, the largest 1 - lower and upper - 1 of the groups' latest values, the measured updates so far with
    κ >= 1, and the share of due updates that were measured. TensorBoard has logarithms of κ, η and η* beside them.

    A measurement waits for no device: its work is queued behind the update, and its figures are logged under the
    update's step when they have arrived, at the latest before a logger's next values and at the end of the epoch. One
    that is expected to take more than ``max_overhead`` allows is left out, the first included. Where the groups
    together would take more than 0.3 s, they take turns. On a CUDA GPU the work is recorded as a CUDA graph, where
    groups are small enough; that keeps up to 1/64 of the device's memory.

    Training is not touched: the points are copied before and after ``optimizer.step`` and compared. Works with any
    torch optimizer, several of them, parameter groups, gradient accumulation, clipping, mixed precision and manual
    optimization. With several updates in one batch, the one of the largest κ is logged; the history has all.
    Optimizers that are exchanged in the fit are taken up, and so are parameters (pruning, a layer that has grown);
    where neurons move and no optimizer step was seen, a warning says so.

    Args:
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_neurons: Largest number of neurons compared in a group, None for all. Of larger groups those are compared
            that an estimate over all pairs finds to decide the constants: κ is a lower bound, mostly attained. All
            points are kept over the update for this, unless a group has more than 2²⁸ parameters; then half of a
            sample is random, and the bound is weaker.
        every_n_train_steps: Measure every n-th update of each optimizer.
        max_overhead: Share of the training time that measuring may take; due updates beyond it are left out. None
            measures every group at every due update.
        per_group: Whether loggers get the figures of each group, beside those over all groups: ``True``, ``False``,
            or ``"auto"`` for up to eight groups. ``history`` and ``trainer.callback_metrics`` have them in any case.
        figures: Whether to give an overview figure to the loggers that take figures, at the end and, where the budget
            has time for it, in between.
        verdict: Whether to say at the end of the fit, in five lines, what it did to the neurons.

    Attributes:
        history: List of ``BiLipschitzRecord``.
        broken_updates: Measured updates of the run with κ >= 1 in some group.
        certificates: For each group, whether the measured updates exclude that neurons have become clones.

    Raises:
        ValueError: When an option is out of range; at the first batch, when ``groups`` names no group.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.BiLipschitzMonitor(every_n_train_steps=10)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].criticality
        >>> print(monitor.summary())  # before a fit it says what is missing
        No update was measured: BiLipschitzMonitor has seen no fit. Put it into Trainer(callbacks=[...]) and call fit.
    """

    name = "bilipschitz"
    later_options = MappingProxyType({"per_group": "auto", "figures": True, "verdict": True})

    def __init__(
        self,
        groups: Groups = None,
        max_neurons: int | None = 256,
        every_n_train_steps: int = 1,
        max_overhead: float | None = 0.05,
        per_group: PerGroup = "auto",
        figures: bool = True,
        verdict: bool = True,
    ) -> None:
        self.groups = groups
        self.max_neurons = None if max_neurons is None else require_positive_int("max_neurons", max_neurons, at_least=2)
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.per_group, self.figures, self.verdict = require_per_group(per_group), figures, verdict
        self.active = False
        self._fit = MonitoredFit(type(self).__name__, groups, self.max_overhead, self.per_group)
        self._announcer, self._budget = self._fit.announcer, self._fit.budget
        self._neurons: FoundGroups = self._fit.neurons
        self._measured = MeasuredUpdates(self._announcer)
        self._watch = UpdateWatch(self, self._fit, self.max_neurons, self.every_n_train_steps, self._add)
        self._overview = Overview(self._fit, figures)
        self._companions: tuple[OptionedCallback, ...] = ()
        self.skip_empty_hooks()
        self.hear("on_train_batch_end", False)

    def _add(self, update: MeasuredUpdate) -> None:
        self._measured.add(update)
        self.hear("on_train_batch_end", True)

    @property
    def history(self) -> list[BiLipschitzRecord]:
        """What each measured update did to each group."""
        return self._measured.history

    @property
    def broken_updates(self) -> int:
        """Measured updates of the run with κ >= 1 in some group."""
        return self._measured.broken

    @property
    def certificates(self) -> tuple[CloneCertificate, ...]:
        """For each group, whether the updates of the run so far exclude that neurons have become clones."""
        certificate, made = self._measured.tally.certificate, self._watch.counts
        return tuple(
            certificate(name, sum(made[index] for index in movers), n <= (self.max_neurons or n))
            for name, (n, movers) in self._watch.movers.items()
        )

    @property
    def discovery_seconds(self) -> float:
        """Seconds that finding the groups took in this fit; they count as overhead."""
        return self._fit.discovery_seconds

    @property
    def ready(self) -> bool:
        """Whether the groups are known, and with them the charts."""
        return self._neurons.ready

    def state_dict(self) -> dict[str, Any]:
        """Counts of measurements, updates and broken updates, and the figures that were logged last."""
        counts = {"measured_updates": self._measured.measured, "broken_updates": self.broken_updates}
        return self._fit.state() | counts | {"updates": list(self._watch.counts), "tally": self._measured.tally.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        saved = self._fit.load_state(state_dict)
        self._watch.counts = saved.get("updates", lambda value: list(map(count, value)), [])
        self._measured.broken = saved.get("broken_updates", count, 0)
        self._measured.tally.forget()
        saved.get("tally", self._measured.tally.load, None, since="0.2.0")
        self._measured.measured = saved.get("measured_updates", count, self._budget.made, since="0.2.0")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure, and forget an earlier fit, which may have been of another model."""
        self._fit.enter(trainer)
        self._release()
        self._companions = ours(callback for callback in trainer.callbacks if callback is not self)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._fit.begin_anew(self.history)
            self._measured.begin_anew()
            self._overview.begin_anew()
            self._watch.counts, self._watch.top_rate = [], 0.0
        self.active = self.active and self._fit.unhindered(hidden_updates(trainer.strategy))
        self.hear("on_train_batch_start", self.active)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        if self.active:
            self._fit.start(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once, and listen to the optimizers, also to those that have taken the place of others."""
        if not self._neurons.ready:
            self._find(trainer, pl_module, batch)
        elif not self._budget.waiting and self._neurons.changed(trainer.optimizers):
            self._fit.find_again(trainer, pl_module, batch)
            self._watch.listen(trainer)
        elif self._neurons.found:
            if not self._watch.listens_to(trainer):
                self._watch.listen(trainer)
            elif self._watch.missed_updates():
                self._announcer.warn_once(_UNSEEN)

    def _find(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        if self._fit.find(trainer, pl_module, batch):
            self._watch.listen(trainer)
        elif not self._neurons.ready:
            return  # an empty batch
        else:
            self.hear("on_train_batch_start", False)
        self._fit.write_layout(trainer)

    def charts(self) -> Charts:
        """TensorBoard charts."""
        return update_charts(self._fit.shown_groups)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what has arrived of the updates measured so far."""
        self._deliver(trainer, wait=self._fit.processes.several or somebody_looks_next(trainer))
        self.hear("on_train_batch_end", self._measured.pending)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the rest of the epoch, for those that look at it now."""
        self._deliver(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the rest of what was measured before a validation."""
        self._deliver(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the rest, and listen no more."""
        self._deliver(trainer)
        self._release()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what the fit did to the neurons."""
        if self.active and self._fit.processes.lead:
            self._overview.draw(trainer, gather((self, *self._companions)))
            if self.verdict:
                with self._announcer.never_fatal("say what the fit did to the neurons"):
                    speak(trainer, self.summary())

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep in the history what has arrived, and listen no more."""
        with self._announcer.never_fatal():
            for _, batch in self._measured.take(wait=True):
                self._measured.remember(batch, self._neurons.found)
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Listen no more."""
        self._release()

    def findings(self) -> Findings:
        """What has been measured in the present or last fit, for a verdict or a report."""
        made, certificates = sum(self._watch.counts), self.certificates
        return Findings(
            updates=self._fit.of_run(self.history),
            made=made,
            measured=self._measured.measured,
            broken=self.broken_updates,
            top_rate=self._watch.top_rate,
            sizes=self._fit.sizes,
            clones_excluded=bool(certificates) and all(one.excludes_clones for one in certificates),
            diverged=tuple(self._measured.diverged),
            nothing_because="" if self._measured.measured else self._fit.why_nothing(made),
        )

    def summary(self) -> Verdict:
        """Say in five lines what the present or last fit did to the neurons, and what to do; ``print`` it.

        What the Trainer's other callbacks of ours have measured is part of it.
        """
        return verdict(gather((self, *self._companions)))

    def plot(self, ax: Axes | None = None, show: bool = False) -> Axes:
        """Plot κ of each group over the steps; see ``plots.plot_criticality``."""
        from lightning_topo.plots import plot_criticality

        return plot_criticality(self._fit.of_run(self.history), ax, show)

    def _release(self) -> None:
        self._fit.forget()
        self._measured.forget_fit()
        self._watch.release()
        self.hear("on_train_batch_end", False)

    def _deliver(self, trainer: Any, wait: bool = True) -> None:
        """Log measured updates, step by step, those whose figures have arrived, or all; every process enters."""
        for step, batch in self._measured.take(wait):
            with self._budget.spending():
                metrics: dict[str, float] = {}
                with self._announcer.never_fatal():
                    metrics = self._measured.remember(batch, self._neurons.found)
                coverage = {BILIPSCHITZ.coverage: self._budget.coverage} if metrics else {}
                self._fit.write(trainer, metrics | coverage, step)
        self._overview.draw_due(trainer, self._measured.measured, lambda: gather((self, *self._companions)))
