"""BiLipschitzMonitor: how far each update stretches and squeezes the neurons, and how close it is to η*."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._log_writer import logger_step
from lightning_topo.callbacks._measured_updates import MeasuredUpdate, MeasuredUpdates
from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._processes import hidden_updates
from lightning_topo.callbacks._state import count
from lightning_topo.callbacks._turns import Turns
from lightning_topo.callbacks.log_keys import BILIPSCHITZ
from lightning_topo.updates import LearningRate, StepHooks, UnseenUpdates

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
    criticality, critical_lr}``, and over all groups ``bilipschitz/{learning_rate, criticality, critical_lr,
    broken_updates, coverage}``: the largest κ and the smallest η* of the groups' latest values, the measured updates
    so far with κ >= 1, and the share of due updates that were measured.

    A measurement waits for no device: its work is queued behind the update, and its figures are logged under the
    update's step when they have arrived, at the latest before a logger's next values and at the end of the epoch. One
    that is expected to take more than ``max_overhead`` allows is left out, the first included. Where the groups
    together would take more than 0.3 s, they take turns.

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

    Attributes:
        history: List of ``BiLipschitzRecord``.
        broken_updates: Measured updates of the run with κ >= 1 in some group.

    Raises:
        ValueError: When an option is out of range; at the first batch, when ``groups`` names no group.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.BiLipschitzMonitor(every_n_train_steps=10)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].criticality
    """

    name = "bilipschitz"

    def __init__(
        self,
        groups: Groups = None,
        max_neurons: int | None = 256,
        every_n_train_steps: int = 1,
        max_overhead: float | None = 0.05,
    ) -> None:
        self.groups = groups
        self.max_neurons = None if max_neurons is None else require_positive_int("max_neurons", max_neurons, at_least=2)
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.active = False
        self._fit = MonitoredFit(type(self).__name__, groups, self.max_overhead)
        self._announcer, self._budget = self._fit.announcer, self._fit.budget
        self._neurons: FoundGroups = self._fit.neurons
        self._measured = MeasuredUpdates(self._announcer)
        self._hooks = StepHooks(self._before_step, self._after_step)
        self._updates: list[int] = []
        self._forget_fit()
        self.skip_empty_hooks()
        self.hear("on_train_batch_end", False)

    def _forget_fit(self) -> None:
        """Nothing of a fit is left: neither its model nor what is on its way."""
        self._fit.forget()
        self._measured.forget_fit()
        self._trainer: Any = None
        self._unseen: UnseenUpdates | None = None
        self._turns: dict[int, Turns] = {}
        self._measuring: tuple[int, dict[str, LearningRate]] | None = None

    @property
    def history(self) -> list[BiLipschitzRecord]:
        """What each measured update did to each group."""
        return self._measured.history

    @property
    def broken_updates(self) -> int:
        """Measured updates of the run with κ >= 1 in some group."""
        return self._measured.broken

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
        counts = {"updates": list(self._updates), "broken_updates": self.broken_updates}
        return self._fit.state() | counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        saved = self._fit.load_state(state_dict)
        self._updates = saved.get("updates", lambda value: list(map(count, value)), [])
        self._measured.broken = saved.get("broken_updates", count, 0)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure, and forget an earlier fit, which may have been of another model."""
        self._fit.enter(trainer)
        self._forget_fit()
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._fit.begin_anew()
            self._updates, self._measured.broken = [], 0
        self.active = self.active and self._fit.unhindered(hidden_updates(trainer.strategy))
        self.hear("on_train_batch_start", self.active)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        if self.active:
            self._trainer = trainer
            self._fit.start(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once, and listen to the optimizers, also to those that have taken the place of others."""
        if not self._neurons.ready:
            self._find(trainer, pl_module, batch)
        elif not self._budget.waiting and self._neurons.changed(trainer.optimizers):
            self._fit.find_again(trainer, pl_module, batch)
            self._listen(trainer)
        elif self._neurons.found:
            if not self._hooks.attached_to(trainer.optimizers):
                self._listen(trainer)
            elif self._unseen is not None and self._unseen.noticed():
                self._announcer.warn_once(_UNSEEN)

    def _find(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        if self._fit.find(trainer, pl_module, batch):
            self._listen(trainer)
        elif not self._neurons.ready:
            return  # an empty batch
        else:
            self.hear("on_train_batch_start", False)
        self._fit.write_layout(trainer)

    def _listen(self, trainer: Any) -> None:
        """Look at the updates of the Trainer's optimizers."""
        self._hooks.attach(trainer.optimizers)
        self._turns = {}
        if len(self._updates) != len(trainer.optimizers):
            self._updates = [0] * len(trainer.optimizers)
        parameters = (p for group in self._neurons.found for p in group.parameters(self._fit.model))
        self._unseen = UnseenUpdates(parameters)

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        keys = BILIPSCHITZ
        rates = ("learning_rate", "critical_lr")
        charts = {"learning rate η and critical learning rate η*": [keys.of_run(name) for name in rates]}
        for group in self._neurons.found:
            if len(self._neurons.found) > 1:
                charts[f"{group.name}: η and η*"] = [keys.of_group(group.name, name) for name in rates]
            constants = [keys.of_group(group.name, name) for name in ("lower", "upper")]
            charts[f"{group.name}: lower and upper constant"] = constants
        return charts

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        """Keep the neurons, where the update is to be measured."""
        self._measuring = None
        if self not in self._trainer.callbacks:
            return  # a search within the run has set its callbacks aside: the update is not the run's
        due = self._updates[index] % self.every_n_train_steps == 0
        self._updates[index] += 1
        if due:
            self._begin(index, optimizer)

    def _begin(self, index: int, optimizer: Optimizer) -> None:
        """Keep the neurons whose turn it is, if the budget allows it."""
        guess = run_time = 0.0
        if self.max_overhead is not None and self._fit.processes.lead and not self._budget.knows(""):
            if self._neurons.changed(self._trainer.optimizers):
                return
            with self._announcer.never_fatal(), self._budget.spending(kind="calibration"):
                guess = self._turns_of(index, optimizer).expected_seconds()
                run_time = self._fit.run_seconds()
        if not self._fit.admission.admits("", guess, run_time) or self._neurons.changed(self._trainer.optimizers):
            return  # what has changed within this batch is found again at the next
        self._measuring = index, {}
        if self._fit.processes.read:
            with self._announcer.never_fatal(), self._budget.spending(self._fit.model.device):
                self._measuring = index, self._turns_of(index, optimizer).before()

    def _turns_of(self, index: int, optimizer: Optimizer) -> Turns:
        if index not in self._turns:
            limited = self.max_overhead is not None
            everything = self._fit.model, self._neurons.found, self.max_neurons, self._fit.processes
            self._turns[index] = Turns(optimizer, *everything, limited)
        return self._turns[index]

    def _after_step(self, index: int, optimizer: Optimizer) -> None:
        """Compare the neurons with those that were kept; what comes of it is read later."""
        if self._unseen is not None:
            self._unseen.seen = True
        if self._measuring is None or self._measuring[0] != index:
            return
        (_, rates), self._measuring = self._measuring, None
        measurement = None
        if rates:
            with self._announcer.never_fatal(), self._budget.spending(self._fit.model.device):
                measurement = self._turns[index].after()
        self._measured.add(MeasuredUpdate(logger_step(self._trainer), rates, measurement))
        self.hear("on_train_batch_end", True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what has arrived of the updates measured so far."""
        self._deliver(trainer, wait=self._fit.processes.several or _needs_all(trainer))
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

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep in the history what has arrived, and listen no more."""
        with self._announcer.never_fatal():
            for _, batch in self._measured.take(wait=True):
                self._measured.remember(batch, self._neurons.found)
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Listen no more."""
        self._release()

    def _release(self) -> None:
        self._hooks.release()
        self._forget_fit()
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


def _needs_all(trainer: Any) -> bool:
    """Whether somebody may look at the figures, or log a later step, before the next batch ends."""
    following, every = logger_step(trainer) + 1, trainer.log_every_n_steps
    due = every > 0 and (following % every == 0 or (following + 1) % every == 0)
    return due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
