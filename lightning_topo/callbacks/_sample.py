"""Which neurons of a large group to measure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_topo.functional._screening import most_changed
from lightning_topo.neurons import NeuronGroup

# Groups of up to this many numbers (1 GiB in single precision) are kept over the update.
_MOST_KEPT = 2**28
# Coordinates of a compared pair that take as long as one pair of the search, or as one number copied.
_COORDINATES_PER_NUMBER = 100


class NeuronSample:
    """The neurons of a group that decide its bi-Lipschitz constants, at most so many.

    The constants are extremes over pairs, mostly attained by close neurons and by those that move unlike the others,
    and which these are changes from one update to the next. So the points of all neurons are kept over the update, and
    the sample is chosen after it. Of a group that is too large to be kept, the sample is drawn before the update: half
    of it those that the last sample would choose among itself, and half anew.

    Args:
        group: The group.
        size: Neurons in a sample, or None for all.
        keep_all: Whether the points of all neurons may be kept.
        seed: Of the sample's own random numbers; the global random state is not used.
    """

    def __init__(self, group: NeuronGroup, size: int | None, keep_all: bool = True, seed: int = 0) -> None:
        self.group = group
        self.size = size
        self.keep_all = keep_all
        self._shape: tuple[int, int] | None = None
        self._drawn: Tensor | None = None
        self._again = torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)

    def work(self, model: nn.Module) -> int:
        """What a measurement costs: numbers copied, pairs searched, and pairs compared."""
        n, dimension = self._shape_in(model)
        compared = n if self.size is None else min(n, self.size)
        searched = n if compared < n else 0
        return n * dimension + n * searched + compared**2 * dimension // _COORDINATES_PER_NUMBER

    def before(self, model: nn.Module) -> Tensor:
        """Points before the update, of all neurons or of the sample drawn now."""
        n, dimension = self._shape_in(model)
        self._drawn = None
        if self.size is not None and n > self.size and not (self.keep_all and n * dimension <= _MOST_KEPT):
            self._drawn = self._draw(n, self.size)
        return self.group.points(model, self._drawn)

    def after(self, model: nn.Module) -> Tensor:
        """Points after the update, of the same neurons."""
        return self.group.points(model, self._drawn)

    def chosen(self, before: Tensor, after: Tensor, eps: float | None = None) -> tuple[Tensor, Tensor]:
        """Points of the sample before and after the update, shape (size, D) each, among those that were read."""
        if self._drawn is not None:
            self._again = self._drawn[most_changed(before, after, len(before) // 2, eps).cpu()]
        elif self.size is not None and len(before) > self.size:
            indices = most_changed(before, after, self.size, eps)
            return before[indices], after[indices]
        return before, after

    def _shape_in(self, model: nn.Module) -> tuple[int, int]:
        """Number of neurons n and of their coordinates D."""
        if self._shape is None:
            self._shape = self.group.n_units(model), self.group.dimension(model)
        return self._shape

    def _draw(self, n: int, size: int) -> Tensor:
        order = torch.randperm(n, generator=self._generator)
        fresh = order[~torch.isin(order, self._again)]
        return torch.cat([self._again, fresh[: size - len(self._again)]])
