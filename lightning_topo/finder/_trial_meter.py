"""κ of the updates of a trial: exact in whether it reaches 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import BoundWatch, MovedGroups, ParametersBefore, Placement, held_parameters


class TrialMeter:
    """Tells of each update of an optimizer whether it is one-to-one on the neurons of every group.

    Whether κ >= 1 is exact. κ itself is that of all neurons of small groups, of others a lower bound: the largest over
    the pairs that were evaluated. One copy from the device an update, for all groups.

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
        self._bounds.begin()

    @torch.no_grad()
    def after(self) -> tuple[float, str | None]:
        """The largest κ and its group; ``inf`` when a parameter is not finite. To be called after the step."""
        torch._foreach_copy_(self._moved, self._parameters)
        torch._foreach_sub_(self._moved, self._before.copies)
        # Not the largest entries, whose search takes twenty times as long on a CPU; sums of squares may overflow.
        lengths = torch.stack(torch._foreach_norm(self._moved))
        if not self._names:
            return (0.0 if self._finite(lengths.tolist()) else math.inf), None
        numbers = [self._bounds.reach(self._moved), self._bounds.of_fastest(), lengths]
        first, second, _ = (len(number) for number in numbers)
        values = torch.cat([number.to(numbers[1]) for number in numbers]).tolist()
        if not self._finite(values[first + second :]):
            return math.inf, None
        kappas = values[first : first + second]
        if max(kappas) < 1:
            near = self._bounds.criticalities(values[:first], enough=1.0)
            kappas = [max(kappa, 0.0 if math.isnan(one) else one) for kappa, one in zip(kappas, near, strict=True)]
        worst = max(kappas)
        return worst, self._names[kappas.index(worst)]

    def _finite(self, lengths: Sequence[float]) -> bool:
        """Whether every parameter is finite, given the lengths of their displacements."""
        return all(map(math.isfinite, lengths)) or all(bool(moved.isfinite().all()) for moved in self._moved)
