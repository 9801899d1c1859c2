"""Scaling back every update whose criticality exceeds a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import BoundWatch, MovedGroups, ParametersBefore, Placement, held_parameters
from lightning_topo.updates.optimizer_state import OptimizerMemory

# A clipped update aims this far below the bound, for rounding moves κ a little.
AIM = 0.999
# κ is exact from this share of the bound on.
_EXACT_FROM = 0.99
# Where rounding lifts κ above the bound again and again (neurons as close as their rounding), the update is undone.
_ATTEMPTS = 5


@dataclass(frozen=True)
class GroupUpdate:
    """What one optimizer step did to one neuron group.

    Attributes:
        group: Name of the neuron group.
        criticality_before: κ of the optimizer's own update; ``nan`` where it was certainly below the bound and not
            evaluated, ``inf`` where a parameter became NaN or infinite.
        criticality_after: κ of the update that was made, at most the bound; ``nan`` where it was not evaluated. Of an
            update that was scaled back it is right to a thousandth of the bound, or measured where ``exact`` was asked.
        scale: Factor of the update that was made, 1 where it was left as it was.
    """

    group: str
    criticality_before: float
    criticality_after: float
    scale: float


class StepClipper:
    r"""Keeps the updates of one optimizer one-to-one on the neurons.

    Between ``before`` and ``after`` the optimizer steps from θ to θ'. With κ the largest over a set of neuron
    groups that are connected by shared parameters, the parameters of the set become

    $$\theta + s\,(\theta' - \theta), \qquad s = \min(1,\ \text{max\_criticality} / \kappa)$$

    and the criticality s·κ. Parameters in no group take the smallest s of all. Where the rounding of the parameters
    could lift κ above the bound, it is measured again, and the update scaled further if it did. The optimizer's running
    means of gradients (momentum, Adam's first moment) start anew for what was scaled back: they would go on pushing;
    those of optimizers that it wraps are found, whatever their names. All neurons count that rounding can tell apart
    (see ``functional.bi_lipschitz``). An update that makes a parameter
    NaN or infinite is undone, and the optimizer forgets what is not finite.

    Memory: three copies of the parameters, and the points of a few groups during a step.

    Reference: arXiv 2510.02670, section 3: an update of κ < 1 is a bi-Lipschitz map of the neurons.

    Args:
        optimizer: The optimizer; it may hold any of the model's parameters, and be given more of them later.
        model: Module that holds the groups' parameters, whole on this process.
        groups: Neuron groups; those of which the optimizer holds nothing are left out.
        max_criticality: Largest κ of an update, in (0, 1].
        agree: What the processes of a run make of their factors, so that all use the same; default: each its own.

    Attributes:
        updates: Steps seen so far.
        clipped_updates: Steps that were scaled back, in part or as a whole.
        last: What the last step did, to the groups that were scaled back (to all where ``exact`` was asked for).
        diverged: Whether a parameter was NaN or infinite before the last step. Nothing is clipped then.

    Raises:
        ValueError: When the bound is out of range, or no group holds a parameter of the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        groups: Sequence[NeuronGroup],
        max_criticality: float = 0.1,
        agree: Callable[[list[float]], list[float]] = list,
    ) -> None:
        self.max_criticality = require_criticality(max_criticality)
        self.optimizer = optimizer
        self.updates = self.clipped_updates = 0
        self.last: tuple[GroupUpdate, ...] = ()
        self.diverged = False
        self._model, self._groups, self._agree = model, groups, agree
        self._memory = OptimizerMemory(optimizer)
        self._resolve()

    def _resolve(self) -> None:
        """Find where the groups lie, and make room for what the optimizer holds now."""
        self._moved_groups = MovedGroups(self.optimizer, self._model, self._groups)
        watched = self._moved_groups.groups
        if not watched:
            names = ", ".join(group.name for group in self._groups) or "none"
            raise ValueError(f"expected a neuron group that the optimizer holds a parameter of, got: {names}")
        self._placement = Placement(self._model, watched)
        self._clouds = [group for alike in self._placement.alike for group in alike.groups]
        members = [[id(p) for p in self._placement.parameters_of(group)] for group in self._clouds]
        self._sets = _connected(members)
        self._set_of = {key: which for which, keys in zip(self._sets, members, strict=True) for key in keys}
        # Those of another optimizer do not move meanwhile.
        held = [p for p in held_parameters(self.optimizer) if id(p) not in self._set_of]
        self._parameters: list[Tensor] = [*self._placement.parameters, *held]
        self._kept = ParametersBefore(self._parameters)
        # At least in single precision, where a difference of numbers in half precision is exact.
        self._moved = [kept.to(torch.promote_types(kept.dtype, torch.float32), copy=True) for kept in self._kept.copies]
        self._bounds = BoundWatch(self._placement, self._kept, _EXACT_FROM * self.max_criticality)

    @torch.no_grad()
    def before(self) -> None:
        """Keep the parameters; to be called before the optimizer's step."""
        if not self._placement.holds or self._moved_groups.changed:  # as where layers are unfrozen during training
            self._resolve()
        self._bounds.begin(self._moved)

    @torch.no_grad()
    def after(self, exact: bool = False) -> bool:
        """Scale the update back where it is too large; to be called after the optimizer's step.

        Args:
            exact: Evaluate κ of all groups, also where it is certainly below the bound, for ``last``.

        Returns:
            Whether something was scaled back.
        """
        try:
            return self._clip(exact)
        finally:
            self._bounds.end()

    def _clip(self, exact: bool) -> bool:
        self._displace()
        first = kappas = self._criticalities(exact)
        scales = [1.0] * (max(self._sets) + 2)
        attempts = 0
        while min(factors := self._agree(self._factors(kappas, attempts))) < 1:
            unscaled = [moved.clone() for moved in self._moved]
            self._scale_back(factors)
            scales = [scale * factor for scale, factor in zip(scales, factors, strict=True)]
            attempts += 1
            self._displace()
            kappas = self._scaled(unscaled, factors, kappas, exact)
        if attempts:
            self._memory.forget_pushes({id(p): scales[self._set_of.get(id(p), -1)] for p in self._parameters})
        if math.inf in first:
            self._memory.forget_non_finite()
        self.updates += 1
        self.clipped_updates += attempts > 0
        self.last = tuple(
            GroupUpdate(group.name, before, after, scales[which])
            for group, which, before, after in zip(self._clouds, self._sets, first, kappas, strict=True)
            if exact or scales[which] < 1
        )
        return attempts > 0

    def _displace(self) -> None:
        """Take the displacements of all parameters."""
        torch._foreach_copy_(self._moved, self._parameters)
        torch._foreach_sub_(self._moved, self._kept.copies)

    def _criticalities(self, exact: bool) -> list[float]:
        """κ of each group, ``nan`` where it is certainly below the bound; all ``inf`` when something is not finite."""
        reach = self._bounds.reach(self._moved)
        largest = torch.stack([norm.to(reach) for norm in torch._foreach_norm(self._moved, math.inf)])
        # One copy from the device for all groups and parameters.
        values = torch.cat([reach, largest]).tolist()
        self.diverged = False
        if not all(map(math.isfinite, values[len(reach) :])):
            self.diverged = not all(bool(kept.isfinite().all()) for kept in self._kept.copies)
            return [math.nan if self.diverged else math.inf] * len(self._clouds)
        return self._bounds.every_criticality() if exact else self._bounds.criticalities(values[: len(reach)])

    def _scaled(
        self, unscaled: Sequence[Tensor], factors: Sequence[float], kappas: Sequence[float], exact: bool
    ) -> list[float]:
        """κ of each group after its update was scaled back, ``nan`` where it was.

        With δ what rounding made of the scaled update, κ is at most factor · κ + max |δ_i - δ_j| / |p_i - p_j|. Where
        the last term may be a thousandth of the bound, κ is measured again; else it is right to that.
        """
        if exact:
            return self._bounds.every_criticality()
        factor_of = [factors[self._set_of.get(id(p), -1)] for p in self._parameters]
        rounding = [now - factor * then for now, factor, then in zip(self._moved, factor_of, unscaled, strict=True)]
        small = self._bounds.certainly_below(rounding, 0.9 * (1 - AIM) * self.max_criticality)
        again = [not tiny and 0 < factors[which] < 1 for tiny, which in zip(small, self._sets, strict=True)]
        measured = self._bounds.criticalities([*(math.inf if needed else 0.0 for needed in again), 0.0])
        return [
            new if needed else 0.0 if factors[which] == 0 else factors[which] * kappa
            for new, needed, which, kappa in zip(measured, again, self._sets, kappas, strict=True)
        ]

    def _factors(self, kappas: list[float], attempts: int) -> list[float]:
        """By which to scale the update of each set of groups, and at the end that of the parameters in no group."""
        factors = [1.0] * (max(self._sets) + 1)
        for which, kappa in zip(self._sets, kappas, strict=True):
            if kappa > self.max_criticality:
                aim = AIM * self.max_criticality if attempts < _ATTEMPTS else 0.0
                factors[which] = min(factors[which], aim / kappa)
        return [*factors, min(factors)]

    def _scale_back(self, factors: list[float]) -> None:
        for parameter, kept in zip(self._parameters, self._kept.copies, strict=True):
            factor = factors[self._set_of.get(id(parameter), -1)]
            if factor == 0:
                parameter.copy_(kept)  # the update may be infinite
            elif factor < 1:
                parameter.copy_(torch.lerp(kept, parameter, factor))


def require_criticality(value: float) -> float:
    """The value, or a ValueError when it is no bound that keeps neurons apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(
            f"max_criticality is the largest κ that an update may have: a number in (0, 1], for above 1 neurons can "
            f"merge; but got {value!r}."
        )
    return float(value)


def _connected(keys: Sequence[Iterable[int]]) -> list[int]:
    """For each set of keys the number, from 0 on, of the connected part that it belongs to: sets that share a key."""
    parts: list[tuple[set[int], list[int]]] = []
    for index, own in enumerate(map(set, keys)):
        joined = [part for part in parts if not part[0].isdisjoint(own)]
        parts = [part for part in parts if part[0].isdisjoint(own)]
        parts.append((own.union(*(part[0] for part in joined)), [index, *(i for part in joined for i in part[1])]))
    numbers = {index: number for number, (_, indices) in enumerate(parts) for index in indices}
    return [numbers[index] for index in range(len(keys))]
