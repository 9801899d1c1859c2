"""Bi-Lipschitz constants and criticality of one update of a neuron cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._pairs import in_double, pair_blocks, resolution, resolved


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


def bi_lipschitz(before: Tensor, after: Tensor, eps: float | None = None) -> BiLipschitz:
    r"""Bi-Lipschitz constants and criticality of the map ``before[i] -> after[i]``.

    .. math::

        r_{ij} = \frac{|p_i' - p_j'|}{|p_i - p_j|}, \qquad
        \kappa = \max_{i<j} \frac{|u_i - u_j|}{|p_i - p_j|}, \qquad u_i = p_i' - p_i

    with lower = min r, upper = max r, so that 1 - κ <= lower and upper <= 1 + κ. For an update at learning rate η
    the critical learning rate is η* = η / κ (arXiv 2510.02670, section 3).

    Distances are computed in float64 by a matrix product in row blocks; entries that lose digits there (close
    pairs) are evaluated again from the differences, so each ratio is right to 1e-7 and the three extremes to
    float64 rounding. The points themselves are rounded: each coordinate of ``after`` is off by up to ``eps / 2``
    of itself. A pair counts only when |u_i - u_j| is 0 or at least 4 times that error, (eps / 2)·sqrt(|p_i'|² +
    |p_j'|²), and |p_i - p_j| is more than 4 times the same error of ``before``; the others are left out and counted.

    Memory: five float64 copies of the points, and blocks of a few tens of MiB.

    Args:
        before: Points before the update, shape (n, D), on any device, floating point.
        after: The same points after it, same shape.
        eps: Relative spacing of the numbers that the points were stored in; default that of ``after.dtype``.

    Returns:
        The constants, as Python numbers.

    Raises:
        ValueError: When the shapes differ or are not (n, D), or a value is not finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import bi_lipschitz
        >>> points = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        >>> result = bi_lipschitz(points, 0.75 * points)
        >>> round(result.lower, 4), round(result.upper, 4), round(result.criticality, 4)
        (0.75, 0.75, 0.25)
    """
    _validate(before, after)
    eps = torch.finfo(after.dtype).eps if eps is None else eps
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


def _validate(before: Tensor, after: Tensor) -> None:
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            "bi_lipschitz expects two clouds of the same shape (n, D), "
            f"but got {tuple(before.shape)} and {tuple(after.shape)}."
        )
    if not (before.is_floating_point() and after.is_floating_point()):
        raise ValueError(f"bi_lipschitz expects floating-point clouds, but got {before.dtype} and {after.dtype}.")
    if not bool(before.isfinite().all() & after.isfinite().all()):
        raise ValueError("bi_lipschitz expects finite points, but some are NaN or infinite: the run has diverged.")


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
