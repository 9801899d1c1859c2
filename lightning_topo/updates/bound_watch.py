"""Whether updates may come near a bound on κ: for one number read in a step, and exactly where they may."""

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
# Groups of up to this many n² D are looked at as a whole, about a millisecond on one core, others among so many.
_ALWAYS_WHOLE = 2**24
_FASTEST = 64


@dataclass
class _Reference:
    """Distances of alike groups at an earlier time.

    Attributes:
        nearest: Distance of each neuron to the nearest other of its group, not above the true one, shape (G, n).
        drift: How far each neuron has moved since, relative to its group's mean, not below the true way, shape (G, n).
    """

    nearest: Tensor
    drift: Tensor


class BoundWatch:
    r"""Finds the neuron groups of which an update's κ may reach a bound, and κ of these.

    From distances of an earlier time and the ways that the neurons have gone since, relative to their mean,

    $$\frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|p^0_i - p^0_j| - |s_i| - |s_j|}$$

    takes O(n D) operations an update where κ itself takes O(n² D), and one number a group is read, of all groups at
    once. The ways are added up from update to update, and measured anew where that leaves too little or where somebody
    else has moved the neurons meanwhile. The distances are taken anew when the neurons have moved too far from them.

    Args:
        placement: Where the groups lie, whole on this process.
        before: The parameters as they were before the update, in the placement's order.
        bound: The bound on κ.
    """

    def __init__(self, placement: Placement, before: ParametersBefore, bound: float) -> None:
        self._placement, self._before, self._bound = placement, before, bound
        self._start = ParametersBefore(placement.parameters)
        self._references: list[_Reference] = []
        self._moved: list[Tensor] = []
        self._gap: Tensor | None = None

    @property
    def sets(self) -> list[AlikeGroups]:
        """The groups, alike ones together."""
        return self._placement.alike

    @torch.no_grad()
    def begin(self, scratch: list[Tensor]) -> None:
        """Keep the parameters before an update, and see whether somebody has moved them since the last one.

        Args:
            scratch: Tensors of the parameters' shapes, to be written to.
        """
        self._gap = None
        if self._references:
            torch._foreach_copy_(scratch, self._before.parameters)
            torch._foreach_sub_(scratch, self._before.copies)
            gaps = torch._foreach_norm(scratch, math.inf)
            self._gap = torch.stack([gap.to(gaps[0]) for gap in gaps]).amax()
        self._before.take()

    def end(self) -> None:
        """Know the parameters as they are after the update."""
        self._before.take()

    @torch.no_grad()
    def reach(self, updates: Sequence[Tensor]) -> Tensor:
        """How near the update may come to the bound, of each group in the order of the sets; to be read by the caller.

        Args:
            updates: Displacements of the placement's parameters, in at least single precision.

        Returns:
            Upper bounds of κ / bound where they are below 1, at least 1 or ``nan`` elsewhere, and last how far somebody
            else has moved a parameter, shape (number of groups + 1,).
        """
        if not self._references:
            for alike in self.sets:
                self._start.copy_from(self._before, alike.slots)
                nearest = nearest_distances(alike.clouds(self._before.copies))
                self._references.append(_Reference(nearest, torch.zeros_like(nearest)))
        self._moved = [displacement_lengths(alike.clouds(updates)) for alike in self.sets]
        each = zip(self._moved, self._references, strict=True)
        reach = [reaches(lengths, reference.drift, reference.nearest, self._bound) for lengths, reference in each]
        for lengths, reference in zip(self._moved, self._references, strict=True):
            reference.drift = reference.drift + lengths
        gap = reach[0].new_zeros(1) if self._gap is None else self._gap[None]
        return torch.cat([part.to(reach[0]) for part in (*reach, gap)])

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
        bound = self._bound if bound is None else bound
        *reach, gap = reach
        if gap != 0:
            reach = [math.inf] * len(reach)
        kappas, first = list[float](), 0
        for number, alike in enumerate(self.sets):
            part = reach[first : first + len(alike.groups)]
            first += len(alike.groups)
            kappas += self._of_set(number, alike, part, bound, enough)
        return kappas

    @torch.no_grad()
    def of_fastest(self) -> Tensor:
        """κ among the neurons of each group that the last ``reach`` found to move most, shape (number of groups,).

        All neurons of small groups, the 64 fastest of others: a lower bound of κ, 0 where no pair is resolved, which
        shows a rate that is far too high. To be read by the caller.
        """
        found = []
        for lengths, alike in zip(self._moved, self.sets, strict=True):
            n, dimension = alike.shape
            large = n > _FASTEST and n * n * dimension > _ALWAYS_WHOLE
            rows = lengths.topk(_FASTEST).indices if large else None
            before = alike.clouds(self._before.copies, rows)
            after = alike.clouds(self._placement.parameters, rows)
            found.append(update_criticality(before, after, alike.eps).criticality.nan_to_num(0.0))
        return torch.cat([part.to(found[0]) for part in found])

    @torch.no_grad()
    def every_criticality(self) -> list[float]:
        """κ of the update in each group, also where it is far below the bound; 0 where no pair is resolved."""
        kappas = list[float]()
        for alike in self.sets:
            before, after = alike.clouds(self._before.copies), alike.clouds(self._placement.parameters)
            kappas += criticalities_near(before, after, 0.0, alike.eps)
        return kappas

    @torch.no_grad()
    def certainly_below(self, displacements: Sequence[Tensor], bound: float) -> list[bool]:
        """Whether displacements of the parameters from where they were make no κ of a bound, for each group."""
        below = list[bool]()
        for alike, reference in zip(self.sets, self._references, strict=True):
            lengths = displacement_lengths(alike.clouds(displacements))
            below += [value < 1 for value in reaches(lengths, reference.drift, reference.nearest, bound).tolist()]
        return below

    def _of_set(
        self, number: int, alike: AlikeGroups, reach: Sequence[float], bound: float, enough: float
    ) -> list[float]:
        if all(value < 1 for value in reach):
            return [math.nan] * len(reach)
        before = alike.clouds(self._before.copies)
        reach = self._nearer(number, alike, before)
        if all(value < 1 for value in reach):
            return [math.nan] * len(reach)
        near = [index for index, value in enumerate(reach) if not value < 1]
        after = alike.clouds(self._placement.parameters)
        if len(near) < len(reach):
            before, after = before[near], after[near]
        found = iter(criticalities_near(before, after, bound, alike.eps, enough))
        return [math.nan if value < 1 else next(found) for value in reach]

    def _nearer(self, number: int, alike: AlikeGroups, before: Tensor) -> list[float]:
        """The same bounds again, with the way since the distances as the crow flies, or with new distances."""
        reference, lengths = self._references[number], self._moved[number]
        wide = torch.promote_types(before.dtype, torch.float32)
        way = before.to(wide) - alike.clouds(self._start.copies).to(wide)
        drift = displacement_lengths(way)
        reach = reaches(lengths, drift, reference.nearest, self._bound).tolist()
        alone = reaches(lengths, 0.0, reference.nearest, self._bound).tolist()
        if any(value >= 1 and rest < _WORTH_NEW_DISTANCES for value, rest in zip(reach, alone, strict=True)):
            self._start.copy_from(self._before, alike.slots)
            reference.nearest, drift = nearest_distances(before), torch.zeros_like(drift)
            reach = reaches(lengths, drift, reference.nearest, self._bound).tolist()
        reference.drift = drift + lengths
        return reach
