"""State and settings of an optimizer, put back with their identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_topo.finder._kept_attributes import KeptAttributes


class OptimizerState:
    """State and parameter groups of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._attributes = KeptAttributes(optimizer)
        self._state = optimizer.state
        self._content = dict(optimizer.state)
        self._groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        # A rate may be a tensor, which is written in place.
        rates = [group.get("lr") for group in optimizer.param_groups]
        self._rates = [(rate, rate.clone()) for rate in rates if isinstance(rate, Tensor)]

    def branch(self) -> None:
        """Let the optimizer work on copies of its state."""
        for key, value in self._content.items():
            self._state[key] = _cloned(value)

    def restore(self) -> None:
        """Put everything back."""
        self._attributes.restore()
        self._state.clear()
        self._state.update(self._content)
        for group, values, params in self._groups:
            values["params"][:] = params
            group.clear()
            group.update(values)
        for rate, value in self._rates:
            rate.copy_(value)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cloned(item) for item in value)
    return value


def nested(item: Any) -> Iterator[Any]:
    """An optimizer or scheduler, and those of its kind that it wraps (SAM, Lookahead; SequentialLR)."""
    yield item
    kind = Optimizer if isinstance(item, Optimizer) else LRScheduler
    for value in vars(item).values():
        for inner in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(inner, kind) and inner is not item:
                yield from nested(inner)
