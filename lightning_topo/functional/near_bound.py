"""Whether the criticality of an update may reach a bound: cheap where it is far below, exact where it is near."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from lightning_topo.functional._products import relative_error, squared_lengths, subtract_products
from lightning_topo.functional.criticality import pair_criticality
from lightning_topo.functional.double_precision import in_double
from lightning_topo.functional.exact_constants import exact_constants
from lightning_topo.functional.reaches import in_product_precision, size_unit, update_lengths
from lightning_topo.functional.update_constants import UpdateConstants, update_criticality

# Clouds of up to this many n² D are evaluated in full: about ten milliseconds on one core, and on an accelerator, where
# a search would wait for the device again and again.
_ALWAYS_EXACT = 10**8
_ALWAYS_EXACT_ON_DEVICE = 10**11
# Neurons that are always evaluated: a rate that is far too high shows among them.
_FASTEST = 64
# The most coordinates that are left out: one of so many is kept.
_MAX_STRIDE = 64
# Pairs that are cheaper evaluated than told apart by more coordinates.
_FEW = 64
# Of the coordinates that would do if all shared squared distances evenly, so many times as many are taken.
_MORE = 1.2
# Neurons among which a close distance is looked up, to know how many that are.
_SAMPLE = 256
_MAX_ROWS = 512
# A reach beyond any cloud whose coordinates are at most 2.
_FAR = 1e9
# What a pair costs alone, over what it costs in a matrix product of all pairs.
_PAIR_COST = 100


def criticality_near(before: Tensor, after: Tensor, bound: float, eps: float, enough: float = math.inf) -> float:
    r"""κ of an update where it reaches a bound, found without all distances where it stays below.

    With the update u relative to its mean and a projection P on some of the coordinates,

    $$\frac{|u_i - u_j|}{|p_i - p_j|} \le \frac{|u_i| + |u_j|}{|P p_i - P p_j|}$$

    takes a matrix product of few columns where κ takes two of all of them: the faster neurons move, the more
    coordinates. The fastest neurons are evaluated first, and all pairs for which the right-hand side reaches the bound
    after them. Small clouds are evaluated in full.

    Args:
        before: Points before the update, shape (n, D), finite.
        after: The same points after it, same shape.
        bound: A value of κ.
        eps: Relative spacing of the numbers that the points are stored in.
        enough: A value of κ that need not be told from larger ones.

    Returns:
        κ, or some κ of a part of the pairs that is at least ``enough``; ``nan`` where κ is certainly below the bound,
        or no pair is resolved.
    """
    return criticalities_near(before[None], after[None], bound, eps, enough)[0]


def criticalities_near(
    before: Tensor, after: Tensor, bound: float, eps: float, enough: float = math.inf
) -> list[float]:
    """``criticality_near`` of clouds of one shape, (G, n, D); small ones take no more operations than one of them."""
    _, n, dimension = before.shape
    if always_exact(n, dimension, before.device):
        kappas = _criticalities(before, after, eps)
    else:
        kappas = [_Search(p, q, bound, eps, enough)() for p, q in zip(before, after, strict=True)]
    return [kappa if kappa >= bound else math.nan for kappa in kappas]


def always_exact(n: int, dimension: int, device: torch.device) -> bool:
    """Whether clouds of n points are evaluated in full, for a search would take longer."""
    return n * n * dimension <= (_ALWAYS_EXACT if device.type == "cpu" else _ALWAYS_EXACT_ON_DEVICE)


def _criticalities(before: Tensor, after: Tensor, eps: float) -> list[float]:
    """κ of each cloud, 0 where no pair is resolved."""
    rows = update_criticality(before, after, eps).packed().tolist()
    return settled_criticalities(rows, lambda: (before, after), eps)


def settled_criticalities(
    rows: Sequence[Sequence[float]], clouds: Callable[[], tuple[Tensor, Tensor]], eps: float
) -> list[float]:
    """κ of each cloud from what ``update_criticality`` found, 0 where no pair is resolved.

    Args:
        rows: Its table, read.
        clouds: Gives the points before and after the update, shape (G, n, D), where the table leaves a doubt.
        eps: Relative spacing of the numbers that the points are stored in.
    """
    kappas = list[float]()
    for index, (constants, _, certain) in enumerate(UpdateConstants.unpack(rows)):
        kappa = constants.criticality
        if not certain:
            before, after = clouds()
            kappa = exact_constants(before[index], after[index], eps).criticality
        kappas.append(0.0 if math.isnan(kappa) else kappa)
    return kappas


class _Search:
    """The search of ``criticality_near`` in one large cloud."""

    def __init__(self, before: Tensor, after: Tensor, bound: float, eps: float, enough: float) -> None:
        lengths, order = update_lengths(before[None], after[None])[0].sort(descending=True)
        self._before, self._after, self._order = before, after, order
        # Of the length of the update, the part that a distance must have for its ratio to stay below the bound.
        self._unit = float(size_unit(before[None]))
        # Those beyond the cloud's diameter need not be told apart, and their squares would not fit.
        self._reach = (lengths / bound / self._unit).clamp_max_(_FAR)
        self._eps, self._enough = eps, enough

    def __call__(self) -> float:
        kappa = self._among(self._order[:_FASTEST])
        if kappa < self._enough:
            kappa = max(kappa, self._largest(self._suspects()))
        return kappa

    def _points(self, part: Tensor) -> Tensor:
        """A part of the cloud before the update, of a size whose squares fit."""
        return in_product_precision(part) / self._unit

    def _among(self, units: Tensor) -> float:
        return _criticalities(self._before[None, units], self._after[None, units], self._eps)[0]

    def _suspects(self) -> Tensor:
        """The pairs whose ratio may reach the bound, the fastest first, shape (k, 2)."""
        screen = cache(lambda stride: _Screen(self._points(self._before[:, ::stride])[self._order], self._reach))
        pairs, start = [self._order.new_empty(0, 2)], 0
        moved = int(self._reach.count_nonzero())  # those that stay are as far from each other as before
        while start < moved:
            rows = slice(start, start + min(max(start, _FASTEST), _MAX_ROWS))
            first = max(start, _FASTEST)  # the fastest among themselves are evaluated
            stride = self._stride(float(self._reach[start] + self._reach[first : first + 1].sum()))
            hits = screen(stride).hits(rows, first)
            while stride > 1 and int(hits.sum()) > _FEW:
                stride = max(1, stride // 4)
                hits = screen(stride).hits(rows, first)
            i, j = hits.nonzero(as_tuple=True)
            i, j = i + start, j + first
            pairs.append(self._order[torch.stack([i, j], dim=1)[i < j]])  # within the rows each pair is there twice
            start = rows.stop
        return torch.cat(pairs)

    def _stride(self, reach: float) -> int:
        """A power of two that probably leaves coordinates enough to tell that all distances are above ``reach``."""
        ratio = self._closest / max(reach, 1e-12)
        return 2 ** int(math.log2(min(max(ratio**2 / _MORE, 1.0), _MAX_STRIDE)))

    @cached_property
    def _closest(self) -> float:
        n = len(self._before)
        sample = self._points(self._before[:: max(1, n // _SAMPLE)]).float()
        # kthvalue is not deterministic on CUDA before torch 2.10, and then refused where that is asked for.
        distances = torch.pdist(sample).sort().values
        return float(distances[len(distances) // 100])

    def _largest(self, pairs: Tensor) -> float:
        """The largest κ of some pairs, or one that is enough."""
        units, where = pairs.unique(return_inverse=True)
        if len(pairs) > len(units) ** 2 / _PAIR_COST:
            return self._among(units)
        before = in_double(self._before[units])
        return pair_criticality(before, in_double(self._after[units]) - before, where, self._eps, self._enough)


class _Screen:
    """A cloud in some of its coordinates, to tell pairs that are farther apart than both reach.

    With the reach of a neuron as one more coordinate, |x - y|² - (a + b)² is one matrix product.
    """

    def __init__(self, points: Tensor, reach: Tensor) -> None:
        x = points - points.mean(0)
        reach = reach.to(x.dtype)
        # Less what rounding may have added.
        error = relative_error(x.dtype, x.shape[1] + 1, x.device.type)
        self._rest = squared_lengths(x).mul_(1 - error) - reach.square().mul_(1 + error)
        self._x = torch.cat([x, reach[:, None]], dim=1)

    def hits(self, rows: slice, first: int) -> Tensor:
        """Whether neurons of the rows, and others from the ``first`` on, reach as far as they are apart."""
        excess = (self._rest[rows, None] + self._rest[None, first:])[None]
        subtract_products(excess, self._x[None, rows], self._x[None, first:])
        if first == rows.start:
            excess[0].diagonal().fill_(math.inf)  # to oneself
        return excess[0] <= 0
