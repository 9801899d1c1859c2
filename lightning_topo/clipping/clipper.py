"""Scaling back every update whose criticality exceeds a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.clipping.followed_bound import FollowedBound
from lightning_topo.clipping.group_update import GroupUpdate
from lightning_topo.clipping.level import common_level
from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import BoundWatch, MovedGroups, ParametersBefore, Placement, held_parameters
from lightning_topo.updates.optimizer_state import OptimizerMemory
from lightning_topo.updates.parameters_before import copies_of, differences

# The share of η* that the rate control trains at (``control.SHARE``). On 23 tasks (docs/evidence/clipping.md) 0.5% of
# the updates are scaled back at η*/4 and 5% at η*/2, where no run loses 1% of its accuracy; at 4 and 16 η* those of
# images and text end at 1.01 and 1.02 of a sweep's best loss. With 0.4 a BatchNorm net ends at 16 η* at seven times the
# loss, with 0.1 four others at 1.05 to 1.25 times.
MAX_CRITICALITY = 0.2
# A clipped update aims this far below the bound, for rounding moves κ a little.
AIM = 0.999
# κ is evaluated where the groups together, or one of G its part b/√G, may come to this share of what they may have,
_EXACT_FROM = 0.99
# and is exact from this share of the part on. For each group below, this share is counted, which all together is at
# most a hundredth of b².
_COUNTED = 0.1
# Where rounding lifts κ above the bound again and again (neurons as close as their rounding), the update is undone.
_ATTEMPTS = 5


class StepClipper:
    r"""Keeps the updates of one optimizer one-to-one on the neurons.

    Between ``before`` and ``after`` the optimizer steps from θ to θ'. Where the root of the sum of squares of the
    groups' criticalities κ_g is above the bound b_t, a parameter p becomes, with the smallest factor of the groups G(p)
    that it is a member of,

    $$
    \theta_p + s_p\,(\theta'_p - \theta_p), \qquad s_p = \min_{g \in G(p)} f_g, \qquad
    f_g = \min\left(1,\ \frac{c}{\kappa_g}\right), \qquad \sqrt{\textstyle\sum_g \min(\kappa_g, c)^2} = b_t
    $$

    so that each group keeps its part: each part of |u_i - u_j|² has shrunk by f_g² at least. Many layers that each
    move a little move the network as far as one that moves much, and the rate control counts them so too. Parameters
    in no group take the smallest factor of all. The bound b_t is ``max_criticality`` at the optimizer's full rate
    and goes down with it (``FollowedBound``). Where the rounding of the parameters could lift κ above the bound,
    it is measured again, and the update scaled further if it did. The optimizer's running means of gradients (momentum,
    Adam's first moment) are scaled like the parameter's update: they would go on asking for the rest; those of
    optimizers that it wraps are found, whatever their names. All neurons count that rounding can tell apart (see
    ``functional.bi_lipschitz``). An update that makes a parameter NaN or infinite is undone, and the optimizer forgets
    what is not finite.

    Memory: three copies of the parameters, and the points of a few groups during a step.

    Reference: arXiv 2510.02670, section 3: an update of κ < 1 is a bi-Lipschitz map of the neurons.

    Args:
        optimizer: The optimizer; it may hold any of the model's parameters, and be given more of them later.
        model: Module that holds the groups' parameters, whole on this process.
        groups: Neuron groups; those of which the optimizer holds nothing are left out.
        max_criticality: Largest root of the sum of squares of κ at the optimizer's full learning rate, in (0, 1].
        agree: What the processes of a run make of their factors, so that all use the same; default: each its own.

    Attributes:
        bound: The bound of the next or present update.
        rates: The learning rates that the bound follows.
        share: How much of the optimizer's own last update was made, by its length.
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
        max_criticality: float = MAX_CRITICALITY,
        agree: Callable[[list[float]], list[float]] = list,
    ) -> None:
        self.bound = self.max_criticality = require_criticality(max_criticality)
        self.optimizer, self.rates = optimizer, FollowedBound(optimizer)
        self.updates = self.clipped_updates = 0
        self.last: tuple[GroupUpdate, ...] = ()
        self.diverged, self.share = False, 1.0
        self._norms: list[float] = []
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
        own = {id(parameter) for parameter in self._placement.parameters}
        # Those of another optimizer do not move meanwhile.
        held = [p for p in held_parameters(self.optimizer) if id(p) not in own]
        self._parameters: list[Tensor] = [*self._placement.parameters, *held]
        everything = list(range(len(self._clouds)))
        members = [{id(p) for p in self._placement.parameters_of(group)} for group in self._clouds]
        self._groups_of = [[i for i in everything if id(p) in members[i]] or everything for p in self._parameters]
        self._slots_of = [
            [s for s, groups in enumerate(self._groups_of[: len(own)]) if i in groups] for i in everything
        ]
        self._kept = ParametersBefore(self._parameters)
        # At least in single precision, where a difference of numbers in half precision is exact.
        self._moved = [kept.to(torch.promote_types(kept.dtype, torch.float32), copy=True) for kept in self._kept.copies]
        self._bounds = BoundWatch(self._placement, self._kept, _EXACT_FROM * self._part)

    @property
    def _part(self) -> float:
        """What each group may have where all have the same."""
        return self.bound / math.sqrt(len(self._clouds))

    @torch.no_grad()
    def before(self) -> None:
        """Keep the parameters; to be called before the optimizer's step."""
        if not self._placement.holds or self._moved_groups.changed:  # as where layers are unfrozen during training
            self._resolve()
        self.bound = self.rates.share() * self.max_criticality
        self._bounds.reach.bound = _EXACT_FROM * self._part
        self._bounds.reach.begin(self._moved)

    @torch.no_grad()
    def after(self, exact: bool = False, largest_share: float = 1.0) -> bool:
        """Scale the update back where it is too large; to be called after the optimizer's step.

        Args:
            exact: Evaluate κ of all groups, also where it is certainly below the bound, for ``last``.
            largest_share: How much of the optimizer's own update may be made, by its length.

        Returns:
            Whether something was scaled back.
        """
        self._displace()
        kappas = self._criticalities(exact)
        looks = exact and not self.diverged and math.inf not in kappas
        first = self._looked_at(kappas) if looks else kappas
        factors = [1.0] * len(self._parameters)
        attempts = 0
        allowed = self._agree(self._shortened(self._allowed(kappas, attempts), largest_share))
        while min(allowed) < 1:
            unscaled = copies_of(self._moved)
            latest = self._factors(allowed)
            self._scale_back(latest)
            factors = [factor * one for factor, one in zip(factors, latest, strict=True)]
            attempts += 1
            self._displace()
            kappas = self._scaled(unscaled, latest, allowed, kappas)
            allowed = self._agree(self._allowed(kappas, attempts))
        self.share = self._share(factors)
        if attempts:
            self._memory.scale_pushes({id(p): factor for p, factor in zip(self._parameters, factors, strict=True)})
        if math.inf in first:
            self._memory.forget_non_finite()
        self.updates += 1
        self.clipped_updates += attempts > 0
        scales = [min(factors[slot] for slot in slots) for slots in self._slots_of]
        if looks:
            kappas = self._looked_at(self._bounds.criticalities([math.inf] * len(kappas))) if attempts else first
        self.last = tuple(
            GroupUpdate(group.name, before, after, scale)
            for group, before, after, scale in zip(self._clouds, first, kappas, scales, strict=True)
            if exact or scale < 1
        )
        return attempts > 0

    def _displace(self) -> None:
        """Take the displacements of all parameters."""
        differences(self._moved, self._parameters, self._kept.copies)

    def _criticalities(self, exact: bool) -> list[float]:
        """κ of each group, ``nan`` where it is certainly small enough; all ``inf`` when something is not finite."""
        norms = _read(self._bounds.reach.norms(self._moved))
        self._norms = norms[-len(self._parameters) :]
        self.diverged = False
        if not all(map(math.isfinite, norms)) and not all(map(math.isfinite, self._largest())):
            self.diverged = not all(bool(kept.isfinite().all()) for kept in self._kept.copies)
            return [math.nan if self.diverged else math.inf] * len(self._clouds)
        certain = self._bounds.reach.certain(norms)
        if not exact:
            certain = self._bounds.reach.look(self._moved, certain)
            if all(certain):
                return [math.nan] * len(self._clouds)
        reach, below = self._bounds.reach.together(self._moved, _EXACT_FROM * self.bound)
        if below:
            return [math.nan] * len(self._clouds)
        least = _COUNTED * self._part
        return self._bounds.criticalities([0.0 if one * self.bound < least else math.inf for one in reach], least)

    def _largest(self) -> list[float]:
        """Of each displacement, whose norm may be beyond the largest number."""
        return _read(torch._foreach_norm(self._moved, math.inf))

    def _looked_at(self, kappas: Sequence[float]) -> list[float]:
        """κ of each group, of large ones that are far below the bound among the neurons that moved most."""
        seen = self._bounds.of_fastest().tolist()
        return [one if math.isnan(kappa) else max(kappa, one) for kappa, one in zip(kappas, seen, strict=True)]

    def _scaled(
        self, unscaled: list[Tensor], factors: Sequence[float], allowed: Sequence[float], kappas: Sequence[float]
    ) -> list[float]:
        """At most κ of each group after its parameters were scaled back, ``nan`` where it was.

        With δ what rounding made of the scaled update, κ is at most the factor that the group allows times κ, and
        max |δ_i - δ_j| / |p_i - p_j|. Where the last term may be a thousandth of the group's part of the bound, κ is
        measured again.
        """
        whole = [any(factors[slot] > 0 for slot in slots) for slots in self._slots_of]
        if not any(whole):
            return [0.0] * len(whole)
        torch._foreach_mul_(unscaled, list(factors))
        torch._foreach_sub_(unscaled, self._moved)
        small = self._bounds.reach.certainly_below(unscaled, 0.9 * (1 - AIM) * self._part)
        again = [moves and not tiny for moves, tiny in zip(whole, small, strict=True)]
        measured = self._bounds.criticalities([math.inf if needed else 0.0 for needed in again], _COUNTED * self._part)
        return [
            new if needed else factor * kappa if moves else 0.0
            for new, needed, moves, factor, kappa in zip(measured, again, whole, allowed, kappas, strict=True)
        ]

    def _allowed(self, kappas: Sequence[float], attempts: int) -> list[float]:
        """By which factor the update of each group has to be scaled."""
        counted = [_COUNTED * self._part if math.isnan(kappa) else kappa for kappa in kappas]
        if common_level(counted, self.bound) == math.inf:
            return [1.0] * len(counted)
        if attempts >= _ATTEMPTS:
            return [0.0 if kappa > self._part else 1.0 for kappa in counted]
        level = common_level(counted, AIM * self.bound)
        return [level / kappa if kappa > level else 1.0 for kappa in counted]

    def _factors(self, allowed: Sequence[float]) -> list[float]:
        """The smallest factor of the groups of each parameter."""
        return [min(allowed[group] for group in groups) for groups in self._groups_of]

    def _share(self, factors: Sequence[float]) -> float:
        """How much of the optimizer's own update is made with these factors of the parameters, by its length."""
        whole = math.hypot(*self._norms)
        if whole == 0 or not math.isfinite(whole):
            return min(factors)
        return math.hypot(*(factor * norm for factor, norm in zip(factors, self._norms, strict=True))) / whole

    def _shortened(self, allowed: list[float], largest_share: float) -> list[float]:
        """The same factors, smaller where more than a share of the update would be made."""
        share = self._share(self._factors(allowed)) if largest_share < 1 else 0.0
        return [largest_share / share * factor for factor in allowed] if share > largest_share else allowed

    def _scale_back(self, factors: Sequence[float]) -> None:
        for factor in {factor for factor in factors if factor < 1}:
            slots = [slot for slot, one in enumerate(factors) if one == factor]
            kept, moved = ([some[slot] for slot in slots] for some in (self._kept.copies, self._parameters))
            # Where the factor is 0 the update may be infinite.
            torch._foreach_copy_(moved, torch._foreach_lerp(kept, moved, factor) if factor > 0 else kept)


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, read at once."""
    return torch.stack([number.to(numbers[0]) for number in numbers]).tolist() if numbers else []


def require_criticality(value: float) -> float:
    """The value, or a ValueError when it is no bound that keeps neurons apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(
            f"max_criticality is the largest κ that an update may have: a number in (0, 1], for above 1 neurons can "
            f"merge; but got {value!r}."
        )
    return float(value)
