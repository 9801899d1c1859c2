"""What the monitors of neuron groups share: the groups, found at the first training batch."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from lightning_topo.callbacks._monitor import Monitor, Record
from lightning_topo.callbacks._processes import measured_model
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.neurons import (
    NeuronGroup,
    NoTrialRunError,
    example_inputs_from_batch,
    find_neuron_groups,
    select_groups,
)

# One glob or several on group names, or the groups themselves; None stands for all that are found.
Groups = str | list[str] | list[NeuronGroup] | None


class GroupMonitor(Monitor[Record]):
    """A monitor of neuron groups, which are found at the first training batch."""

    #: Whether it is an error that there are none.
    needs_groups: bool = False

    def __init__(self, groups: Groups, every_n_train_steps: int, max_overhead: float | None) -> None:
        super().__init__(every_n_train_steps, max_overhead)
        self.groups = groups
        self._found: tuple[NeuronGroup, ...] = ()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the groups of an earlier fit, which may have been of another model."""
        super().setup(trainer, pl_module, stage)
        self._found, self.ready = (), False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once."""
        if self.active and not self.ready:
            with self._budget.spending(pl_module.device):
                self._found = self._find(trainer, pl_module, batch)
            self.ready = True
            if self._found:
                self.groups_found(trainer, pl_module)
            if self._processes.lead:
                write_layout(trainer)

    def groups_found(self, trainer: Any, pl_module: Any) -> None:
        """Called once, before the first update of the fit."""

    def _find(self, trainer: Any, pl_module: Any, batch: Any) -> tuple[NeuronGroup, ...]:
        found: tuple[NeuronGroup, ...] = ()
        failure: Exception | None = None
        if self._processes.read:
            try:
                found = self._search(measured_model(trainer, pl_module), pl_module, batch)
            except Exception as error:
                failure = error
        # What the processes find could depend on their batches.
        found, message = self._processes.agreed((found, None if failure is None else str(failure)))
        if message is not None and (self.groups is not None or self.needs_groups):
            # What the user asked for by name has to be there: this error is meant to stop the run at its start.
            raise failure if failure is not None else ValueError(message)
        if self._processes.lead:
            with self.never_fatal():
                if failure is not None:
                    raise failure
                if not found and not self.needs_groups:
                    self._warn_once(self._nothing_found(pl_module))
        if not found and self.needs_groups:
            raise ValueError(self._nothing_found(pl_module))
        return found

    def _nothing_found(self, pl_module: Any) -> str:
        return (
            f"{type(self).__name__} found no group of exchangeable neurons in {type(pl_module).__name__} "
            "and has nothing to measure. Pass groups=[NeuronGroup(...)] to name them by hand."
        )

    def _search(self, model: nn.Module, pl_module: Any, batch: Any) -> tuple[NeuronGroup, ...]:
        declared = getattr(pl_module, "example_input_array", None) is not None  # found by find_neuron_groups itself
        example = None if declared else example_inputs_from_batch(pl_module, batch)
        with warnings.catch_warnings():
            if not self._processes.lead:
                warnings.simplefilter("ignore")
            if self.groups is None:
                return find_neuron_groups(model, example)
            try:
                return select_groups(model, self.groups, example)
            except NoTrialRunError as failure:
                asked = self.groups if isinstance(self.groups, list) else [self.groups]
                if declared or not all(isinstance(group, NeuronGroup) for group in asked):
                    raise
                # The example was a guess, and who gives groups by hand may do so because none can be found.
                self._warn_once(f"{type(self).__name__} takes the groups as they are given, untested: {failure}.")
                return select_groups(model, self.groups)
