"""Bi-Lipschitz constants of an update by double precision throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._pairs import pair_blocks, resolution, resolved
from lightning_topo.functional.double_precision import in_double


@dataclass(frozen=True)
class BiLipschitz:
    """Constants of the map that one update makes of a neuron cloud.

    Every value is ``nan`` where no pair of points can be resolved, as for a cloud of one neuron.

    Attributes:
        lower: Smallest ratio of distances after and before, min |p_i' - p_j'| / |p_i - p_j|.
        upper: Largest ratio of distances after and before.
        distortion: upper / lower; ``inf`` when two points were merged.
        criticality: κ = max |u_i - u_j| / |p_i - p_j| with u = p' - p; below 1 the update is one-to-one.
        pair: The two neurons (i < j) that attain the criticality, or None.
        n_unresolved: Pairs left out because they coincide up to rounding before the update, or because rounding is
            not small against how they moved relative to each other.
    """

    lower: float
    upper: float
    distortion: float
    criticality: float
    pair: tuple[int, int] | None
    n_unresolved: int


def exact_constants(before: Tensor, after: Tensor, eps: float) -> BiLipschitz:
    """What ``bi_lipschitz`` says, with all distances in float64.

    They come from a matrix product in row blocks; entries that lose digits there (close pairs) are evaluated again from
    the differences, so each ratio is right to 1e-7 and the three extremes to float64 rounding. Memory: five float64
    copies of the points, and blocks of a few tens of MiB.

    Args:
        before: Points before the update, shape (n, D), finite.
        after: The same points after it, same shape.
        eps: Relative spacing of the numbers that the points were stored in.
    """
    p, q = in_double(before), in_double(after)
    smallest = [resolution(cloud.square().sum(1), eps) for cloud in (p, q)]
    centre = p.mean(0)
    clouds = (p - centre, q - p, q - centre)
    n = len(p)

    extremes: list[tuple[Tensor, ...]] = []
    n_resolved = torch.zeros((), dtype=torch.long, device=p.device)
    for rows, (d2, u2, a2) in pair_blocks(clouds):
        pairs = resolved(rows, d2, u2, *smallest)
        n_resolved += pairs.sum()
        extremes.append(_block_extremes(rows.start, d2, u2, a2, pairs))

    n_pairs, found = n * (n - 1) // 2, int(n_resolved)
    if found == 0:
        return BiLipschitz(math.nan, math.nan, math.nan, math.nan, None, n_pairs)
    lower_pair, upper_pair, pair = _overall(extremes)
    lower, _ = _pair_ratios(p, q, lower_pair)
    upper, _ = _pair_ratios(p, q, upper_pair)
    _, criticality = _pair_ratios(p, q, pair)
    distortion = upper / lower if lower > 0 else math.inf
    return BiLipschitz(lower, upper, distortion, criticality, pair, n_pairs - found)


def _block_extremes(start: int, d2: Tensor, u2: Tensor, a2: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
    """Value and flat position of the smallest and largest distance ratio and of the largest criticality."""
    ratio, critical = a2 / d2, u2 / d2
    out: list[Tensor] = []
    for values, largest in ((ratio, False), (ratio, True), (critical, True)):
        masked = values.where(pairs, -math.inf if largest else math.inf).flatten()
        value, where = masked.max(0) if largest else masked.min(0)
        out += [value, start + where // d2.shape[1], start + where % d2.shape[1]]
    return tuple(out)


def _overall(extremes: list[tuple[Tensor, ...]]) -> tuple[tuple[int, int], ...]:
    # One copy from the device for all blocks.
    table = torch.stack([torch.stack([value.double() for value in row]) for row in extremes]).tolist()
    best = (min(table, key=lambda row: row[0]), max(table, key=lambda row: row[3]), max(table, key=lambda row: row[6]))
    return tuple((int(row[3 * k + 1]), int(row[3 * k + 2])) for k, row in enumerate(best))


def _pair_ratios(p: Tensor, q: Tensor, pair: tuple[int, int]) -> tuple[float, float]:
    i, j = pair
    d, a = p[i] - p[j], q[i] - q[j]
    distance = d.norm()
    return float(a.norm() / distance), float((a - d).norm() / distance)
