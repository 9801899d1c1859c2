"""Neurons of a group that is too large, or too spread out, to be kept as a whole over an update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_topo.functional.update_constants import most_changed
from lightning_topo.neurons import NeuronGroup


class DrawnSample:
    """A sample of a group's neurons, drawn before each update: half those of the last that it changed most, half anew.

    Args:
        group: The group.
        model: The module that holds its parameters.
        size: Neurons in a sample, or None for all.
        seed: Of the sample's own random numbers; the global random state is not used.

    Attributes:
        groups: The group alone.
        shape: Number n of its units and D of their coordinates.
        eps: Relative spacing of the coarsest numbers that they are stored in.
        device: Where they are compared.
    """

    def __init__(self, group: NeuronGroup, model: nn.Module, size: int | None, seed: int = 0) -> None:
        parameters = group.parameters(model)
        self.groups = (group,)
        self.shape = group.n_units(model), group.dimension(model)
        self.eps = max(torch.finfo(parameter.dtype).eps for parameter in parameters)
        self.device = parameters[0].device
        self._model, self._size = model, size
        self._drawn: Tensor | None = None
        self._again = torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)

    def before(self) -> Tensor:
        """Points of a new sample, shape (size, D). Where parameters are sharded, every process enters."""
        n = self.shape[0]
        self._drawn = None if self._size is None or n <= self._size else self._draw(n, self._size)
        return self.groups[0].points(self._model, self._drawn)

    def after(self) -> Tensor:
        """Points of the same neurons after the update; every process enters."""
        return self.groups[0].points(self._model, self._drawn)

    def remember(self, before: Tensor, after: Tensor) -> None:
        """Have the half that the update changed most drawn again."""
        if self._drawn is not None:
            self._again = self._drawn[most_changed(before, after, len(before) // 2, self.eps).cpu()]

    def _draw(self, n: int, size: int) -> Tensor:
        order = torch.randperm(n, generator=self._generator)
        new = order[~torch.isin(order, self._again)]
        return torch.cat([self._again, new[: size - len(self._again)]])
