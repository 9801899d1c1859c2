"""The neuron groups of a fit, found at its first training batch."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._processes import Processes
from lightning_topo.neurons import (
    NeuronGroup,
    NoTrialRunError,
    example_inputs_from_batch,
    find_neuron_groups,
    select_groups,
)
from lightning_topo.sharding import measured_model

# One glob or several on group names, or the groups themselves; None stands for all that are found.
Groups = str | list[str] | list[NeuronGroup] | None


class FoundGroups:
    """The groups that somebody asks for, in the model of a fit.

    Args:
        asked: What the user asks for.
        announcer: Speaks for the callback.
        required: Whether it is an error that there are none.

    Attributes:
        found: The groups.
        ready: Whether they have been looked for.
    """

    def __init__(self, asked: Groups, announcer: Announcer, required: bool = False) -> None:
        self._asked, self._announcer, self._required = asked, announcer, required
        self.found: tuple[NeuronGroup, ...] = ()
        self.ready = False

    def forget(self) -> None:
        """Another fit begins, maybe of another model."""
        self.found, self.ready = (), False

    def find(self, trainer: Any, pl_module: Any, batch: Any, processes: Processes) -> tuple[NeuronGroup, ...]:
        """Look for them, through the batch where the module names no example input; every process enters.

        Raises:
            ValueError: What the user asked for by name is not there, or nothing is and something is required.
        """
        found: tuple[NeuronGroup, ...] = ()
        failure: Exception | None = None
        if processes.read:
            try:
                found = self._search(measured_model(trainer, pl_module), pl_module, batch, processes)
            except Exception as error:
                failure = error
        # What the processes find could depend on their batches.
        found, message = processes.agreed((found, None if failure is None else str(failure)))
        if message is not None and (self._asked is not None or self._required):
            # What the user asked for by name has to be there: this error is meant to stop the run at its start.
            raise failure if failure is not None else ValueError(message)
        if processes.lead:
            with self._announcer.never_fatal():
                if failure is not None:
                    raise failure
                if not found and not self._required:
                    self._announcer.warn_once(self._nothing_in(pl_module))
        if not found and self._required:
            raise ValueError(self._nothing_in(pl_module))
        self.found, self.ready = found, True
        return found

    def _nothing_in(self, pl_module: Any) -> str:
        return (
            f"{self._announcer.speaker} found no group of exchangeable neurons in {type(pl_module).__name__} "
            "and has nothing to measure. Pass groups=[NeuronGroup(...)] to name them by hand."
        )

    def _search(self, model: nn.Module, pl_module: Any, batch: Any, processes: Processes) -> tuple[NeuronGroup, ...]:
        declared = getattr(pl_module, "example_input_array", None) is not None  # found by find_neuron_groups itself
        example = None if declared else example_inputs_from_batch(pl_module, batch)
        with warnings.catch_warnings():
            if not processes.lead:
                warnings.simplefilter("ignore")
            if self._asked is None:
                return find_neuron_groups(model, example)
            try:
                return select_groups(model, self._asked, example)
            except NoTrialRunError as failure:
                asked = self._asked if isinstance(self._asked, list) else [self._asked]
                if declared or not all(isinstance(group, NeuronGroup) for group in asked):
                    raise
                # The example was a guess, and who gives groups by hand may do so because none can be found.
                self._announcer.warn_once(
                    f"{self._announcer.speaker} takes the groups as they are given, untested: {failure}."
                )
                return select_groups(model, self._asked)
