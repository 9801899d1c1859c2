"""Copies of parameters from before an update, made once for all neuron groups that share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ParametersBefore:
    """Some parameters as they were when they were last taken.

    Args:
        parameters: The parameters, each once.

    Attributes:
        parameters: The same.
        copies: What they were, in the same order.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.copies = [torch.empty_like(parameter, requires_grad=False) for parameter in self.parameters]

    @torch.no_grad()
    def take(self, slots: Sequence[int] | None = None) -> None:
        """Copy them as they are now, or those of the given positions, in one operation."""
        copies, parameters = self.copies, self.parameters
        if slots is not None and len(slots) < len(parameters):
            copies, parameters = [copies[slot] for slot in slots], [parameters[slot] for slot in slots]
        if parameters:
            torch._foreach_copy_(copies, parameters)

    @torch.no_grad()
    def copy_from(self, other: ParametersBefore, slots: Sequence[int]) -> None:
        """Take over what another has of the same parameters at some positions."""
        torch._foreach_copy_([self.copies[slot] for slot in slots], [other.copies[slot] for slot in slots])
