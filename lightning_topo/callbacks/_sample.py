"""Which neurons of a large group to measure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_topo.neurons import NeuronGroup


class NeuronSample:
    """A sample that looks for the neurons that decide κ.

    κ is a maximum over pairs, mostly attained by neurons that move unlike the others, and these tend to be the same
    from one update to the next. So half of each sample are those of the last one that moved farthest from its mean
    displacement, and half are drawn anew.

    Args:
        size: Neurons in a sample, or None for all.
        seed: Of the sample's own random numbers; the global random state is not used.
    """

    def __init__(self, size: int | None, seed: int = 0) -> None:
        self.size = size
        self.indices: Tensor | None = None
        self._kept = torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, group: NeuronGroup, model: nn.Module) -> Tensor:
        """Choose the neurons of the next measurement and return their points, shape (size, D)."""
        n = group.n_units(model)
        self.indices = None if self.size is None or n <= self.size else self._choose(n, self.size)
        return group.points(model, self.indices)

    def learn(self, before: Tensor, after: Tensor) -> None:
        """Keep the half that moved least like the sample as a whole."""
        if self.indices is not None:
            displacement = after - before
            unlike = (displacement - displacement.mean(0)).float().norm(dim=1).cpu()
            self._kept = self.indices[unlike.topk(len(unlike) // 2).indices]

    def _choose(self, n: int, size: int) -> Tensor:
        order = torch.randperm(n, generator=self._generator)
        fresh = order[~torch.isin(order, self._kept)]
        return torch.cat([self._kept, fresh[: size - len(self._kept)]])
