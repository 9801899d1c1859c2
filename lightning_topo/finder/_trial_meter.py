"""κ of the updates of a trial: exact in whether it reaches 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import BoundWatch, MovedGroups, ParametersBefore, Placement, held_parameters
from lightning_topo.updates.parameters_before import differences


class TrialMeter:
    """Tells of each update of an optimizer whether it is one-to-one on the neurons of every group.

    Whether κ >= 1 is exact. κ itself is that of all neurons of small groups, of others a lower bound: the largest over
    the pairs that were evaluated, 0 where it is certainly below 1. Few numbers are read an update, for all groups.

    Args:
        optimizer: The optimizer.
        model: The module that holds the groups' parameters, whole on this process.
        groups: The groups; those of which the optimizer holds nothing are left out.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, groups: Sequence[NeuronGroup]) -> None:
        placement = Placement(model, MovedGroups(optimizer, model, groups).groups)
        self._names = [group.name for alike in placement.alike for group in alike.groups]
        own = {id(parameter) for parameter in placement.parameters}
        held = [p for p in held_parameters(optimizer) if id(p) not in own]
        self._parameters: list[Tensor] = [*placement.parameters, *held]
        self._before = ParametersBefore(self._parameters)
        self._moved: list[Tensor] = [
            copy.to(torch.promote_types(copy.dtype, torch.float32), copy=True) for copy in self._before.copies
        ]
        self._bounds = BoundWatch(placement, self._before, 1.0)

    def before(self) -> None:
        """Keep the parameters; to be called before the step."""
        self._bounds.reach.begin(self._moved)

    @torch.no_grad()
    def after(self) -> tuple[float, str | None]:
        """The largest κ and its group; ``inf`` when a parameter is not finite. To be called after the step."""
        differences(self._moved, self._parameters, self._before.copies)
        norms = [norm.to(self._moved[0].device) for norm in self._bounds.reach.norms(self._moved)]
        read = torch.stack(norms).tolist()
        if not self._finite(read[-len(self._moved) :]):
            return math.inf, None
        if not self._names:
            return 0.0, None
        certain = self._bounds.reach.look(self._moved, self._bounds.reach.certain(read))
        reach = self._bounds.reach.of_groups(self._moved, certain)
        fastest = self._bounds.of_fastest()
        values = torch.cat([reach.to(fastest), fastest]).tolist()
        reach_of, kappas = values[: len(reach)], values[len(reach) :]
        if max(kappas) < 1:
            near = self._bounds.criticalities(reach_of, enough=1.0)
            kappas = [max(kappa, 0.0 if math.isnan(one) else one) for kappa, one in zip(kappas, near, strict=True)]
        worst = max(kappas)
        return worst, self._names[kappas.index(worst)]

    def _finite(self, norms: Sequence[float]) -> bool:
        """Whether every parameter is finite, given the norms of their displacements, whose squares may overflow."""
        return all(map(math.isfinite, norms)) or all(bool(moved.isfinite().all()) for moved in self._moved)
