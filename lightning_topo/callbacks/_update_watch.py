"""Looks at the optimizer steps of a fit, and measures those that are due and affordable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._log_writer import logger_step
from lightning_topo.callbacks._measured_updates import MeasuredUpdate
from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.callbacks._turns import Turns
from lightning_topo.updates import LearningRate, StepHooks, UnseenUpdates


class UpdateWatch:
    """Measures what the steps of a Trainer's optimizers do to the neurons.

    Args:
        callback: Whose measurements these are: it measures nothing while a search within the fit has set it aside.
        fit: The fit's neurons, budget and processes.
        max_neurons: Largest number of neurons compared in a group, None for all.
        every: Measure every n-th step of each optimizer.
        measured: Called with each measured update.

    Attributes:
        counts: Steps of each optimizer in the run.
        movers: For each group its number of neurons, and which of the optimizers move it.
        top_rate: Largest learning rate of a step of this fit, measured or not, as far as rates are plain numbers.
    """

    def __init__(
        self,
        callback: Any,
        fit: MonitoredFit,
        max_neurons: int | None,
        every: int,
        measured: Callable[[MeasuredUpdate], None],
    ) -> None:
        self._callback, self._fit, self._measured = callback, fit, measured
        self._max_neurons, self._every = max_neurons, every
        self._hooks = StepHooks(self._before_step, self._after_step)
        self.counts: list[int] = []
        self.movers: dict[str, tuple[int, list[int]]] = {}
        self.top_rate = 0.0
        self._forget()

    def _forget(self) -> None:
        self._trainer: Any = None
        self._unseen: UnseenUpdates | None = None
        self._turns: dict[int, Turns] = {}
        self._measuring: tuple[int, dict[str, LearningRate]] | None = None

    def listen(self, trainer: Any) -> None:
        """Look at the steps of the Trainer's optimizers, of the groups that are known now."""
        self._trainer = trainer
        self._hooks.attach(trainer.optimizers)
        self._turns = {}
        if len(self.counts) != len(trainer.optimizers):
            self.counts = [0] * len(trainer.optimizers)
        found, model = self._fit.neurons.found, self._fit.model
        self._unseen = UnseenUpdates(parameter for group in found for parameter in group.parameters(model))
        held = [{id(p) for settings in o.param_groups for p in settings["params"]} for o in trainer.optimizers]
        self.movers = {}
        for group in found:
            own = {id(parameter) for parameter in group.parameters(model)}
            self.movers[group.name] = group.n_units(model), [i for i, ids in enumerate(held) if not own.isdisjoint(ids)]

    def release(self) -> None:
        """Look no more; nothing of the fit's model is left."""
        self._hooks.release()
        self._forget()

    def listens_to(self, trainer: Any) -> bool:
        """Whether it looks at the Trainer's present optimizers."""
        return self._hooks.attached_to(trainer.optimizers)

    def missed_updates(self) -> bool:
        """Whether neurons move although no step was seen; to be called before each batch."""
        return self._unseen is not None and self._unseen.noticed()

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        """Keep the neurons, where the update is to be measured."""
        self._measuring = None
        if not any(callback is self._callback for callback in self._trainer.callbacks):
            return
        due = self.counts[index] % self._every == 0
        self.counts[index] += 1
        for settings in optimizer.param_groups:
            if isinstance(settings["lr"], float) and settings["lr"] > self.top_rate:
                self.top_rate = settings["lr"]
        if due:
            self._begin(index, optimizer)

    def _begin(self, index: int, optimizer: Optimizer) -> None:
        """Keep the neurons whose turn it is, if the budget allows it."""
        fit, guess, run_time = self._fit, 0.0, 0.0
        if fit.budget.max_overhead is not None and fit.processes.lead and not fit.budget.knows(""):
            if fit.neurons.changed(self._trainer.optimizers):
                return
            with fit.announcer.never_fatal(), fit.budget.spending(kind="calibration"):
                guess, run_time = self._turns_of(index, optimizer).expected_seconds(), fit.run_seconds()
        if not fit.admission.admits("", guess, run_time) or fit.neurons.changed(self._trainer.optimizers):
            return  # what has changed within this batch is found again at the next
        self._measuring = index, {}
        if fit.processes.read:
            with fit.announcer.never_fatal(), fit.budget.spending(fit.model.device):
                self._measuring = index, self._turns_of(index, optimizer).before()

    def _turns_of(self, index: int, optimizer: Optimizer) -> Turns:
        if index not in self._turns:
            fit, limited = self._fit, self._fit.budget.max_overhead is not None
            self._turns[index] = Turns(
                optimizer, fit.model, fit.neurons.found, self._max_neurons, fit.processes, limited
            )
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
            with self._fit.announcer.never_fatal(), self._fit.budget.spending(self._fit.model.device):
                measurement = self._turns[index].after()
        self._measured(MeasuredUpdate(logger_step(self._trainer), rates, measurement))
