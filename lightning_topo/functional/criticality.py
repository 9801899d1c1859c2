"""κ of one update alone, for a fraction of the time of all its bi-Lipschitz constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_topo.functional._pairs import (
    for_products,
    from_mean,
    not_lost,
    pair_blocks,
    resolution,
    resolved,
)
from lightning_topo.functional.double_precision import in_double

# Clouds of up to this many n² D are compared as they are: the screening saves nothing there.
_SMALL = 2**24
# The fastest of so many neurons are screened first.
_SHARE = 8
_FEW = 64
# What a pair costs alone, over what it costs in a matrix product of all pairs.
_PAIR_COST = 100
# A matrix product of D terms is right to single precision's rounding times sqrt(D), and this far above.
_ROUNDING = 16
# Squares between this and its inverse are far from where single precision ends.
_LEAST = 1e-30
# Blocks stay in a core's cache; on an accelerator the calls cost more than the memory.
_BLOCK_ROWS = 256
_DEVICE_BLOCK_ELEMENTS = 2**24
_GATHER_ELEMENTS = 2**22


def criticality(before: Tensor, update: Tensor, eps: float) -> float:
    r"""κ = max |u_i - u_j| / |p_i - p_j| over pairs i < j, as ``bi_lipschitz`` has it, but right to 1e-7.

    In large clouds, with κ₀ that of the fastest eighth of the neurons, one matrix product in single precision tells the
    pairs for which

    $$|u_i - u_j|^2 - \kappa_0^2 |p_i - p_j|^2 \ge 0$$

    up to its rounding, and only these are evaluated.

    Args:
        before: Points before the update, shape (n, D), finite.
        update: Their displacements, same shape, in at least single precision.
        eps: Relative spacing of the numbers that the points are stored in.

    Returns:
        κ; ``nan`` where no pair can be resolved.
    """
    n, dimension = before.shape
    if n > _FEW and n * n * dimension > _SMALL:
        fastest = from_mean(update).topk(n // _SHARE).indices
        kappa = criticality(before[fastest], update[fastest], eps)
        pairs = _pairs_above(before, update, kappa) if kappa > 0 else None
        if pairs is not None:
            return max(kappa, pair_criticality(before, update, pairs, eps))
    return _all_pairs(before, update, eps)


def pair_criticality(before: Tensor, update: Tensor, pairs: Tensor, eps: float, enough: float = math.inf) -> float:
    """The largest |u_i - u_j| / |p_i - p_j| of some pairs, 0 where none is resolved; one of ``enough`` ends the search.

    Args:
        before: Points before the update, shape (n, D).
        update: Their displacements, same shape.
        pairs: Indices, shape (k, 2).
        eps: Relative spacing of the numbers that the points are stored in.
        enough: A value that need not be told from larger ones.
    """
    kappa = 0.0
    for part in pairs.split(max(1, _GATHER_ELEMENTS // before.shape[1])) if len(pairs) else ():
        units, where = part.unique(return_inverse=True)
        p, u = in_double(before[units]), in_double(update[units])
        i, j = where.to(p.device).unbind(1)
        least_before, least_after = (resolution(cloud.square().sum(1), eps) for cloud in (p, p + u))
        d2, u2 = ((cloud[i] - cloud[j]).square_().sum(1) for cloud in (p, u))
        shown = not_lost(d2, u2, least_before[i] + least_before[j], least_after[i] + least_after[j])
        kappa = max(kappa, math.sqrt(float((u2 / d2).where(shown, 0.0).max())))
        if kappa >= enough:
            break
    return kappa


def _all_pairs(before: Tensor, update: Tensor, eps: float) -> float:
    p, u = in_double(before), in_double(update)
    smallest = [resolution(cloud.square().sum(1), eps) for cloud in (p, p + u)]
    largest = [
        (u2 / d2).masked_fill_(~resolved(rows, d2, u2, *smallest), -1.0).max()
        for rows, (d2, u2) in pair_blocks((p - p.mean(0), u))
    ]
    kappa2 = float(torch.stack(largest).max())
    return math.sqrt(kappa2) if kappa2 >= 0 else math.nan


def _pairs_above(before: Tensor, update: Tensor, kappa: float) -> Tensor | None:
    """All pairs i < j whose ratio is at least κ, and some below, shape (k, 2).

    None where these are too many to evaluate one by one, or where single precision does not hold their squares.
    """
    n, dimension = before.shape
    before = before.to(torch.promote_types(before.dtype, torch.float32))
    left = for_products(torch.cat([update - update.mean(0), before - before.mean(0)], dim=1).float())
    weights = left.new_ones(2 * dimension)
    weights[dimension:] = -(kappa**2)
    u2, p2 = (torch.linalg.vector_norm(part, dim=1).square() for part in left.split(dimension, dim=1))
    p2 *= kappa**2
    if not (float(u2.max()) > _LEAST and float((u2 + p2).max()) < 1 / _LEAST):
        return None
    error = _ROUNDING * torch.finfo(torch.float32).eps * math.sqrt(dimension)
    rest = u2 - p2 + error * (u2 + p2)
    right, found, n_found = left * weights, [], 0
    size = _BLOCK_ROWS if left.device.type == "cpu" else max(_BLOCK_ROWS, _DEVICE_BLOCK_ELEMENTS // n)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        excess = (rest[rows, None] + rest[None, start:]).addmm_(left[rows], right[start:].T, alpha=-2.0)
        found.append((excess >= 0).triu_(1).nonzero() + start)
        n_found += len(found[-1])
        if n_found > n * n / _PAIR_COST:
            return None
    return torch.cat(found)
