"""Predicting κ of an update from how far a part of each parameter has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_topo.updates.parameter_places import memory_addresses
from lightning_topo.updates.placement import Placement

# Coordinates of a parameter that are watched, its first ones: neurons can be exchanged, so any are as good as others.
_WATCHED = 2**14


class DisplacementWatch:
    r"""Follows the first rows of every parameter, at the cost of some operations on lists of all of them.

    With κ_g of a group in the last measured window, and the length L_g that the watched coordinates of its parameters
    were displaced by over that window, an update that displaces them by ℓ_g is predicted

    $$\hat\kappa = \sqrt{\textstyle\sum_g (\kappa_g \, \ell_g / L_g)^2} = \sqrt{\textstyle\sum_s w_s \, \ell_s^2},
    \qquad w_s = \sum_{g \ni s} \kappa_g^2 / L_g^2$$

    over parameters s.

    Args:
        placement: Where the groups lie.
    """

    def __init__(self, placement: Placement) -> None:
        self._parameters = placement.parameters
        self._devices = {parameter.device for parameter in self._parameters}
        names = [group.name for alike in placement.alike for group in alike.groups]
        holds = torch.zeros(len(names), len(self._parameters))
        for group, name in enumerate(names):
            holds[group, placement.slots_of(name)] = 1.0
        self._holds = holds.to(self._parameters[0].device)
        self._pointers: list[int] = []
        self._now: list[Tensor] = []
        self._then: list[Tensor] = []
        self._roots: Tensor | None = None  # of the weights w

    def learn(self, before: Sequence[Tensor], kappa: Tensor) -> None:
        """Take in a measured window, which ends now.

        Args:
            before: The parameters as they were when it began.
            kappa: κ of each group, those of the placement in its order, shape (G,).
        """
        self._look()
        torch._foreach_copy_(self._then, [_watched(copy) for copy in before])
        squares = self._lengths().square_()
        ratios = kappa.to(squares).square() / torch.mv(self._holds, squares)
        self._roots = torch.mv(self._holds.T, ratios.nan_to_num(0.0, 0.0, 0.0)).sqrt_()

    def predict(self) -> Tensor | None:
        """κ̂ over all groups of what happened since the last call; None before a window was measured."""
        if self._roots is None:
            return None
        self._look()
        return torch.linalg.vector_norm(self._lengths().mul_(self._roots))

    def state(self) -> dict[str, Any]:
        """What it has learnt; for a checkpoint."""
        return {"roots": None if self._roots is None else self._roots.cpu()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, and from the parameters as they are now."""
        roots = state["roots"]
        if roots is not None and len(roots) == len(self._parameters):
            self._roots = roots.to(self._parameters[0].device)
        self._look()
        torch._foreach_copy_(self._then, self._now)

    def _look(self) -> None:
        """Have views of the parameters, which may have been given other memory since."""
        pointers = memory_addresses(self._parameters)
        if not pointers or pointers != self._pointers:
            self._pointers, self._now = pointers, [_watched(parameter.detach()) for parameter in self._parameters]
            if [(then.shape, then.device) for then in self._then] != [(now.shape, now.device) for now in self._now]:
                self._then = [now.clone() for now in self._now]

    def _lengths(self) -> Tensor:
        """The length of each parameter's displacement since the last call, in single precision, shape (S,)."""
        torch._foreach_sub_(self._then, self._now)
        lengths = list(torch._foreach_norm(self._then))
        torch._foreach_copy_(self._then, self._now)
        if len(self._devices) > 1:
            lengths = [length.to(self._parameters[0].device) for length in lengths]
        return torch.stack(lengths).float()


def _watched(parameter: Tensor) -> Tensor:
    """Its first rows, a view."""
    row = math.prod(parameter.shape[1:]) if parameter.ndim else 0
    return parameter[: max(1, _WATCHED // row)] if row else parameter
