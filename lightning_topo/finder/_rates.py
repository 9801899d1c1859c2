"""Learning rates of optimizers and schedulers, moved together by a common factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.finder._attribute import LearningRateAttribute
from lightning_topo.finder._optimizer_state import nested

# Rates that a scheduler keeps in the parameter groups: where it starts, peaks and ends.
_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")
# The same in lists of its own, one entry a group.
_SCHEDULER_KEYS = ("base_lrs", "max_lrs", "_last_lr")


class BaseRates:
    """The base rate of every parameter group: the one that schedulers scale, such as the peak of a warm-up.

    Args:
        optimizers: The run's optimizers.
        schedulers: The run's schedulers.
        base_lr: The model's own base rate, of which the groups' rates are multiples; default the first group's.

    Raises:
        ValueError: When a group has no rate that can be set, or one that is not positive.
    """

    def __init__(self, optimizers: list[Optimizer], schedulers: list[Any], base_lr: float | None = None) -> None:
        self._optimizers, self._schedulers = optimizers, schedulers
        self._rates = {id(optimizer): _base_rates(optimizer, schedulers) for optimizer in optimizers}
        first = next((rate for rates in self._rates.values() for rate in rates if rate > 0), None)
        if base_lr is None and first is None:
            raise ValueError("expected an optimizer with a positive learning rate, but every group's is 0")
        self.first_seen: dict[int, list[float]] = {}
        self.base_lr = float(first if base_lr is None else base_lr)  # type: ignore[arg-type]

    @classmethod
    def of_run(cls, trainer: Any, attribute: LearningRateAttribute | None) -> BaseRates:
        """Those of a Trainer's optimizers, relative to the model's attribute where there is one."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        return cls(trainer.optimizers, schedulers, None if attribute is None else float(attribute.get()))

    def of(self, optimizer: Optimizer) -> list[float]:
        """The base rates of an optimizer's parameter groups."""
        return self._rates[id(optimizer)]

    def hold(self, optimizer: Optimizer, lr: float, factors: Sequence[float] | None = None) -> None:
        """Let the next step of ``optimizer`` be made at the base rate ``lr``, whatever its schedulers say.

        What the training code had set at its first step is noted in ``first_seen``.

        Args:
            optimizer: The optimizer.
            lr: The base rate, in units of the model's own.
            factors: Those by which a schedule multiplies it, one a parameter group; default 1.
        """
        self.first_seen.setdefault(id(optimizer), [float(group["lr"]) for group in optimizer.param_groups])
        for i, (group, base) in enumerate(zip(optimizer.param_groups, self._rates[id(optimizer)], strict=True)):
            _set(group, "lr", lr * (base / self.base_lr) * (1.0 if factors is None else factors[i]))

    def move_to(self, lr: float) -> None:
        """Make ``lr`` the base rate from here on, for all groups and schedulers, each at its present phase."""
        for change in self.changes(lr):
            change()

    def changes(self, lr: float) -> list[Callable[[], None]]:
        """What ``move_to`` does, in steps that may be repeated."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        entries = [(group, key) for group in groups for key in (_GROUP_KEYS if "initial_lr" in group else ("lr",))]
        entries = [(group, key) for group, key in entries if group.get(key) is not None]
        schedulers = [inner for outer in self._schedulers for inner in nested(outer)]
        lists = [getattr(scheduler, key, None) for scheduler in schedulers for key in _SCHEDULER_KEYS]
        # By identity: a composed scheduler shares lists with its children.
        shared = {id(rates): rates for rates in lists if isinstance(rates, list)}.values()
        return [
            *(
                partial(_set, group, key, lr * (float(group[key]) / self.base_lr))
                for group, key in entries
                if group.get(key) is not None
            ),
            *(partial(_replace, rates, [lr * (rate / self.base_lr) for rate in rates]) for rates in shared),
        ]


def _base_rates(optimizer: Optimizer, schedulers: list[Any]) -> list[float]:
    cyclic = next((s for s in schedulers if s.optimizer is optimizer and hasattr(s, "max_lrs")), None)
    rates = list(cyclic.max_lrs) if cyclic else [_group_rate(group) for group in optimizer.param_groups]
    for rate in rates:
        if not (isinstance(rate, (int, float, Tensor)) and math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"expected every parameter group of {type(optimizer).__name__} to have a learning rate 'lr' that can "
                f"be set, but got {rate!r}; the critical learning rate of an optimizer that sets its own is not defined"
            )
    return [float(rate) for rate in rates]


def _group_rate(group: dict[str, Any]) -> Any:
    if group.get("initial_lr") is not None:
        return group.get("max_lr", group["initial_lr"])  # OneCycle starts far below the rate that it is built for
    return group.get("lr")


def _replace(rates: list[Any], others: list[Any]) -> None:
    rates[:] = others


def _set(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
