"""TopologicalRateControl: trains at a share of the critical learning rate of the moment."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_topo._lightning import rank_zero_info
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._cadence import Cadence
from lightning_topo.callbacks._charts import Charts, control_charts
from lightning_topo.callbacks._control_record import ControlRecord, control_metrics
from lightning_topo.callbacks._followed_updates import FollowedUpdates
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks._log_writer import LogWriter, logger_step
from lightning_topo.callbacks._options import require_positive_int, require_share
from lightning_topo.callbacks._processes import Processes, hidden_updates
from lightning_topo.callbacks._releasing import ReleasingCallback
from lightning_topo.callbacks._state import SavedState, figures
from lightning_topo.control import (
    PlannedSchedule,
    RateController,
    RateRule,
    ScheduleName,
    Shape,
    require_controllable,
    schedule_shape,
)


class TopologicalRateControl(ReleasingCallback):
    r"""Sets the learning rate of each update to a share of the critical one, with nothing to tune.

    $$\eta_g(t) = \frac{\text{share}}{T} \, \frac{b_g}{\max b} \, s_g(t)$$

    K = κ/η is the smoothness that the last updates showed, whose inverse is the critical learning rate η*; T its
    memory, which rises with K at once and fades with ``half_life`` (``RateRule``); b are the parameter groups' own
    rates, whose ratio is kept; s is the shape of the schedule. The rates that the optimizer was made with do not
    matter. They are put back after each step, so that schedulers, checkpoints and ``LearningRateMonitor`` see what they
    always saw.

    Reference: arXiv 2510.02670, section 3: an update at η < η* = 1/K is one-to-one on the neurons.

    The first update is made at the optimizer's own rate, measured, and scaled to its target. After that K is measured
    of windows of 10 updates, or of more where ``max_overhead`` wants it, which is decided once;
    ``every_n_train_steps`` sets it, for runs that are to be repeated bit for bit. Nothing waits for the device, beyond
    the first update. In one process the length of each update is watched, where that fits into ``max_overhead``: when
    it grows, a window ends at once.

    It works beside gradient accumulation, clipping, mixed precision, schedulers, parameter groups, several optimizers
    and manual optimization (each optimizer its own rate), weight averaging, ``torch.compile``, DDP and FSDP2.
    ``TopologicalStepClipping`` beside it bounds updates that jump; a learning-rate finder is not needed.

    Logged every ``log_every_n_steps`` as ``control/{learning_rate, critical_lr, share}`` and the logarithms of the
    first two; of several optimizers as ``control/optimizer_<i>/...``.

    Args:
        share: Share of η* to train at, in (0, 1]; default 0.2, and 0.025 of a constant rate.
        half_life: Updates after which half of a fall of η* is forgotten; default half of the run, less in its first
            tenth, and never where its length is not known.
        schedule: ``"auto"``: what the run's own schedulers do to the rates, and where there are none a warm-up over a
            tenth of the run and then a cosine to 0, or a constant rate where the length of the run is not known.
            ``"cosine"``, ``"linear"`` and ``"constant"`` are that, whatever schedulers do.
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_overhead: Share of the training time that measuring may take; None measures in windows of 10 updates and
            watches each update, whatever that costs.
        every_n_train_steps: Updates in a window; None: 10, or more where ``max_overhead`` wants it.

    Attributes:
        history: List of ``ControlRecord``, of the updates that were logged.
        learning_rates: The rate of the last update of each optimizer, by its number.

    Raises:
        ValueError: When an option is out of range; at the first batch, when there is no group to follow, or all rates
            are 0.
        TypeError: At the start, for an optimizer whose rate cannot be controlled (LBFGS, Prodigy), and under DeepSpeed.

    Example:
        >>> import lightning_topo as lt
        >>> control = lt.TopologicalRateControl()
        >>> # Trainer(callbacks=[control]).fit(model)
    """

    name = "control"

    def __init__(
        self,
        share: float | None = None,
        half_life: float | None = None,
        schedule: ScheduleName = "auto",
        groups: Groups = None,
        max_overhead: float | None = 0.05,
        every_n_train_steps: int | None = None,
    ) -> None:
        # Their errors are ours.
        RateRule(1.0 if share is None else share, math.inf if half_life is None else half_life)
        if schedule != "auto":
            schedule_shape(schedule, 1)
        self.share, self.half_life, self.schedule, self.groups = share, half_life, schedule, groups
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.every_n_train_steps = (
            None if every_n_train_steps is None else require_positive_int("every_n_train_steps", every_n_train_steps)
        )
        self.history: list[ControlRecord] = []
        self.active = False
        self._announcer = Announcer(type(self).__name__)
        self._writer = LogWriter(self._announcer)
        steps = self._before_step, self._after_step
        self._followed = FollowedUpdates(self, groups, self._announcer, *steps, sets_rates=True)
        self._neurons: FoundGroups = self._followed.groups
        self._processes = Processes()
        self._saved: dict[int, dict[str, Any]] = {}
        self._last_rates: dict[int, float] = {}
        self._forget_fit()
        self.skip_empty_hooks()

    def _forget_fit(self) -> None:
        """Nothing of a fit's model is left."""
        self._controllers: dict[int, RateController | None] = {}
        self._cadence = Cadence(self.max_overhead, self.every_n_train_steps, self._processes)

    @property
    def ready(self) -> bool:
        """Whether the groups are known, and with them the charts."""
        return self._neurons.ready

    @property
    def learning_rates(self) -> dict[int, float]:
        """The rate of the last update of each optimizer that is controlled, by its number; also after the fit."""
        return {index: controller.learning_rate for index, controller in self._controlled()} or dict(self._last_rates)

    def _controlled(self) -> list[tuple[int, RateController]]:
        return [(index, one) for index, one in sorted(self._controllers.items()) if one is not None]

    def state_dict(self) -> dict[str, Any]:
        """What the next rates depend on, and the figures that were logged last."""
        states = {index: controller.state_dict() for index, controller in self._controlled()}
        return {"controllers": states or dict(self._saved), "last": dict(self._writer.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved run."""
        saved = SavedState(state_dict, self._announcer)
        self._saved = saved.get(
            "controllers", lambda value: {int(index): dict(one) for index, one in value.items()}, {}
        )
        self._writer.last = saved.get("last", figures, {}, since="0.2.0")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be controlled; forget an earlier fit."""
        self._followed.forget()
        self._forget_fit()
        self._processes = Processes.of(trainer)
        self._cadence = Cadence(self.max_overhead, self.every_n_train_steps, self._processes)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._announcer.forget()
            self._saved, self._last_rates, self._writer.last = {}, {}, {}
        obstacle = hidden_updates(trainer.strategy) if self.active else None
        if obstacle is not None:
            raise TypeError(f"{type(self).__name__} cannot set learning rates {obstacle}; train without it")
        if self.active and any("LearningRateFinder" in type(other).__name__ for other in trainer.callbacks):
            self._announcer.warn_once(
                f"{type(self).__name__} sets the rates itself: the learning-rate finder beside it is not needed, and "
                "what it suggests has no effect. Take one of the two out of the Trainer's callbacks."
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the optimizers before anybody else: step clipping is to see the updates as they are made here."""
        self._listen(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the optimizers, where they are made late."""
        if self.active:
            self._listen(trainer)
            self._writer.publish_last(trainer)

    def _listen(self, trainer: Any) -> None:
        if self.active:
            for optimizer in trainer.optimizers:
                require_controllable(optimizer)
            self._followed.listen(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once; see to it that no update goes unseen."""
        if not self.active:
            return
        if self._followed.follow(trainer, pl_module, batch, self._processes):
            self._start_anew(trainer)
        if self._followed.go_unseen():
            self._announcer.warn_once(_UNSEEN)

    def _start_anew(self, trainer: Any) -> None:
        """Go on with what is known of the rates, with other optimizers or other parameters."""
        for optimizer in trainer.optimizers:
            require_controllable(optimizer)
        self._keep_states()
        self._controllers = {}

    def charts(self) -> Charts:
        """TensorBoard charts: title and the tags drawn together."""
        return control_charts(len(getattr(self._followed.trainer, "optimizers", ())))

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        """Set the rates."""
        if index not in self._controllers:
            self._controllers[index] = self._controller(index, optimizer)
        controller = self._controllers[index]
        if controller is not None:
            if self._cadence.decides:
                self._cadence.decide(controller, [one for _, one in self._controlled()])
            controller.before()

    def _after_step(self, index: int, optimizer: Optimizer) -> None:
        """Put the rates back, and measure."""
        controller = self._controllers.get(index)
        if controller is None:
            return
        controller.after()
        if controller.diverged:
            self._announcer.warn_once(
                f"Neurons are NaN or infinite at step {logger_step(self._followed.trainer)}: the run has diverged, "
                f"and {type(self).__name__} keeps the rate that it had. Check the loss for what makes its gradient so.",
                kind="diverged",
            )

    def _controller(self, index: int, optimizer: Optimizer) -> RateController | None:
        trainer = self._followed.trainer
        if not self._followed.moves_neurons(index, optimizer):
            self._announcer.warn_once(
                f"Optimizer {index} ({type(optimizer).__name__}) moves no neuron group: there is nothing to follow, "
                "and its rates stay as they are."
            )
            return None
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        updates = _total_updates(trainer)
        schedule = self._schedule(optimizer, schedulers, updates)
        controller = RateController(
            optimizer,
            self._followed.model,
            self._neurons.found,
            RateRule.of_run(schedule.share if self.share is None else self.share, self.half_life, updates),
            _by_batches(schedule.shape, trainer),
            self._cadence.updates,
            not self._processes.several,  # for they might decide differently
            schedulers,
            self._agreed,
            sharded=self._processes.sharded,
            compares=self._processes.lead or not self._processes.sharded,
        )
        if index in self._saved:
            with self._announcer.never_fatal("go on from the saved rates"):
                controller.load_state_dict(self._saved[index])
        return controller

    def _agreed(self, value: float) -> float:
        """The largest of all processes' values, so that all train at the same rate."""
        if not self._processes.several:
            return value
        strategy = self._followed.trainer.strategy
        return float(strategy.reduce(torch.tensor(value, device=strategy.root_device), reduce_op="max"))

    def _schedule(self, optimizer: Optimizer, schedulers: list[Any], updates: float) -> PlannedSchedule:
        """The shape that the rate gets; said where nobody has chosen it."""
        by_hand = any("initial_lr" in group for group in optimizer.param_groups)  # of a scheduler that we do not know
        scheduled = by_hand or any(scheduler.optimizer is optimizer for scheduler in schedulers)
        schedule = PlannedSchedule.of_run(str(self.schedule), updates, scheduled)
        if self.schedule == "auto" and not scheduled:
            trainer = self._followed.trainer
            if schedule.name == "cosine":
                how = f"has the shape of a warm-up and a cosine to 0 over {updates:,.0f} updates"
                how += ", which max_time may cut short" if _is_timed(trainer) else ""
            else:
                how = "stays, as the length of the run is not known, and its share of the critical rate is smaller"
            rank_zero_info(
                trainer, f"{type(self).__name__}: no scheduler, so the rate {how} (schedule={schedule.name!r})."
            )
        return schedule

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the rates, as often as Lightning logs."""
        every = trainer.log_every_n_steps
        if self._controllers and every > 0 and (logger_step(trainer) + 1) % every == 0:
            step = logger_step(trainer)
            records = [ControlRecord(step, i, one.learning_rate, one.critical_lr) for i, one in self._controlled()]
            remember(self.history, records)
            self._writer.write(trainer, control_metrics(records), self._processes)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say at which rates was trained, and listen no more."""
        for index, controller in self._controlled():
            low, high = controller.range
            if high > 0:
                which = f" (optimizer {index})" if len(self._controllers) > 1 else ""
                rank_zero_info(
                    trainer,
                    f"{type(self).__name__}{which}: {controller.updates:,} updates at learning rates from {low:.3g} to "
                    f"{high:.3g}, measured every {controller.every}.",
                )
        self.release()

    def release(self) -> None:
        """Put the rates back, listen no more, and keep nothing of the fit but what the next rates depend on."""
        self._keep_states()
        self._last_rates = self.learning_rates
        for _, controller in self._controlled():
            controller.put_back()
        self._followed.release()
        self._forget_fit()

    def _keep_states(self) -> None:
        self._saved = {index: controller.state_dict() for index, controller in self._controlled()} or self._saved


_UNSEEN = (
    "Neurons move although no optimizer of the Trainer made a step that TopologicalRateControl could see, so that "
    "these updates are made at the optimizer's own rate: an optimizer steps within the backward pass, by another "
    "method than step() (as SAM's first_step), or is unknown to the Trainer. Return it from configure_optimizers, and "
    "call its step()."
)


def _by_batches(shape: Shape | None, trainer: Any) -> Shape | None:
    """The shape by the batches that have stepped, of which the length of the run is counted."""
    return None if shape is None else (lambda update: shape(logger_step(trainer)))


def _is_timed(trainer: Any) -> bool:
    return any(type(callback).__name__ == "Timer" for callback in trainer.callbacks)


def _total_updates(trainer: Any) -> float:
    """Batches of the whole run that step, infinite where that is not known."""
    try:
        updates = float(trainer.estimated_stepping_batches)
    except Exception:  # accumulation that changes with the epochs
        return math.inf
    return updates if updates >= 0 else math.inf  # Lightning says -1 of data without a length
