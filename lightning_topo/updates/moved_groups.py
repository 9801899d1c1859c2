"""Which neuron groups an optimizer moves, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

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


class MovedGroups:
    """The neuron groups of which an optimizer holds a parameter; it may be given more of them during training.

    Args:
        optimizer: The optimizer.
        parameters_of: The parameters that hold each group's coordinates, by the group's name.
    """

    def __init__(self, optimizer: Optimizer, parameters_of: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._optimizer = optimizer
        settings = optimizer.param_groups
        self._held = self._now()
        held = {id(p): i for i, setting in enumerate(settings) for p in setting["params"]}
        numbers = {
            name: sorted({held[id(p)] for p in parameters if id(p) in held})
            for name, parameters in parameters_of.items()
        }
        self._settings_of = {name: found for name, found in numbers.items() if found}

    def __contains__(self, group: NeuronGroup) -> bool:
        """Whether the optimizer holds a parameter of the group."""
        return group.name in self._settings_of

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
