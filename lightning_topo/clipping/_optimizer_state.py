"""What an optimizer remembers of an update that was scaled back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

# Running means of gradients or updates, by the names that torch's optimizers and their kin give them.
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


def scale_first_moments(optimizer: Optimizer, factors: Mapping[int, float]) -> None:
    """Multiply running means by the factor of their parameter's update, as if that update had been asked for.

    LBFGS, whose memory is of differences between whole steps, starts anew.

    Args:
        optimizer: The optimizer, after its step.
        factors: By the ``id`` of parameters; those that are missing keep what they have.
    """
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        return
    for parameter, state in optimizer.state.items():
        factor = factors.get(id(parameter), 1.0)
        for name in _FIRST_MOMENTS if factor < 1 else ():
            if isinstance(state.get(name), Tensor):
                state[name].mul_(factor)


def forget_non_finite(optimizer: Optimizer) -> None:
    """Set to zero what is NaN or infinite in the optimizer's memory, which one bad gradient would spoil for good."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        return
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)
