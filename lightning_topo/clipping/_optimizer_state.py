"""What an optimizer remembers of an update that was scaled back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

# Running means of gradients or updates, by the names that torch's optimizers and their kin give them.
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


def forget_first_moments(optimizer: Optimizer, factors: Mapping[int, float]) -> None:
    """Set the running means of parameters whose update was scaled back to zero: they would go on pushing that way.

    LBFGS, whose memory is of differences between whole steps, starts anew.

    Args:
        optimizer: The optimizer, after its step.
        factors: Of the updates that were made, by the ``id`` of parameters.
    """
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        return
    for parameter, state in optimizer.state.items():
        for name in _FIRST_MOMENTS if factors.get(id(parameter), 1.0) < 1 else ():
            if isinstance(state.get(name), Tensor):
                state[name].zero_()


def forget_non_finite(optimizer: Optimizer) -> None:
    """Set to zero what is NaN or infinite in the optimizer's memory, which one bad gradient would spoil for good."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        return
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)
