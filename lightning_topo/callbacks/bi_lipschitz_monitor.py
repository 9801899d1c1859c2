"""BiLipschitzMonitor: how far each update stretches and squeezes the neurons, and how close it is to η*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._admission import Admission
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord, record_of, update_metrics
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._clone_certificate import CloneCertificate, MeasuredUpdates
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks._log_writer import LogWriter, logger_step
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._processes import Processes, hidden_updates
from lightning_topo.callbacks._run_length import RunLength
from lightning_topo.callbacks._state import SavedState, count, figures
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.callbacks._turns import Turns
from lightning_topo.callbacks.log_keys import BILIPSCHITZ
from lightning_topo.sharding import measured_model
from lightning_topo.updates import (
    LearningRate,
    Measurement,
    StepHooks,
    UnseenUpdates,
)

_UNSEEN = (
    "Neurons move although no optimizer of the Trainer made a step that BiLipschitzMonitor could see, so that these "
    "updates are not measured: an optimizer steps within the backward pass, by another method than step() (as SAM's "
    "first_step), or is unknown to the Trainer. Return it from configure_optimizers, and call its step()."
)


@dataclass(frozen=True)
class _Pending:
    """A measured update whose figures are on their way; no measurement where another process compares."""

    step: int
    rates: dict[str, LearningRate]
    measurement: Measurement | None


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
        certificates: For each group, whether the measured updates exclude that neurons have become clones.

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
        self.history: list[BiLipschitzRecord] = []
        self.broken_updates = 0
        self.active = False
        self._announcer = Announcer(type(self).__name__)
        self._budget = OverheadBudget(self.max_overhead)
        self._writer = LogWriter(self._announcer)
        self._neurons: FoundGroups = FoundGroups(groups, self._announcer)
        self._hooks = StepHooks(self._before_step, self._after_step)
        self._processes = Processes()
        self._admission = Admission(self._budget, self._processes)
        self._updates: list[int] = []
        self._measured = MeasuredUpdates()
        self._movers: dict[str, tuple[int, list[int]]] = {}
        self._forget_fit()
        self.skip_empty_hooks()
        self.hear("on_train_batch_end", False)

    def _forget_fit(self) -> None:
        """Nothing of a fit is left: neither its model nor what is on its way."""
        self._trainer: Any = None
        self._model: Any = None
        self._length: RunLength | None = None
        self._unseen: UnseenUpdates | None = None
        self._turns: dict[int, Turns] = {}
        self._measuring: tuple[int, dict[str, LearningRate]] | None = None
        self._pending: list[_Pending] = []
        self._current: dict[str, BiLipschitzRecord] = {}

    @property
    def discovery_seconds(self) -> float:
        """Seconds that finding the groups took in this fit; they count as overhead."""
        return self._budget.spent_on("discovery")

    @property
    def certificates(self) -> tuple[CloneCertificate, ...]:
        """For each group, whether the updates of the run so far exclude that neurons have become clones."""
        return tuple(
            self._measured.certificate(
                name, sum(self._updates[index] for index in movers), n <= (self.max_neurons or n)
            )
            for name, (n, movers) in self._movers.items()
        )

    @property
    def ready(self) -> bool:
        """Whether the groups are known, and with them the charts."""
        return self._neurons.ready

    def state_dict(self) -> dict[str, Any]:
        """Counts of measurements, updates and broken updates, and the figures that were logged last."""
        return {
            "due": self._budget.due,
            "made": self._budget.made,
            "updates": list(self._updates),
            "broken_updates": self.broken_updates,
            "measured": self._measured.state(),
            "last": dict(self._writer.last),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        saved = SavedState(state_dict, self._announcer)
        self._budget.due, self._budget.made = saved.get("due", count, 0), saved.get("made", count, 0)
        self._updates = saved.get("updates", lambda value: list(map(count, value)), [])
        self.broken_updates = saved.get("broken_updates", count, 0)
        self._measured.forget()
        saved.get("measured", self._measured.load, None, since="0.2.0")
        self._writer.last = saved.get("last", figures, {}, since="0.2.0")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure, and forget an earlier fit, which may have been of another model."""
        self._neurons.forget()
        self._forget_fit()
        self._processes = Processes.of(trainer)
        self._admission = Admission(self._budget, self._processes)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._budget.forget()
            self._announcer.forget()
            self._updates, self.broken_updates, self._writer.last = [], 0, {}
            self._measured.forget()
        obstacle = hidden_updates(trainer.strategy) if self.active else None
        if obstacle is not None:
            self.active = False
            if self._processes.lead:
                self._announcer.warn_once(
                    f"{type(self).__name__} does not measure {obstacle}. Training goes on unmonitored."
                )
        self.hear("on_train_batch_start", self.active)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        if self.active:
            self._trainer, self._length = trainer, RunLength(trainer)
            self._writer.publish_last(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once, and listen to the optimizers, also to those that have taken the place of others."""
        if not self._neurons.ready:
            self._find(trainer, pl_module, batch)
        elif not self._budget.waiting and self._neurons.changed(trainer.optimizers):
            with self._budget.spending(pl_module.device, kind="discovery"):
                self._neurons.find_again(trainer, pl_module, batch, self._processes)
            self._listen(trainer)
        elif self._neurons.found:
            if not self._hooks.attached_to(trainer.optimizers):
                self._listen(trainer)
            elif self._unseen is not None and self._unseen.noticed():
                self._announcer.warn_once(_UNSEEN)

    def _find(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        with self._budget.spending(pl_module.device, kind="discovery"):
            self._neurons.find(trainer, pl_module, batch, self._processes)
        if self._neurons.found:
            self._model = measured_model(trainer, pl_module)
            self._listen(trainer)
        elif not self._neurons.ready:
            return  # an empty batch
        else:
            self.hear("on_train_batch_start", False)
        if self._processes.lead:
            with self._announcer.never_fatal("write the layout of TensorBoard's charts"):
                write_layout(trainer)

    def _listen(self, trainer: Any) -> None:
        """Look at the updates of the Trainer's optimizers."""
        self._hooks.attach(trainer.optimizers)
        self._turns = {}
        if len(self._updates) != len(trainer.optimizers):
            self._updates = [0] * len(trainer.optimizers)
        self._movers, parameters = {}, []
        held = [{id(p) for settings in o.param_groups for p in settings["params"]} for o in trainer.optimizers]
        for group in self._neurons.found:
            own = group.parameters(self._model)
            movers = [index for index, ids in enumerate(held) if not ids.isdisjoint(map(id, own))]
            self._movers[group.name] = group.n_units(self._model), movers
            parameters += own
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
        if self.max_overhead is not None and self._processes.lead and not self._budget.knows(""):
            if self._neurons.changed(self._trainer.optimizers):
                return
            with self._announcer.never_fatal(), self._budget.spending(kind="calibration"):
                guess = self._turns_of(index, optimizer).expected_seconds()
                run_time = self._length.seconds(self._budget.training) if self._length else 0.0
        if not self._admission.admits("", guess, run_time) or self._neurons.changed(self._trainer.optimizers):
            return  # what has changed within this batch is found again at the next
        self._measuring = index, {}
        if self._processes.read:
            with self._announcer.never_fatal(), self._budget.spending(self._model.device):
                self._measuring = index, self._turns_of(index, optimizer).before()

    def _turns_of(self, index: int, optimizer: Optimizer) -> Turns:
        if index not in self._turns:
            limited = self.max_overhead is not None
            everything = self._model, self._neurons.found, self.max_neurons, self._processes
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
            with self._announcer.never_fatal(), self._budget.spending(self._model.device):
                measurement = self._turns[index].after()
        self._pending.append(_Pending(logger_step(self._trainer), rates, measurement))
        self.hear("on_train_batch_end", True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what has arrived of the updates measured so far."""
        self._deliver(trainer, wait=self._processes.several or _needs_all(trainer))
        self.hear("on_train_batch_end", bool(self._pending))

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
            for _, pending in groupby(self._pending, key=lambda pending: pending.step):
                self._records(list(pending))
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
        for step, pending in groupby(list(self._pending), key=lambda pending: pending.step):
            batch = list(pending)
            if not wait and not all(one.measurement is None or one.measurement.ready for one in batch):
                return
            del self._pending[: len(batch)]
            with self._budget.spending():
                metrics: dict[str, float] = {}
                with self._announcer.never_fatal():
                    metrics = self._records(batch)
                self._writer.write(trainer, metrics, self._processes, step)

    def _records(self, batch: Sequence[_Pending]) -> dict[str, float]:
        """Remember what the updates of a batch did, and the figures to be logged of them."""
        latest: dict[str, BiLipschitzRecord] = {}
        for one in batch:
            records = [] if one.measurement is None else self._of_one(one, one.measurement)
            for record in records:
                self._measured.add(record)
            # A gradient scaler inside the optimizer can skip the update: nothing moved, and there is nothing to tell.
            if not any(record.criticality != 0 for record in records):
                continue
            self.broken_updates += any(record.criticality >= 1 for record in records)
            remember(self.history, records)
            for record in records:
                known = latest.get(record.group)
                if known is None or not record.criticality <= known.criticality:
                    latest[record.group] = record
        if not latest:
            return {}
        self._current |= latest
        coverage = {BILIPSCHITZ.coverage: self._budget.coverage}
        return update_metrics(latest, self._current.values(), self.broken_updates) | coverage

    def _of_one(self, update: _Pending, measurement: Measurement) -> list[BiLipschitzRecord]:
        order = {group.name: number for number, group in enumerate(self._neurons.found)}
        records = []
        for group, constants in measurement.constants():
            if constants is None:
                self._current.pop(group.name, None)
                self._announcer.warn_once(
                    f"Neurons of {group.name} are NaN or infinite at step {update.step}: the run has diverged there. "
                    f"{type(self).__name__} goes on with the other groups.",
                    kind=f"diverged {group.name}",
                )
            else:
                records.append(record_of(update.step, group, float(update.rates[group.name]), constants))
        return sorted(records, key=lambda record: order.get(record.group, 0))


def _needs_all(trainer: Any) -> bool:
    """Whether somebody may look at the figures, or log a later step, before the next batch ends."""
    following, every = logger_step(trainer) + 1, trainer.log_every_n_steps
    due = every > 0 and (following % every == 0 or (following + 1) % every == 0)
    return due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
