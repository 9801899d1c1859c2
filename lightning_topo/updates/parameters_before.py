"""Copies of parameters from before an update, made once for all neuron groups that share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Tensors of so many numbers are read from memory anew in each pass of a processor.
_LARGE = 2**14


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


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, made in one operation."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies


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
