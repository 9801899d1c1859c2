"""Whether updates may come near a bound on κ: for one number a tensor read in a step, and exactly where they may."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional.near_bound import criticalities_near, displacement_lengths, nearest_distances, reaches
from lightning_topo.functional.update_constants import update_criticality
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.placement import AlikeGroups, Placement

# New distances are taken where the way since the last ones leaves too little, if the update alone would stay this far
# below the bound: otherwise they would not help.
_WORTH_NEW_DISTANCES = 0.7
# New distances take n² D operations, a look at every neuron some 8 n D: they are also taken once so many looks, times
# 1/n, were needed for the way alone.
_LOOKS_PER_NEURON = 1 / 8
# Groups of up to this many n² D are looked at as a whole, about a millisecond on one core, others among so many.
_ALWAYS_WHOLE = 2**24
_FASTEST = 64
# Tensors of so many numbers are read from memory anew in each pass of a processor.
_LARGE = 2**14
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


class BoundWatch:
    r"""Finds the neuron groups of which an update's κ may reach a bound, and κ of these.

    With nearest distances of an earlier time and the ways s that the neurons have gone since,

    $$
    \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}
    \le \frac{\sqrt2 \, |U|}{\min |p^0_i - p^0_j| - \sqrt2 \, |S|}
    $$

    where |U| and |S| are norms over all neurons. The right-hand side takes a norm a tensor, which for most updates
    of a run is enough; the middle is looked at where it is not, first as it is and then relative to the neurons' mean,
    and κ itself, O(n² D), where that is not enough either. The distances are taken anew when the neurons have moved too
    far from them.

    Args:
        placement: Where the groups lie, whole on this process.
        before: The parameters as they were before the update, those of the placement first.
        bound: The bound on κ.

    Attributes:
        bound: The same; it may be changed before an update.
    """

    def __init__(self, placement: Placement, before: ParametersBefore, bound: float) -> None:
        self._placement, self._before, self.bound = placement, before, bound
        self._start = ParametersBefore(placement.parameters)
        self._references: list[_Reference] = []
        self._lengths: dict[int, Tensor] = {}
        self._ways: list[Tensor] = []
        self._slots = [slots for alike in self.sets for slots in _slots_of_groups(alike)]
        self._lost = [_lost_by_underflow(parameter) for parameter in placement.parameters]

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
                self._references[number] = self._distances(self.sets[number])
        slots = sorted({slot for number in numbers for slot in self.sets[number].slots})
        moved = [updates[slot] for slot in slots]
        gone = [torch.empty_like(update) for update in moved]
        differences(gone, *([copies[slot] for slot in slots] for copies in (self._before.copies, self._start.copies)))
        squares: list[dict[int, Tensor]] = [
            dict(zip(slots, torch._foreach_mul(values, values), strict=True)) for values in (moved, gone)
        ]
        found = [self._reaches_of(number, *squares).amax() for number in numbers]
        below = dict(zip(numbers, (value < 1 for value in _read(found)), strict=True))
        return [below.get(number, True) for number in range(len(certain))]

    def _reaches_of(self, number: int, moved: dict[int, Tensor], gone: dict[int, Tensor]) -> Tensor:
        """Upper bounds of κ / bound of each group of a set where they are below 1, from squares of displacements."""
        alike, reference = self.sets[number], self._references[number]
        lengths, way = (
            alike.sums(squares).sqrt_().mul_(_SLACK).add_(max(self._lost[slot] for slot in alike.slots))
            for squares in (moved, gone)
        )
        return reaches(lengths, way, reference.nearest, self.bound)

    @torch.no_grad()
    def reach(self, updates: Sequence[Tensor], certain: Sequence[bool] | None = None) -> Tensor:
        """How near the update may come to the bound, of each group in the order of the sets; to be read by the caller.

        Args:
            updates: Displacements of the placement's parameters, in at least single precision.
            certain: Sets that need no look.

        Returns:
            Upper bounds of κ / bound where they are below 1, at least 1 or ``nan`` elsewhere; 0 in sets that need no
            look; shape (number of groups,).
        """
        if not self._references:
            self._references = [self._distances(alike) for alike in self.sets]
        self._lengths = {}
        found = []
        for number, alike in enumerate(self.sets):
            if certain is not None and certain[number]:
                found.append(torch.zeros(len(alike.groups), device=alike.device))
                continue
            self._lengths[number] = displacement_lengths(alike.clouds(updates))
            found.append(self._reaches(number, self._way(alike)))
        return torch.cat([part.to(found[0]) for part in found])

    def _distances(self, alike: AlikeGroups) -> _Reference:
        """Distances before the update."""
        self._start.copy_from(self._before, alike.slots)
        nearest = nearest_distances(alike.clouds(self._before.copies))
        return _Reference(nearest, nearest.amin(1).tolist())

    def _way(self, alike: AlikeGroups) -> Tensor:
        """How far each neuron was, before the update, from where it was when the distances were taken."""
        before = alike.clouds(self._before.copies)
        wide = torch.promote_types(before.dtype, torch.float32)
        return displacement_lengths(before.to(wide) - alike.clouds(self._start.copies).to(wide))

    def _reaches(self, number: int, way: Tensor | float) -> Tensor:
        return reaches(self._lengths[number], way, self._references[number].nearest, self.bound)

    @torch.no_grad()
    def criticalities(
        self, reach: Sequence[float], bound: float | None = None, enough: float = math.inf
    ) -> list[float]:
        """κ of each group, ``nan`` where it is certainly below the bound.

        Args:
            reach: What ``reach`` gave, read; ``inf`` has a group evaluated in any case.
            bound: κ is exact from here on; default the watch's bound.
            enough: A κ that need not be told from larger ones.
        """
        bound = self.bound if bound is None else bound
        kappas, first = list[float](), 0
        for number, alike in enumerate(self.sets):
            part = reach[first : first + len(alike.groups)]
            first += len(alike.groups)
            kappas += self._of_set(number, alike, part, bound, enough)
        return kappas

    def _of_set(
        self, number: int, alike: AlikeGroups, reach: Sequence[float], bound: float, enough: float
    ) -> list[float]:
        if any(not value < 1 for value in reach) and number in self._lengths:
            alone = self._reaches(number, 0.0).tolist()
            if any(1 <= value < math.inf and a < _WORTH_NEW_DISTANCES for value, a in zip(reach, alone, strict=True)):
                self._references[number] = self._distances(alike)
                reach = self._reaches(number, 0.0).tolist()
        near = [index for index, value in enumerate(reach) if not value < 1]
        if not near:
            return [math.nan] * len(reach)
        before, after = alike.clouds(self._before.copies), alike.clouds(self._placement.parameters)
        if len(near) < len(reach):
            before, after = before[near], after[near]
        found = iter(criticalities_near(before, after, bound, alike.eps, enough))
        return [math.nan if value < 1 else next(found) for value in reach]

    @torch.no_grad()
    def of_fastest(self) -> Tensor:
        """κ among the neurons of each group that the last ``reach`` found to move most, shape (number of groups,).

        All neurons of small groups, the 64 fastest of others: a lower bound of κ, 0 where no pair is resolved or the
        group needed no look, which shows a rate that is far too high. To be read by the caller.
        """
        found = []
        for number, alike in enumerate(self.sets):
            n, dimension = alike.shape
            large = n > _FASTEST and n * n * dimension > _ALWAYS_WHOLE
            if large and number not in self._lengths:
                found.append(torch.zeros(len(alike.groups), device=alike.device))
                continue
            rows = self._lengths[number].topk(_FASTEST).indices if large else None
            before = alike.clouds(self._before.copies, rows)
            after = alike.clouds(self._placement.parameters, rows)
            found.append(update_criticality(before, after, alike.eps).criticality.nan_to_num(0.0))
        return torch.cat([part.to(found[0]) for part in found])

    @torch.no_grad()
    def certainly_below(self, displacements: Sequence[Tensor], bound: float) -> list[bool]:
        """Whether displacements of the parameters from where they were make no κ of a bound, for each group."""
        below = list[bool]()
        for alike, reference in zip(self.sets, self._references, strict=True):
            lengths = displacement_lengths(alike.clouds(displacements))
            below += [value < 1 for value in reaches(lengths, self._way(alike), reference.nearest, bound).tolist()]
        return below


def differences(out: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Write the differences of tensors into others of at least their precision; of as many as there are of the second.

    In a higher precision than their own, differences of numbers are exact.
    """
    count = len(second)
    of_one_kind = all(o.dtype == b.dtype and o.device.type == "cpu" for o, b in zip(out, second, strict=False))
    if of_one_kind and sum(b.numel() for b in second) > _LARGE * count:
        for target, a, b in zip(out, first, second, strict=False):
            torch.sub(a, b, out=target)
        return
    torch._foreach_copy_(list(out[:count]), list(first[:count]))
    torch._foreach_sub_(list(out[:count]), list(second))


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, read at once."""
    return torch.stack([number.to(numbers[0]) for number in numbers]).tolist()


def _slots_of_groups(alike: AlikeGroups) -> list[list[int]]:
    """For each group where its parameters are in the placement's list, as often as they hold coordinates of it."""
    slots: list[list[int]] = [[] for _ in alike.groups]
    for _, places in alike.parts:
        count = len(places) // len(slots)
        for number, own in enumerate(slots):
            own += places[number * count : (number + 1) * count]
    return slots


def _lost_by_underflow(parameter: Tensor) -> float:
    """How much of a norm can be lost because squares are smaller than the smallest number."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return math.sqrt(parameter.numel() * torch.finfo(wide).tiny)
