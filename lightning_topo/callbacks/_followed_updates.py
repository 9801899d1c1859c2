"""The updates of a fit and the neurons that they move, for a callback that acts on every update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._processes import Processes
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.sharding import measured_model
from lightning_topo.updates import MovedGroups, StepHooks, UnseenUpdates


class FollowedUpdates:
    """Finds the neuron groups of a fit, and calls a callback around the steps of the fit's optimizers.

    Groups and optimizers are followed where they change in the fit. Steps of a search within the fit, which sets the
    callbacks aside, are not the fit's: the callback is not called.

    Args:
        callback: Whose updates these are.
        asked: The groups that the user asks for; it is an error that there are none.
        announcer: Speaks for the callback.
        before: Called before each step with the optimizer's number and itself.
        after: Called after it.
        sets_rates: Whether ``before`` sets the learning rates of the step.
        every_batch: Whether to look at every batch for updates that no hook sees.

    Attributes:
        groups: The groups, and whether they have been looked for.
        trainer: The Trainer whose optimizers are listened to, None beyond a fit.
        model: The module that holds the groups' parameters, None until they are found.
    """

    def __init__(
        self,
        callback: Any,
        asked: Groups,
        announcer: Announcer,
        before: Callable[[int, Optimizer], None],
        after: Callable[[int, Optimizer], None],
        sets_rates: bool = False,
        every_batch: bool = False,
    ) -> None:
        self._callback, self._announcer, self._every_batch = callback, announcer, every_batch
        self._before, self._after = before, after
        self._hooks = StepHooks(self._before_step, self._after_step, sets_rates)
        self.groups = FoundGroups(asked, announcer, required=True)
        self.release()

    def release(self) -> None:
        """Listen no more; nothing of the fit's model is left, beside the names of its groups."""
        self._hooks.release()
        self.trainer: Any = None
        self.model: Any = None
        self._unseen: UnseenUpdates | None = None
        self._moved: dict[int, MovedGroups] = {}

    def forget(self) -> None:
        """Another fit begins, maybe of another model."""
        self.release()
        self.groups.forget()

    def listen(self, trainer: Any) -> bool:
        """Listen to the Trainer's optimizers; whether they are others than before."""
        self.trainer = trainer
        if self._hooks.attached_to(trainer.optimizers):
            return False
        self._hooks.attach(trainer.optimizers)
        self._moved = {}
        return True

    def follow(self, trainer: Any, pl_module: Any, batch: Any, processes: Processes) -> bool:
        """Find the groups at the first batch, and again where the model has changed; to be called before each batch.

        Returns:
            Whether parameters or optimizers are others than at the batch before.
        """
        first = not self.groups.ready
        found_again = not first and self.groups.changed(trainer.optimizers)
        if first:
            self.groups.find(trainer, pl_module, batch, processes)
        elif found_again:
            self.groups.find_again(trainer, pl_module, batch, processes)
        if first or found_again:
            self._take_up(measured_model(trainer, pl_module))
        if first and processes.lead:
            with self._announcer.never_fatal("write the layout of TensorBoard's charts"):
                write_layout(trainer)
        return self.listen(trainer) or first or found_again

    def _take_up(self, model: nn.Module) -> None:
        parameters = (p for group in self.groups.found for p in group.parameters(model))
        self.model, self._moved = model, {}
        self._unseen = UnseenUpdates(parameters, self._every_batch)

    def go_unseen(self) -> bool:
        """Whether neurons move although no hook is called; to be called before each batch."""
        return self._unseen is not None and self._unseen.noticed()

    def moves_neurons(self, index: int, optimizer: Optimizer) -> bool:
        """Whether an optimizer, known by its number, moves a parameter of the groups."""
        if index not in self._moved or self._moved[index].changed:
            self._moved[index] = MovedGroups(optimizer, self.model, self.groups.found)
        return bool(self._moved[index].groups)

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        if self._are_the_fits():
            self._before(index, optimizer)

    def _after_step(self, index: int, optimizer: Optimizer) -> None:
        if self._unseen is not None:
            self._unseen.seen = True
        if self._are_the_fits():
            self._after(index, optimizer)

    def _are_the_fits(self) -> bool:
        """Whether the updates that are being made are the fit's own, and its groups known."""
        callbacks = () if self.trainer is None else self.trainer.callbacks
        return bool(self.groups.found) and any(callback is self._callback for callback in callbacks)
