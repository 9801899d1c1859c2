"""Bi-Lipschitz constants and criticality of one update of a neuron cloud."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional._products import product_dtype
from lightning_topo.functional.double_precision import has_double
from lightning_topo.functional.exact_constants import BiLipschitz, exact_constants
from lightning_topo.functional.update_constants import UpdateConstants, update_constants

__all__ = ["BiLipschitz", "bi_lipschitz"]

# Clouds of fewer points, or fewer n² D, are evaluated in double precision: their pairs are not worth choosing from.
_MANY = 64
_LARGE = 2**23


def bi_lipschitz(before: Tensor, after: Tensor, eps: float | None = None) -> BiLipschitz:
    r"""Bi-Lipschitz constants and criticality of the map ``before[i] -> after[i]``.

    $$
    r_{ij} = \frac{|p_i' - p_j'|}{|p_i - p_j|}, \qquad
    \kappa = \max_{i<j} \frac{|u_i - u_j|}{|p_i - p_j|}, \qquad u_i = p_i' - p_i
    $$

    with lower = min r, upper = max r, so that 1 - κ <= lower and upper <= 1 + κ. For an update at learning rate η
    the critical learning rate is η* = η / κ (arXiv 2510.02670, section 3).

    The three extremes are right to 1e-7, of small clouds to float64 rounding. In large ones, products in single
    precision tell which pairs may attain them, as far as their error allows, and these are evaluated from the
    differences; small clouds, and those of which this leaves too many pairs, are evaluated in float64. The points
    themselves are rounded: each coordinate of ``after`` is off by up to ``eps / 2`` of itself. A pair counts only when
    |u_i - u_j| is 0 or at least 4 times that error, (eps / 2)·sqrt(|p_i'|² + |p_j'|²), and |p_i - p_j| is more than 4
    times the same error of ``before``; the others are left out and counted.

    Memory: five float64 copies of the points at the most, and blocks of a few tens of MiB.

    Args:
        before: Points before the update, shape (n, D), on any device, floating point.
        after: The same points after it, same shape.
        eps: Relative spacing of the numbers that the points were stored in; default that of ``after.dtype``.

    Returns:
        The constants, as Python numbers.

    Raises:
        TypeError: When ``before`` or ``after`` is no tensor.
        ValueError: When the shapes differ or are not (n, D) with D >= 1, or a value is not finite.

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
    if product_dtype(before, after) == torch.float32 and has_double(before.device) and _is_large(before):
        ((constants, _, certain),) = UpdateConstants.unpack(
            update_constants(before[None], after[None], eps).packed().tolist()
        )
        if certain:
            return constants
    return exact_constants(before, after, eps)


def _is_large(points: Tensor) -> bool:
    n, dimension = points.shape
    return points.device.type != "cpu" or (n >= _MANY and n * n * dimension >= _LARGE)


def _validate(before: Tensor, after: Tensor) -> None:
    for points in (before, after):
        if not isinstance(points, Tensor):
            raise TypeError(
                f"bi_lipschitz expects two tensors of shape (n, D), but got a {type(points).__name__}: convert it with "
                "torch.as_tensor."
            )
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            "bi_lipschitz expects two clouds of the same shape (n, D), "
            f"but got {tuple(before.shape)} and {tuple(after.shape)}."
        )
    if before.shape[1] == 0:
        raise ValueError(f"bi_lipschitz expects points with at least one coordinate, but got {tuple(before.shape)}.")
    if not (before.is_floating_point() and after.is_floating_point()):
        raise ValueError(f"bi_lipschitz expects floating-point clouds, but got {before.dtype} and {after.dtype}.")
    if not bool(before.isfinite().all() & after.isfinite().all()):
        raise ValueError("bi_lipschitz expects finite points, but some are NaN or infinite: the run has diverged.")
