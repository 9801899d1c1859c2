"""The updates of one optimizer as the neurons see them: kept before, compared after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.functional.update_constants import UpdateConstants
from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates.displacement_watch import DisplacementWatch
from lightning_topo.updates.drawn_sample import DrawnSample
from lightning_topo.updates.measurement import Arrival, Compared, Measurement, compare, estimate
from lightning_topo.updates.moved_groups import LearningRate, MovedGroups
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.placement import AlikeGroups, Placement
from lightning_topo.updates.recorded_work import Recordings

# Groups of up to this many numbers (1 GiB in single precision) are kept as a whole over the update.
MOST_KEPT = 2**28

# What is measured together: groups that are kept as a whole, or one of which a sample is drawn.
MeasuredSet = AlikeGroups | DrawnSample
# Of parameters, by their place in a placement's list.
Displacements = Mapping[int, Tensor] | Sequence[Tensor]


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
        self._recordings = Recordings()

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
        if self._before is not None:
            self._recordings.refresh(self._placement.parameters, self._before.copies)
        recorded = self._recordings.results([one for one, _ in taken if isinstance(one, AlikeGroups)], self._work)
        # Of all parameters, made once and only where a set needs them.
        displacements = cache(self._all_displacements)
        compared = []
        for one, before in taken:
            if isinstance(one, DrawnSample):
                assert before is not None
                compared.append(self._compare_drawn(one, before, drawn[id(one)]))
            elif one in recorded:
                compared.append(self._recorded(one, *recorded[one]))
            else:
                compared.append(self._among_moved(one, displacements))
        self._learn(compared)
        return Measurement(compared)

    def _compare_drawn(self, one: DrawnSample, before: Tensor, after: Tensor) -> Compared:
        one.remember(before, after)
        return self._constants(one, before[None], after[None], None)

    def _recorded(self, one: AlikeGroups, before: Tensor, after: Tensor, table: Tensor) -> Compared:
        if not self._estimates:  # they may be evaluated again, after the next measurement
            before, after = before.clone(), after.clone()
        return Compared(one.groups, before, after, one.eps, UpdateConstants(table))

    def _work(self, one: AlikeGroups) -> tuple[Tensor, ...]:
        """What groups that are kept as a whole did, as tensors: their neurons before and after, and the constants."""
        found = self._among_moved(one, lambda: self._displacements_of(one))
        return found.before, found.after, found.constants.packed()

    def _among_moved(self, one: AlikeGroups, displacements: Callable[[], Displacements]) -> Compared:
        """Compare all neurons, or for an estimate those that were displaced farthest about the mean."""
        assert self._before is not None
        rows = None
        if self._estimates and self._size is not None and self._size < one.shape[0]:
            rows = one.lengths_about_mean(displacements()).topk(self._size).indices
        clouds = one.clouds(self._before.copies, rows), one.clouds(self._placement.parameters, rows)
        return self._constants(one, *clouds, self._size)

    def _constants(self, one: MeasuredSet, before: Tensor, after: Tensor, size: int | None) -> Compared:
        if self._estimates:
            return estimate(one.groups, before, after, one.eps)
        return compare(one.groups, before, after, size, one.eps)

    def _displacements_of(self, one: AlikeGroups) -> dict[int, Tensor]:
        """The displacement of each of their parameters, by its place in the placement's list."""
        assert self._before is not None
        copies, parameters, slots = self._before.copies, self._placement.parameters, one.slots
        moved = torch._foreach_sub([parameters[slot] for slot in slots], [copies[slot] for slot in slots])
        return dict(zip(slots, moved, strict=True))

    def _all_displacements(self) -> Sequence[Tensor]:
        """The displacement of each parameter."""
        assert self._before is not None
        return torch._foreach_sub(self._before.parameters, self._before.copies)

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
