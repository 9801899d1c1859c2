"""The full rates of an optimizer's parameter groups, which a schedule scales, and what cannot be controlled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer, Rprop

# Keys of parameter groups by which optimizers that find their own step are known (Prodigy, D-Adaptation).
_OWN_STEP = ("d0", "d_coef", "growth_rate")


def require_controllable(optimizer: Optimizer) -> None:
    """Raise a TypeError, with the reason, where an update is not proportional to a learning rate that can be set."""
    name = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise TypeError(f"expected an optimizer of small steps, got {name}, whose memory is of whole steps at one rate")
    if isinstance(optimizer, Rprop):
        raise TypeError(f"expected an optimizer with a learning rate, got {name}, which only starts from one")
    for group in optimizer.param_groups:
        if "d" in group and any(key in group for key in _OWN_STEP):
            raise TypeError(
                f"expected an optimizer with a learning rate, got {name}, which finds its own step; use it alone"
            )
        if group.get("relative_step"):
            raise TypeError(
                f"expected a learning rate that can be set, got {name}(relative_step=True); pass False and an lr"
            )
        rate = group.get("lr")
        if not isinstance(rate, (int, float, Tensor)) or not math.isfinite(float(rate)) or float(rate) < 0:
            raise TypeError(
                f"expected a learning rate 'lr' of at least 0 in each parameter group of {name}, got {rate!r}"
            )


def base_rates(optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> list[float]:
    """The rate of each parameter group that schedulers scale: where they start, or the peak of one that rises to it.

    Raises:
        ValueError: All are 0.
    """
    cyclic = next((s for s in schedulers if s.optimizer is optimizer and hasattr(s, "max_lrs")), None)
    rates = list(map(float, cyclic.max_lrs)) if cyclic else [_of_group(group) for group in optimizer.param_groups]
    if not any(rate > 0 for rate in rates):
        raise ValueError(
            f"expected a positive learning rate in some parameter group of {type(optimizer).__name__}, got {rates}; "
            "their ratio is kept, and any positive rate will do where there is one group"
        )
    return rates


def _of_group(group: dict[str, Any]) -> float:
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a parameter group's rate; a tensor is written in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
