"""The neuron groups of a fit, found at its first training batch, and again where the model changes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._processes import Processes
from lightning_topo.neurons import (
    NeuronGroup,
    NoTrialRunError,
    example_inputs_from_batch,
    find_neuron_groups,
    is_empty_batch,
    select_groups,
)
from lightning_topo.neurons.exchange.silence import silence
from lightning_topo.sharding import canonical_name, measured_model
from lightning_topo.updates import ParameterPlaces, held_parameters

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
        self.forget()

    def forget(self) -> None:
        """Another fit begins, maybe of another model."""
        self.found: tuple[NeuronGroup, ...] = ()
        self.ready = False
        self._places: ParameterPlaces | None = None
        self._known: set[int] = set()
        self._held = 0
        self._members: dict[str, dict[str, nn.Parameter]] = {}

    def find(self, trainer: Any, pl_module: Any, batch: Any, processes: Processes) -> tuple[NeuronGroup, ...]:
        """Look for them, through the batch where the module names no example input; every process enters.

        An empty batch shows nothing: they are looked for in the next one, or, where they are required at once, with an
        input made up for the first layer.

        Raises:
            ValueError: What the user asked for by name is not there, or nothing is and something is required.
        """
        if not self._required and processes.agreed(_shows_nothing(pl_module, batch)):
            return ()
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
        self._adopt(found, trainer, pl_module, processes)
        return found

    def _adopt(self, found: tuple[NeuronGroup, ...], trainer: Any, pl_module: Any, processes: Processes) -> None:
        self.found, self.ready = found, True
        if processes.sharded:  # FSDP exchanges the parameters of a module itself
            return
        model = measured_model(trainer, pl_module)
        self._members = {g.name: {m.parameter: p for m, p in g.slices(model)} for g in found}
        self._places = ParameterPlaces(model, (p for members in self._members.values() for p in members.values()))
        self._known = {id(parameter) for parameter in model.parameters()}
        self._held = _number_held(trainer.optimizers)

    def changed(self, optimizers: Iterable[Optimizer]) -> bool:
        """Whether the model no longer holds the groups' parameters, or the optimizers new ones of it."""
        if self._places is None:
            return False
        if not self._places.hold:
            return True
        held = _number_held(optimizers)
        if held == self._held:
            return False
        if any(id(parameter) not in self._known for one in optimizers for parameter in held_parameters(one)):
            return True
        self._held = held  # layers that were frozen
        return False

    def find_again(self, trainer: Any, pl_module: Any, batch: Any, processes: Processes) -> None:
        """Follow the parameters to their new names, and look for the groups of new ones; every process enters.

        Raises:
            ValueError: Nothing is left and something is required.
        """
        model = measured_model(trainer, pl_module)
        names_now = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
        followed = tuple(filter(None, (self._followed(group, names_now) for group in self.found)))
        renamed = [g for g in followed if g not in self.found]
        if processes.lead and renamed:
            old = {member.parameter for group in self.found for member in group.members}
            new = sorted({member.parameter for group in renamed for member in group.members} - old)
            self._announcer.warn_once(
                f"Parameters of neurons go by other names now, as after pruning ({', '.join(new[:3])}). "
                f"{self._announcer.speaker} goes on with the same parameters, as the optimizer moves them; masks that "
                "the model multiplies them with are not counted.",
                kind="renamed",
            )
        known = self._known
        if len(followed) < len(self.found) or any(id(p) not in known for p in model.parameters()):
            followed = self._with_new(followed, trainer, pl_module, batch, processes)
        self._adopt(followed, trainer, pl_module, processes)

    def _with_new(
        self, followed: tuple[NeuronGroup, ...], trainer: Any, pl_module: Any, batch: Any, processes: Processes
    ) -> tuple[NeuronGroup, ...]:
        if self._required:
            found = self.find(trainer, pl_module, batch, processes)
        else:
            found = ()
            with self._announcer.never_fatal("find the neurons of a model that has changed"):
                found = self.find(trainer, pl_module, batch, processes)
        names = {group.name for group in found}
        return (*found, *(group for group in followed if group.name not in names))

    def _followed(self, group: NeuronGroup, names: dict[int, str]) -> NeuronGroup | None:
        """The group under its parameters' present names; None where the model no longer holds one of them."""
        members = []
        for member in group.members:
            parameter = self._members[group.name].get(member.parameter)
            if parameter is not None and id(parameter) not in names:
                return None
            members.append(member if parameter is None else replace(member, parameter=names[id(parameter)]))
        return replace(group, members=tuple(members))

    def _nothing_in(self, pl_module: Any) -> str:
        return (
            f"{self._announcer.speaker} found no group of exchangeable neurons in {type(pl_module).__name__} "
            "and has nothing to measure. Pass groups=[NeuronGroup(...)] to name them by hand."
        )

    def _search(self, model: nn.Module, pl_module: Any, batch: Any, processes: Processes) -> tuple[NeuronGroup, ...]:
        declared = getattr(pl_module, "example_input_array", None) is not None  # found by find_neuron_groups itself
        example = None if declared or is_empty_batch(batch) else example_inputs_from_batch(pl_module, batch)
        with nullcontext() if processes.lead else silence():
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


def _shows_nothing(pl_module: Any, batch: Any) -> bool:
    return getattr(pl_module, "example_input_array", None) is None and is_empty_batch(batch)


def _number_held(optimizers: Iterable[Optimizer]) -> int:
    return sum(len(settings["params"]) for optimizer in optimizers for settings in optimizer.param_groups)
