"""Undoing updates that are not finite, of optimizers that move no neuron."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.updates import ParametersBefore, held_parameters
from lightning_topo.updates.optimizer_state import OptimizerMemory


class FiniteGuard:
    """Undoes an update that makes a parameter NaN or infinite, and has the optimizer forget what is not finite.

    One number a step is read from the device.

    Args:
        optimizer: The optimizer; it may be given more parameters later.
        agree: What the processes of a run make of their factors; default: each its own.

    Attributes:
        undone: Whether the last update was undone.
    """

    def __init__(self, optimizer: Optimizer, agree: Callable[[list[float]], list[float]] = list) -> None:
        self._optimizer, self._agree = optimizer, agree
        self._memory = OptimizerMemory(optimizer)
        self._kept = ParametersBefore([])
        self.undone = False

    def before(self) -> None:
        """Keep the parameters; to be called before the optimizer's step."""
        held = held_parameters(self._optimizer)
        kept = self._kept.parameters
        if len(held) != len(kept) or any(
            a is not b or a.shape != c.shape or a.dtype != c.dtype or a.device != c.device
            for a, b, c in zip(held, kept, self._kept.copies, strict=True)
        ):
            self._kept = ParametersBefore(held)
        self._kept.take()

    @torch.no_grad()
    def after(self) -> None:
        """Undo the update where it is not finite; to be called after the optimizer's step."""
        parameters, copies = self._kept.parameters, self._kept.copies
        self.undone = False
        if not parameters or min(self._agree([float(self._all_finite(parameters))])) == 1:
            return
        if all(bool(copy.isfinite().all()) for copy in copies):
            torch._foreach_copy_(parameters, copies)
            self._memory.forget_non_finite()
            self.undone = True

    @staticmethod
    def _all_finite(parameters: list[Tensor]) -> bool:
        norms = torch._foreach_norm(parameters)
        if bool(torch.stack([norm.to(norms[0]) for norm in norms]).isfinite().all()):
            return True
        return all(bool(parameter.isfinite().all()) for parameter in parameters)  # squares may be too large
