"""The updates of one optimizer as the neurons see them: kept before, compared after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates.displacement_watch import DisplacementWatch
from lightning_topo.updates.drawn_sample import DrawnSample
from lightning_topo.updates.measurement import Arrival, Compared, Measurement, compare, estimate
from lightning_topo.updates.moved_groups import LearningRate, MovedGroups
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.placement import AlikeGroups, Placement

# Groups of up to this many numbers (1 GiB in single precision) are kept as a whole over the update.
MOST_KEPT = 2**28

# What is measured together: groups that are kept as a whole, or one of which a sample is drawn.
MeasuredSet = AlikeGroups | DrawnSample


class UpdateMeter:
    """Measures what the steps of one optimizer do to neuron groups, without waiting for the device.

    The parameters are kept before a step, and after it the neurons that it changed most are compared. Of groups that
    are too large for that, and of all groups where parameters are sharded, a sample is drawn before the step instead.

    Args:
        optimizer: The optimizer; it may be given more parameters later.
        model: The module that holds the groups' parameters.
        groups: Neuron groups; those of which the optimizer holds nothing are left out.
        size: Largest number of neurons compared in a group, None for all.
        sharded: Whether the parameters are sharded over processes; all of them have to measure then.
        compares: Whether this process compares what was read.
        estimates: Whether an estimate of κ alone will do, which costs less than half.
        watches: Whether to watch how far the parameters move, for ``predicted``.

    Attributes:
        sets: The groups that it moves, those that are alike together.

    Raises:
        ValueError: A group does not fit the model.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        groups: Sequence[NeuronGroup],
        size: int | None,
        sharded: bool = False,
        compares: bool = True,
        estimates: bool = False,
        watches: bool = False,
    ) -> None:
        self._optimizer, self._model, self._groups, self._size = optimizer, model, tuple(groups), size
        self._sharded, self._compares = sharded, compares
        self._estimates = estimates
        self._watches = watches
        self._resolve()

    def _resolve(self) -> None:
        """Find where everything lies."""
        self._moved = MovedGroups(self._optimizer, self._model, self._groups)
        moved = self._moved.groups
        drawn = [group for group in moved if self._is_drawn(group)]
        self._placement = Placement(self._model, [group for group in moved if group not in drawn])
        self.sets: list[MeasuredSet] = [
            *self._placement.alike,
            *(DrawnSample(group, self._model, self._size) for group in drawn),
        ]
        self._watch = DisplacementWatch(self._placement) if self._watches and self._placement.alike else None
        self._before: ParametersBefore | None = None
        self._taken: list[tuple[MeasuredSet, Tensor | None]] = []

    def _is_drawn(self, group: NeuronGroup) -> bool:
        if self._sharded:
            return True
        size = math.inf if self._size is None else self._size
        n = group.n_units(self._model)
        return n > size and n * group.dimension(self._model) > MOST_KEPT

    def refresh(self) -> bool:
        """Look again where the parameters lie if the optimizer or the model has changed; whether it had.

        Raises:
            ValueError: A group no longer fits the model.
        """
        if self._placement.holds and not self._moved.changed:
            return False
        self._resolve()
        return True

    def state(self) -> dict[str, Any]:
        """What was kept by ``before``, if the update is still to come, and what is watched, as tensors on the CPU.

        Drawn samples are not part of it: they are drawn again.
        """
        whole = [one for one, _ in self._taken if isinstance(one, AlikeGroups)]
        kept = [] if self._before is None or not whole else [copy.cpu().clone() for copy in self._before.copies]
        return {"kept": kept, "watched": {} if self._watch is None else self._watch.state()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> bool:
        """Take over what ``state`` gave; whether neurons were kept that fit."""
        parameters, alike = self._placement.parameters, self._placement.alike
        if self._watch is not None and state["watched"]:
            self._watch.load(state["watched"])
        kept = state["kept"]
        if not kept or [copy.shape for copy in kept] != [parameter.shape for parameter in parameters]:
            return False
        self._before = ParametersBefore(parameters)
        torch._foreach_copy_(self._before.copies, [c.to(p) for c, p in zip(kept, parameters, strict=True)])
        self._taken = [(one, None) for one in alike]
        return True

    def learning_rates(self, sets: Sequence[MeasuredSet]) -> dict[str, LearningRate]:
        """The rates at which the groups are about to be moved, by name."""
        return {group.name: self._moved.learning_rate(group) for one in sets for group in one.groups}

    def before(self, sets: Sequence[MeasuredSet]) -> None:
        """Keep the neurons of these sets; to be called before the step."""
        if self._before is None:
            self._before = ParametersBefore(self._placement.parameters)
        slots = dict.fromkeys(slot for one in sets if isinstance(one, AlikeGroups) for slot in one.slots)
        self._before.take(list(slots))
        self._taken = [(one, one.before() if isinstance(one, DrawnSample) else None) for one in sets]

    @torch.no_grad()
    def after(self) -> Measurement | None:
        """Compare them with what they are now; to be called after the step.

        None where another process compares, and where parameters have been replaced meanwhile.
        """
        taken, self._taken = self._taken, []
        if not self._placement.holds:
            return None
        # All are read before any is compared: what fails in the first process must not keep the others waiting.
        drawn = {id(one): one.after() for one, _ in taken if isinstance(one, DrawnSample)}
        if not self._compares:
            return None
        updates = self._updates()
        compared = [self._compare(one, before, drawn.get(id(one)), updates) for one, before in taken]
        self._learn(compared)
        return Measurement(compared)

    def _updates(self) -> Sequence[Tensor] | None:
        """The displacement of each parameter, where an estimate chooses neurons by it."""
        if not self._estimates or self._before is None or self._size is None:
            return None
        if all(one.shape[0] <= self._size for one in self._placement.alike):
            return None
        return torch._foreach_sub(self._before.parameters, self._before.copies)

    def _compare(
        self, one: MeasuredSet, before: Tensor | None, after: Tensor | None, updates: Sequence[Tensor] | None
    ) -> Compared:
        """The constants of a set, or an estimate of κ among its neurons that were displaced farthest about the mean."""
        size = self._size
        if isinstance(one, DrawnSample):
            assert before is not None
            assert after is not None
            one.remember(before, after)
            clouds, size = (before[None], after[None]), None
        else:
            assert self._before is not None
            rows = None
            if updates is not None and size is not None and size < one.shape[0]:
                rows = one.lengths_about_mean(updates).topk(size).indices
            clouds = one.clouds(self._before.copies, rows), one.clouds(self._placement.parameters, rows)
        if self._estimates:
            return estimate(one.groups, *clouds, one.eps)
        return compare(one.groups, *clouds, size, one.eps)

    def _learn(self, compared: Sequence[Compared]) -> None:
        """Let the watch know what the groups that are kept as a whole did."""
        if self._watch is not None and self._before is not None:
            whole = compared[: len(self._placement.alike)]
            home = whole[0].before.device
            self._watch.learn(self._before.copies, torch.cat([one.constants.criticality.to(home) for one in whole]))

    def predicted(self) -> Arrival | None:
        """κ over all groups that their displacements predict, on its way to the host; None where nothing is watched.

        Of what has happened since the last measurement or the last call: the root of the sum of the groups' squares.
        """
        predicted = None if self._watch is None else self._watch.predict()
        return None if predicted is None else Arrival(predicted.view(1, 1))
