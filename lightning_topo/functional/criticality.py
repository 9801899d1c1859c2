"""κ of one update alone, for a fifth of the time of all its bi-Lipschitz constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_topo.functional._pairs import in_double, pair_blocks, resolution, resolved


def criticality(before: Tensor, update: Tensor, eps: float) -> float:
    r"""κ = max |u_i - u_j| / |p_i - p_j| over pairs i < j, as ``bi_lipschitz`` has it, but right to 1e-7.

    Args:
        before: Points before the update, shape (n, D), finite.
        update: Their displacements, same shape, in at least single precision.
        eps: Relative spacing of the numbers that the points are stored in.

    Returns:
        κ; ``nan`` where no pair can be resolved.
    """
    p, u = in_double(before), in_double(update)
    smallest = [resolution(cloud.square().sum(1), eps) for cloud in (p, p + u)]
    largest = [
        (u2 / d2).masked_fill_(~resolved(rows, d2, u2, *smallest), -1.0).max()
        for rows, (d2, u2) in pair_blocks((p - p.mean(0), u))
    ]
    kappa2 = float(torch.stack(largest).max())
    return math.sqrt(kappa2) if kappa2 >= 0 else math.nan
