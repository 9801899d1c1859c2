"""Which neuron groups an optimizer moves, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.neurons import NeuronGroup


class LearningRate:
    """The largest of some learning rates as they are now, read when it is asked for.

    Args:
        rates: Numbers, or tensors, which may lie on an accelerator and are written in place.
    """

    def __init__(self, rates: Iterable[float | Tensor]) -> None:
        self._rates = [rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in rates]

    def __float__(self) -> float:
        return max(map(float, self._rates), default=math.nan)


def held_parameters(optimizer: Any) -> list[nn.Parameter]:
    """The parameters that an optimizer, or what has parameter groups like one, holds now."""
    return [parameter for settings in optimizer.param_groups for parameter in settings["params"]]


class MovedGroups:
    """The neuron groups of which an optimizer holds a parameter; it may be given more of them during training.

    Args:
        optimizer: The optimizer.
        model: The module that holds the groups' parameters.
        groups: The groups.

    Attributes:
        groups: Those of which the optimizer holds a parameter.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, groups: Sequence[NeuronGroup]) -> None:
        self._optimizer = optimizer
        self._held = self._now()
        held = {id(p): i for i, setting in enumerate(optimizer.param_groups) for p in setting["params"]}
        numbers = {g.name: sorted({held[id(p)] for p in g.parameters(model) if id(p) in held}) for g in groups}
        self._settings_of = {name: found for name, found in numbers.items() if found}
        self.groups = tuple(group for group in groups if group.name in self._settings_of)

    @property
    def changed(self) -> bool:
        """Whether the optimizer has been given other parameters since, as where layers are unfrozen."""
        return self._held != self._now()

    def _now(self) -> tuple[int, ...]:
        return tuple(len(setting["params"]) for setting in self._optimizer.param_groups)

    def learning_rate(self, group: NeuronGroup) -> LearningRate:
        """The largest rate among the parameter groups that hold the neurons' parameters; ``nan`` if there is none."""
        settings = self._optimizer.param_groups
        return LearningRate(settings[i].get("lr", math.nan) for i in self._settings_of[group.name])
