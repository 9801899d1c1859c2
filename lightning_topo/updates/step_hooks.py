"""Being called right before and after each optimizer step: the one place that registers hooks on optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

StepHook = Callable[[int, Optimizer], None]


class StepHooks:
    """Calls functions around the steps of some optimizers, with the optimizer's number and itself.

    They are called once a step, also in manual optimization and by LBFGS, not where a gradient scaler leaves the step
    out. Those that are attached first are called first.

    Args:
        before: Called before each step, where the parameters are still as they were.
        after: Called after it.
        sets_rates: Whether ``before`` sets the learning rates of the step, which whoever compares them has to know.
    """

    def __init__(self, before: StepHook | None = None, after: StepHook | None = None, sets_rates: bool = False) -> None:
        self._before, self._after, self.sets_rates = before, after, sets_rates
        self._handles: list[Any] = []
        self.optimizers: list[Optimizer] = []

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Listen to these optimizers, and no more to those of before."""
        self.release()
        self.optimizers = list(optimizers)
        for index, optimizer in enumerate(optimizers):
            if self._before is not None:
                self._handles.append(optimizer.register_step_pre_hook(_StepHook(self, self._before, index)))
            if self._after is not None:
                self._handles.append(optimizer.register_step_post_hook(_StepHook(self, self._after, index)))

    def attached_to(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether these are the very optimizers that it listens to."""
        return self.optimizers == list(optimizers)

    def release(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.optimizers = [], []


class _StepHook:
    """One hook on one optimizer; a class, so that whoever sets a run's listeners aside can tell ours."""

    def __init__(self, owner: StepHooks, act: StepHook, index: int) -> None:
        self.owner, self._act, self._index = owner, act, index

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._act(self._index, optimizer)


def is_step_hook(hook: Any) -> bool:
    """Whether a hook on an optimizer is one of ours."""
    return isinstance(hook, _StepHook)


def rates_are_controlled(optimizer: Optimizer) -> bool:
    """Whether one of our hooks sets the learning rates of the optimizer's steps."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()  # some wrappers take none
    return any(isinstance(hook, _StepHook) and hook.owner.sets_rates for hook in hooks)
