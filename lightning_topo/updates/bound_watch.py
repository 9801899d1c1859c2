"""κ of the neuron groups of which an update may reach a bound, and of no others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_topo.functional.near_bound import always_exact, criticalities_near, settled_criticalities
from lightning_topo.functional.update_constants import update_criticality
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.placement import AlikeGroups, Placement
from lightning_topo.updates.reach import Reach
from lightning_topo.updates.recorded_work import Recordings

# Groups of up to this many n² D are looked at as a whole, about a millisecond on one core, others among so many.
_ALWAYS_WHOLE = 2**24
_FASTEST = 64


class BoundWatch:
    """Finds the neuron groups of which an update's κ may reach a bound, and κ of these, O(n² D).

    Args:
        placement: Where the groups lie, whole on this process.
        before: The parameters as they were before the update, those of the placement first.
        bound: The bound on κ.

    Attributes:
        reach: Tells which groups may come near the bound.
    """

    def __init__(self, placement: Placement, before: ParametersBefore, bound: float) -> None:
        self._placement, self._before = placement, before
        self.reach = Reach(placement, before, bound)
        self._evaluated = Recordings()

    @torch.no_grad()
    def criticalities(
        self, reach: Sequence[float], bound: float | None = None, enough: float = math.inf
    ) -> list[float]:
        """κ of each group, ``nan`` where it is certainly below the bound.

        Args:
            reach: What ``reach.of_groups`` gave, read; ``inf`` has a group evaluated in any case.
            bound: κ is exact from here on; default that of the reach.
            enough: A κ that need not be told from larger ones.
        """
        bound = self.reach.bound if bound is None else bound
        parts, first = list[Sequence[float]](), 0
        for alike in self._placement.alike:
            part = reach[first : first + len(alike.groups)]
            first += len(alike.groups)
            parts.append(part)
        self.reach.take_new_distances(parts)
        near = [
            alike
            for alike, part in zip(self._placement.alike, parts, strict=True)
            if any(not value < 1 for value in part)
        ]
        rows = self._rows([alike for alike in near if always_exact(*alike.shape, alike.device)])
        kappas = list[float]()
        for alike, part in zip(self._placement.alike, parts, strict=True):
            kappas += self._of_set(alike, part, bound, enough, rows.get(alike))
        return kappas

    def _rows(self, sets: Sequence[AlikeGroups]) -> dict[AlikeGroups, list[list[float]]]:
        """What ``update_criticality`` finds of the sets that a GPU evaluates together, read at once."""
        self._evaluated.refresh(self._placement.parameters)
        tables = self._evaluated.results(sets, lambda alike: (self._table(alike),))
        if not tables:
            return {}
        home = next(iter(tables)).device
        rows = iter(torch.cat([table.to(home) for (table,) in tables.values()]).tolist())
        return {alike: [next(rows) for _ in alike.groups] for alike in tables}

    def _table(self, alike: AlikeGroups) -> Tensor:
        return update_criticality(*self._clouds(alike), alike.eps).packed()

    def _clouds(self, alike: AlikeGroups) -> tuple[Tensor, Tensor]:
        return alike.clouds(self._before.copies), alike.clouds(self._placement.parameters)

    def _of_set(
        self,
        alike: AlikeGroups,
        reach: Sequence[float],
        bound: float,
        enough: float,
        rows: Sequence[Sequence[float]] | None,
    ) -> list[float]:
        near = [index for index, value in enumerate(reach) if not value < 1]
        if not near:
            return [math.nan] * len(reach)
        if rows is not None:
            kappas = settled_criticalities(rows, lambda: self._clouds(alike), alike.eps)
            return [
                kappa if kappa >= bound and not value < 1 else math.nan
                for kappa, value in zip(kappas, reach, strict=True)
            ]
        before, after = self._clouds(alike)
        if len(near) < len(reach):
            before, after = before[near], after[near]
        found = iter(criticalities_near(before, after, bound, alike.eps, enough))
        return [math.nan if value < 1 else next(found) for value in reach]

    @torch.no_grad()
    def of_fastest(self) -> Tensor:
        """κ among the neurons that the last ``reach.of_groups`` found to move most, shape (number of groups,).

        All neurons of small groups, the 64 fastest of others: a lower bound of κ, 0 where no pair is resolved or the
        group needed no look, which shows a rate that is far too high. To be read by the caller.
        """
        found = []
        for number, alike in enumerate(self._placement.alike):
            n, dimension = alike.shape
            large = n > _FASTEST and n * n * dimension > _ALWAYS_WHOLE
            if large and number not in self.reach.lengths:
                found.append(torch.zeros(len(alike.groups), device=alike.device))
                continue
            rows = self.reach.lengths[number].topk(_FASTEST).indices if large else None
            before = alike.clouds(self._before.copies, rows)
            after = alike.clouds(self._placement.parameters, rows)
            found.append(update_criticality(before, after, alike.eps).criticality.nan_to_num(0.0))
        return torch.cat([part.to(found[0]) for part in found])
