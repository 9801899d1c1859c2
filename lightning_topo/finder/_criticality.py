"""Criticality of one neuron group's updates during a search, exact where it matters and cheap elsewhere."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from lightning_topo.finder._weights import Slices, WeightsBefore
from lightning_topo.functional._pairs import for_products, in_double
from lightning_topo.functional.criticality import criticality, pair_criticality
from lightning_topo.neurons import NeuronGroup

# Clouds of up to this many n² D are always evaluated in full: about ten milliseconds on one core.
_ALWAYS_EXACT = 10**8
# Neurons that are always evaluated: a rate that is far too high shows among them.
_FASTEST = 64
# The most coordinates that are left out: every so manieth is kept.
_MAX_STRIDE = 64
# Pairs that are cheaper evaluated than told apart by more coordinates.
_FEW = 64
# Of the coordinates that would do if all shared squared distances evenly, so many times as many are taken.
_MORE = 1.2
# Neurons among which a close distance is looked up, to know how many that are.
_SAMPLE = 256
# Error allowed for squared distances that come from a matrix product, relative to the points' squared norms: far above
# that of single precision, and far below what would make the bound useless. The same for how far neurons move.
_ERROR = 1e-4
_MAX_ROWS = 512
# What a pair costs alone, over what it costs in a matrix product of all pairs.
_PAIR_COST = 100


class CriticalityMeter:
    r"""Criticality of the updates of one neuron group, exact in whether it reaches 1.

    With the update u and a projection P on some of the coordinates,

    .. math:: \frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|P p_i - P p_j|}

    takes a matrix product of few columns where κ itself takes three of all of them: the faster neurons move, the more
    coordinates. The fastest neurons are always evaluated, and where they stay below 1, all pairs whose bound reaches 1.
    So whether κ >= 1 is exact, and κ itself is a lower bound, the largest over the pairs that were evaluated. Small
    clouds are evaluated in full.

    Args:
        model: The module that holds the parameters.
        group: The group.
        weights: The copies of its parameters, among others, from before the update.
    """

    def __init__(self, model: nn.Module, group: NeuronGroup, weights: WeightsBefore) -> None:
        self.group = group
        self._slices, self._weights = Slices(model, group), weights
        self._eps = max(torch.finfo(parameter.dtype).eps for parameter in self._slices.parameters)
        n, dimension = self._slices.shape
        self._screened = n * n * dimension > _ALWAYS_EXACT
        self._closest: float | None = None

    def criticality(self) -> float:
        """κ of the update; ``inf`` when a coordinate is not finite, 0 when no pair can be resolved."""
        lengths = self._slices.moved(self._weights)
        if not bool(lengths.isfinite().all()):
            return math.inf
        if not self._screened:
            return self._among(None)
        lengths, order = lengths.mul_(1 + _ERROR).sort(descending=True)
        kappa = self._among(order[:_FASTEST])
        if kappa < 1:
            kappa = max(kappa, self._largest(self._suspects(lengths, order)))
        return kappa

    def _update(self, units: Tensor | None) -> tuple[Tensor, Tensor]:
        """These neurons, default all, before the update, and their displacements, shapes (n, D)."""
        before, after = self._slices.before(self._weights, units), self._slices.now(units)
        before = in_double(before)
        return before, in_double(after) - before

    def _among(self, units: Tensor | None) -> float:
        """κ over all pairs of these neurons, default all."""
        before, update = self._update(units)
        kappa = criticality(before, update, self._eps) if len(before) > 1 else math.nan
        return 0.0 if math.isnan(kappa) else kappa

    def _suspects(self, lengths: Tensor, order: Tensor) -> Tensor:
        """The pairs whose bound reaches 1, the fastest first, shape (k, 2), of neurons ordered by how far they move."""
        screen = cache(lambda stride: _Screen(self._slices.projected(self._weights, stride)[order], lengths))
        pairs, start = [order.new_empty(0, 2)], 0
        moved = int(lengths.count_nonzero())  # those that stay are as far from each other as before
        while start < moved:
            rows = slice(start, start + min(max(start, _FASTEST), _MAX_ROWS))
            first = max(start, _FASTEST)  # the fastest among themselves are evaluated
            stride = self._stride(float(lengths[start] + lengths[first : first + 1].sum()))
            hits = screen(stride).hits(rows, first)
            while stride > 1 and int(hits.sum()) > _FEW:
                stride = max(1, stride // 4)
                hits = screen(stride).hits(rows, first)
            i, j = hits.nonzero(as_tuple=True)
            i, j = i + start, j + first
            pairs.append(order[torch.stack([i, j], dim=1)[i < j]])  # within the rows each pair is there twice
            start = rows.stop
        return torch.cat(pairs)

    def _stride(self, reach: float) -> int:
        """A power of two that probably leaves coordinates enough to tell that all distances are above ``reach``."""
        if self._closest is None:
            n = self._slices.shape[0]
            sample = torch.arange(0, n, max(1, n // _SAMPLE), device=self._slices.parameters[0].device)
            distances = torch.pdist(self._slices.before(self._weights, sample).float())
            # kthvalue is not deterministic on CUDA before torch 2.10, and then refused where that is asked for.
            self._closest = float(distances.sort().values[len(distances) // 100])
        ratio = self._closest / max(reach, 1e-12)
        return 2 ** int(math.log2(min(max(ratio**2 / _MORE, 1.0), _MAX_STRIDE)))

    def _largest(self, pairs: Tensor) -> float:
        """The largest κ of some pairs, or one that is at least 1."""
        units, where = pairs.unique(return_inverse=True)
        if len(pairs) > len(units) ** 2 / _PAIR_COST:
            return self._among(units)
        return pair_criticality(*self._update(units), where, self._eps, enough=1.0)


class _Screen:
    """A cloud in some of its coordinates, to tell pairs that are farther apart than both move.

    With the length that a neuron moves as one more coordinate, |x - y|² - (a + b)² is one matrix product.
    """

    def __init__(self, points: Tensor, lengths: Tensor) -> None:
        x = for_products(points)
        x = x - x.mean(0)
        lengths = lengths.to(x.dtype)
        # Less what rounding may have added.
        self._rest = x.square().sum(1).mul_(1 - _ERROR) - lengths.square().mul_(1 + _ERROR)
        self._x = torch.cat([x, lengths[:, None]], dim=1)

    def hits(self, rows: slice, first: int) -> Tensor:
        """Whether neurons of the rows, and others from the ``first`` on, move as far as they are apart."""
        rest = self._rest[rows, None] + self._rest[None, first:]
        excess = rest.addmm_(self._x[rows], self._x[first:].T, alpha=-2.0)
        if first == rows.start:
            excess.diagonal().fill_(math.inf)  # to oneself
        return excess <= 0
