"""How near updates may come to a bound on κ, from distances of an earlier time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional.reaches import displacement_lengths, nearest_distances, reaches
from lightning_topo.updates.parameters_before import ParametersBefore, differences
from lightning_topo.updates.placement import AlikeGroups, Placement
from lightning_topo.updates.recorded_work import Recordings

# New distances are taken where the way since the last ones leaves too little, if the update alone would stay this far
# below the bound: otherwise they would not help.
_WORTH_NEW_DISTANCES = 0.7
# New distances take n² D operations, a look at every neuron some 8 n D: they are also taken once so many looks, times
# 1/n, were needed for the way alone.
_LOOKS_PER_NEURON = 1 / 8
# Norms of up to some hundred million numbers, summed in single precision, are right to this.
_SLACK = 1 + 1e-3


@dataclass
class _Reference:
    """Distances of alike groups at an earlier time.

    Attributes:
        nearest: Distance of each neuron to the nearest other of its group, not above the true one, shape (G, n).
        closest: The smallest of each group.
        looks: How often every neuron was looked at since, only because the neurons have gone too far from there.
    """

    nearest: Tensor
    closest: list[float]
    looks: int = 0


class Reach:
    r"""Tells of which neuron groups an update's κ may reach a bound.

    With nearest distances of an earlier time and the ways s that the neurons have gone since,

    $$
    \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}
    \le \frac{\sqrt2 \, |U|}{\min |p^0_i - p^0_j| - \sqrt2 \, |S|}
    $$

    where |U| and |S| are norms over all neurons. The right-hand side takes a norm a tensor, which for most updates
    of a run is enough (``certain``); the middle is looked at where it is not, first as it is (``look``) and then
    relative to the neurons' mean (``of_groups``). The distances are taken anew when the neurons have moved too far from
    them.

    Args:
        placement: Where the groups lie, whole on this process.
        before: The parameters as they were before the update, those of the placement first.
        bound: The bound on κ.

    Attributes:
        bound: The same; it may be changed before an update.
        lengths: How far each neuron of a set moves, by the number of the set, of those that ``of_groups`` looked at.
    """

    def __init__(self, placement: Placement, before: ParametersBefore, bound: float) -> None:
        self._placement, self._before, self.bound = placement, before, bound
        self._start = ParametersBefore(placement.parameters)
        self._references: list[_Reference] = []
        self.lengths: dict[int, Tensor] = {}
        self._ways: list[Tensor] = []
        self._slots = [slots for alike in self.sets for slots in alike.slots_of_groups]
        self._lost = [_lost_by_underflow(parameter) for parameter in placement.parameters]
        # On a GPU all sets are looked at in one call.
        self._looks, self._reached = Recordings(), Recordings()
        self._bound_on = {alike.device: torch.ones((), device=alike.device) for alike in self.sets}

    @property
    def sets(self) -> list[AlikeGroups]:
        """The groups, alike ones together."""
        return self._placement.alike

    @torch.no_grad()
    def begin(self, scratch: list[Tensor] | None = None) -> None:
        """Keep the parameters before an update.

        Args:
            scratch: Tensors of the parameters' shapes, to be written to, where ``norms`` will be asked for.
        """
        self._before.take()
        self._ways = []
        if scratch is not None and self._references:
            differences(scratch, self._before.copies, self._start.copies)
            self._ways = list(torch._foreach_norm(scratch[: len(self._start.copies)]))

    def norms(self, updates: Sequence[Tensor]) -> list[Tensor]:
        """Norms of the ways since the distances were taken, and of the update, one a tensor; to be read by the caller.

        Args:
            updates: Displacements of all parameters, those of the placement first, in at least single precision.
        """
        return [*self._ways, *torch._foreach_norm(list(updates))]

    def certain(self, norms: Sequence[float]) -> list[bool]:
        """Whether κ of all groups of a set is below the bound whatever the neurons did; for each of the sets.

        Args:
            norms: What ``norms`` gave, read.
        """
        count = len(self._ways)
        if count == 0:
            return [False] * len(self.sets)
        ways, updates = norms[:count], norms[count:]
        found, first = list[bool](), 0
        for alike, reference in zip(self.sets, self._references, strict=True):
            last = first + len(alike.groups)
            reach = [self._norm(updates, slots) for slots in self._slots[first:last]]
            far = [self._norm(ways, slots) for slots in self._slots[first:last]]
            each = list(zip(reach, far, reference.closest, strict=True))
            below = all(u < self.bound * (closest - s) for u, s, closest in each)
            reference.looks += not below and all(u < self.bound * closest for u, _, closest in each)
            found.append(below)
            first = last
        return found

    def _norm(self, norms: Sequence[float], slots: Sequence[int]) -> float:
        """√2 of the norm over all neurons of a group, not below the true one."""
        return _SLACK * math.sqrt(2 * sum((norms[slot] + self._lost[slot]) ** 2 for slot in slots))

    @torch.no_grad()
    def look(self, updates: Sequence[Tensor], certain: Sequence[bool]) -> list[bool]:
        """Whether κ of all groups of a set is below the bound, looking at each neuron where that is not certain.

        Args:
            updates: Displacements of all parameters, those of the placement first, in at least single precision.
            certain: Sets that need no look.
        """
        numbers = [number for number, is_certain in enumerate(certain) if not is_certain]
        if not self._references or not numbers:
            return list(certain)
        for number in numbers:
            if self._references[number].looks > _LOOKS_PER_NEURON * self.sets[number].shape[0]:
                self._references[number] = self._distances(self.sets[number], self._references[number])
        seen = self._refreshed(self._looks, updates, self.bound).results(
            self.sets, lambda alike: (self._look_at(alike, updates),)
        )
        squares: list[dict[int, Tensor]] = []
        if any(self.sets[number] not in seen for number in numbers):
            slots = sorted({slot for number in numbers for slot in self.sets[number].slots})
            squares = self._squares(slots, updates)
        found = [
            seen[self.sets[number]][0]
            if self.sets[number] in seen
            else self._reaches_of(number, squares, self.bound).amax()
            for number in numbers
        ]
        below = dict(zip(numbers, (value < 1 for value in _read(found)), strict=True))
        return [below.get(number, True) for number in range(len(certain))]

    def _refreshed(self, recordings: Recordings, updates: Sequence[Tensor], bound: float) -> Recordings:
        """Recordings that hold for the parameters and displacements as they lie now, and for a bound."""
        recordings.refresh(self._placement.parameters, updates)
        for number in self._bound_on.values():
            number.fill_(bound)
        return recordings

    def _look_at(self, alike: AlikeGroups, updates: Sequence[Tensor]) -> Tensor:
        """An upper bound of κ / bound over all groups of a set where it is below 1."""
        squares = self._squares(alike.slots, updates)
        return self._reaches_of(self.sets.index(alike), squares, self._bound_on[alike.device]).amax()

    def _squares(self, slots: Sequence[int], updates: Sequence[Tensor]) -> list[dict[int, Tensor]]:
        """Squares of the displacements by an update, and of the way since the distances were taken."""
        moved = [updates[slot] for slot in slots]
        gone = [torch.empty_like(update) for update in moved]
        differences(gone, *([copies[slot] for slot in slots] for copies in (self._before.copies, self._start.copies)))
        return [dict(zip(slots, torch._foreach_mul(values, values), strict=True)) for values in (moved, gone)]

    def _reaches_of(self, number: int, squares: Sequence[dict[int, Tensor]], bound: float | Tensor) -> Tensor:
        """Upper bounds of κ / bound of each group of a set where they are below 1, from ``_squares``."""
        alike, reference = self.sets[number], self._references[number]
        lengths, way = (
            alike.sums(values).sqrt_().mul_(_SLACK).add_(max(self._lost[slot] for slot in alike.slots))
            for values in squares
        )
        return reaches(lengths, way, reference.nearest, bound)

    @torch.no_grad()
    def of_groups(
        self, updates: Sequence[Tensor], certain: Sequence[bool] | None = None, bound: float | None = None
    ) -> Tensor:
        """How near the update may come to the bound, of each group in the order of the sets; to be read by the caller.

        Args:
            updates: Displacements of the placement's parameters, in at least single precision.
            certain: Sets that need no look.
            bound: Another bound than its own.

        Returns:
            Upper bounds of κ / bound where they are below 1, at least 1 or ``nan`` elsewhere; 0 in sets that need no
            look; shape (number of groups,).
        """
        if not self._references:
            self._references = [self._distances(alike) for alike in self.sets]
        bound = self.bound if bound is None else bound
        self.lengths = {}
        seen = self._refreshed(self._reached, updates, bound).results(
            self.sets, lambda alike: self._reach_of(alike, updates, self._bound_on[alike.device])
        )
        found = []
        for number, alike in enumerate(self.sets):
            if certain is not None and certain[number]:
                found.append(torch.zeros(len(alike.groups), device=alike.device))
                continue
            lengths, reach = seen[alike] if alike in seen else self._reach_of(alike, updates, bound)
            self.lengths[number] = lengths
            found.append(reach)
        return torch.cat([part.to(found[0]) for part in found])

    @torch.no_grad()
    def together(self, updates: Sequence[Tensor], bound: float) -> tuple[list[float], bool]:
        """How near the update may come to a bound, and whether the root of the sum of squares of κ is certainly below.

        Distances are taken anew where that tells.

        Args:
            updates: Displacements of the placement's parameters, in at least single precision.
            bound: The bound on the root of the sum of squares.

        Returns:
            As of ``of_groups``, with this bound and read; and whether all together are below.
        """
        found = self.of_groups(updates, bound=bound).tolist()
        if not math.hypot(*found) < 1 and math.hypot(*self._alone(bound)) < 1:
            self._references = [
                self._distances(alike, known) for alike, known in zip(self.sets, self._references, strict=True)
            ]
            found = self._alone(bound)
        return found, math.hypot(*found) < 1

    def _alone(self, bound: float) -> list[float]:
        """How near each group would come if the neurons were where the distances were taken, read."""
        found = [self._reaches(number, bound).to(self.lengths[0].device) for number in range(len(self.sets))]
        return torch.cat(found).tolist()

    def _reach_of(self, alike: AlikeGroups, updates: Sequence[Tensor], bound: float | Tensor) -> tuple[Tensor, Tensor]:
        """How far each neuron of a set moves, and how near that may come to the bound."""
        lengths = displacement_lengths(alike.clouds(updates))
        reference = self._references[self.sets.index(alike)]
        return lengths, reaches(lengths, self._way(alike), reference.nearest, bound)

    def _distances(self, alike: AlikeGroups, known: _Reference | None = None) -> _Reference:
        """Distances before the update, where those known before were."""
        self._start.copy_from(self._before, alike.slots)
        nearest = nearest_distances(alike.clouds(self._before.copies))
        if known is not None:
            nearest = known.nearest.copy_(nearest)
        return _Reference(nearest, nearest.amin(1).tolist())

    def _way(self, alike: AlikeGroups) -> Tensor:
        """How far each neuron was, before the update, from where it was when the distances were taken."""
        before = alike.clouds(self._before.copies)
        wide = torch.promote_types(before.dtype, torch.float32)
        return displacement_lengths(before.to(wide) - alike.clouds(self._start.copies).to(wide))

    def _reaches(self, number: int, bound: float) -> Tensor:
        """How near the update would come to a bound if the neurons were where the distances were taken."""
        return reaches(self.lengths[number], 0.0, self._references[number].nearest, bound)

    def take_new_distances(self, reaches_of: list[Sequence[float]]) -> None:
        """Take the distances of sets anew where that helps, and put how near their updates may come in place."""
        near = [n for n, part in enumerate(reaches_of) if n in self.lengths and any(not value < 1 for value in part)]
        if not near:
            return
        alone = torch.cat([self._reaches(number, self.bound).to(self.lengths[near[0]].device) for number in near])
        values = iter(alone.tolist())
        for number in near:
            pairs = [(value, next(values)) for value in reaches_of[number]]
            if any(1 <= value < math.inf and one < _WORTH_NEW_DISTANCES for value, one in pairs):
                self._references[number] = self._distances(self.sets[number], self._references[number])
                reaches_of[number] = self._reaches(number, self.bound).tolist()

    @torch.no_grad()
    def certainly_below(self, displacements: Sequence[Tensor], bound: float) -> list[bool]:
        """Whether displacements of the parameters from where they were make no κ of a bound, for each group."""
        found = list[Tensor]()
        for alike, reference in zip(self.sets, self._references, strict=True):
            lengths = displacement_lengths(alike.clouds(displacements))
            found.append(reaches(lengths, self._way(alike), reference.nearest, bound))
        return (torch.cat([part.to(found[0]) for part in found]) < 1).tolist()


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, read at once."""
    return torch.stack([number.to(numbers[0]) for number in numbers]).tolist()


def _lost_by_underflow(parameter: Tensor) -> float:
    """How much of a norm can be lost because squares are smaller than the smallest number."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return math.sqrt(parameter.numel() * torch.finfo(wide).tiny)
