"""Whether the criticality of an update may reach a bound: cheap where it is far below, exact where it is near."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from lightning_topo.functional._products import (
    largest,
    power_of_two,
    product_dtype,
    relative_error,
    row_blocks,
    squared_lengths,
    subtract_products,
)
from lightning_topo.functional.criticality import pair_criticality
from lightning_topo.functional.double_precision import in_double
from lightning_topo.functional.exact_constants import exact_constants
from lightning_topo.functional.update_constants import UpdateConstants, update_criticality

# Lengths are made larger, and distances smaller, by more than rounding can have made them smaller or larger.
_SLACK = 5e-5
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


def nearest_distances(points: Tensor) -> Tensor:
    """Distance of each point to the nearest other of its cloud, not above the true one; nothing is read back.

    Args:
        points: Clouds of finite points, shape (G, n, D).

    Returns:
        Distances, shape (G, n); ``inf`` in a cloud of one point.
    """
    groups, n, dimension = points.shape
    x = _double_or_single(points)
    unit = _unit(x)
    x = x / unit
    x.sub_(x.mean(1, keepdim=True))
    size = _unit(x)
    x.div_(size)
    lengths = squared_lengths(x)
    error = relative_error(x.dtype, dimension, x.device.type)
    nearest = x.new_full((groups, n), math.inf)
    for rows in row_blocks(groups, n, x.device):
        columns = slice(rows.start, None)
        squared = (lengths[:, rows, None] + lengths[:, None, columns]).mul_(1 - error)
        subtract_products(squared, x[:, rows], x[:, columns])
        squared.diagonal(dim1=1, dim2=2).fill_(math.inf)
        for part, axis in ((nearest[:, rows], 2), (nearest[:, columns], 1)):
            torch.minimum(part, squared.amin(axis), out=part)
    return nearest.clamp_min_(0.0).sqrt_().mul_(size[..., 0] * (1 - _SLACK)).mul_(unit[..., 0])


def update_lengths(before: Tensor, after: Tensor) -> Tensor:
    """How far each point moves relative to the mean movement of its cloud, not below the true length and right to 1e-4.

    Args:
        before: Finite points before the update, shape (G, n, D).
        after: The same after it.

    Returns:
        Lengths, shape (G, n); nothing is read back.
    """
    dtype = product_dtype(before, after)
    unit = torch.maximum(_unit(before), _unit(after)).to(dtype)
    update = (after / unit).sub_(before / unit)
    rounding = squared_lengths(update).sqrt_().mul_(torch.finfo(dtype).eps)
    update.sub_(update.mean(1, keepdim=True))
    size = _unit(update)
    lengths = squared_lengths(update.div_(size)).sqrt_().mul_(size[..., 0] * (1 + _SLACK))
    return lengths.add_(rounding).mul_(unit[..., 0])


def displacement_lengths(update: Tensor) -> Tensor:
    """The same from displacements, each rounded once in at least single precision.

    The bound on |u_i - u_j| that two lengths make holds about any centre, so that the mean need not be exact.

    Args:
        update: Displacements, shape (G, n, D), float32 or float64.

    Returns:
        Lengths, shape (G, n), not below the true ones; right to 1e-4, and to what rounding leaves of the longest.
        Nothing is read back.
    """
    size = _unit(update)
    rounding = size[..., 0] * (4 * math.sqrt(update.shape[-1]) * torch.finfo(update.dtype).eps)
    centred = (update - update.mean(1, keepdim=True)).div_(size)
    return torch.linalg.vector_norm(centred, dim=-1).mul_(size[..., 0] * (1 + _SLACK)).add_(rounding)


def reaches(lengths: Tensor, drift: Tensor | float, nearest: Tensor, bound: float | Tensor) -> Tensor:
    r"""How near the criticality of an update may come to a bound, from distances of an earlier time.

    With positions $p^0$ of that time, the way s since and the update u, both relative to their mean, and the
    bound b,

    $$\frac{|u_i - u_j|}{b |p_i - p_j|} \le \frac{|u_i| + |u_j|}{b (|p^0_i - p^0_j| - |s_i| - |s_j|)}$$

    reaches 1 only where $(|u_i| + b |s_i| + |u_j| + b |s_j|) / (b |p^0_i - p^0_j|)$ does, and is below that
    where it does not.

    Args:
        lengths: Lengths of the update, ``update_lengths``, shape (G, n).
        drift: The same of the way since, shape (G, n), or 0.
        nearest: ``nearest_distances`` at that time, shape (G, n).
        bound: The bound, above 0; it may be a tensor of one number.

    Returns:
        An upper bound of κ / bound where it is below 1, shape (G,); at least 1 where κ may reach the bound.
    """
    reach = lengths / bound + drift
    farthest = reach.amax(-1, keepdim=True)
    # Points that stay where they are may be as close as they like.
    ratio = ((reach + farthest) / nearest).masked_fill_(farthest == 0, 0.0)
    return ratio.amax(-1)


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


def _double_or_single(points: Tensor) -> Tensor:
    return points.detach().to(product_dtype(points))


def _unit(points: Tensor) -> Tensor:
    """The power of two below the largest coordinate of each cloud, shape (G, 1, 1), in at least single precision."""
    size = largest(points.detach(), (1, 2))[:, None, None]
    return power_of_two(size.to(torch.promote_types(size.dtype, torch.float32)))


class _Search:
    """The search of ``criticality_near`` in one large cloud."""

    def __init__(self, before: Tensor, after: Tensor, bound: float, eps: float, enough: float) -> None:
        lengths, order = update_lengths(before[None], after[None])[0].sort(descending=True)
        self._before, self._after, self._order = before, after, order
        # Of the length of the update, the part that a distance must have for its ratio to stay below the bound.
        self._unit = float(_unit(before[None]))
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
        return _double_or_single(part) / self._unit

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
