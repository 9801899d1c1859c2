"""Distances between the points of a cloud, exact for close pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional.double_precision import in_double

# Distances are right to this share of the cloud's diameter: lengths that differ by less count as equal.
ROUNDING = 1e-12
# Squares of larger coordinates may overflow.
_LARGEST = 1e150
# Up to this many coordinates direct differences are as fast as a matrix product.
DIRECT_DIMENSION = 16
# |x - y|² is trusted from the matrix product down to this share of |x|² + |y|²: there the error of |x - y| is 1e-13.
_TRUSTED_SHARE = 1e-4
_BLOCK_ELEMENTS = 2**18
_MIN_BLOCK_ROWS = 64
_GATHER_ELEMENTS = 2**22


def as_cloud(points: Tensor, caller: str) -> Tensor:
    """Check that ``points`` is a finite (n, D) cloud with n >= 1, and return it in float64, detached.

    Args:
        points: Cloud of shape (n, D), floating point, on any device.
        caller: Name of the public function, for the error.

    Returns:
        The same points in float64, on the same device (on the CPU where that has no float64).

    Raises:
        TypeError: When it is no tensor.
        ValueError: When the shape is not (n, D) with n >= 1 and D >= 1, the type is not floating point, or a value is
            not finite or above 1e150 in absolute value.
    """
    if not isinstance(points, Tensor):
        raise TypeError(
            f"{caller} expects a tensor of shape (n, D), but got a {type(points).__name__}: convert it with "
            "torch.as_tensor."
        )
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(
            f"{caller} expects a cloud of shape (n, D) with at least one point and one coordinate, but got shape "
            f"{tuple(points.shape)}."
        )
    if not points.is_floating_point():
        raise ValueError(f"{caller} expects floating-point points, but got {points.dtype}: convert them with .float().")
    points = in_double(points)
    if not bool(points.abs().amax() <= _LARGEST):
        raise ValueError(
            f"{caller} expects finite points, but some are NaN, infinite or above {_LARGEST:g}: leave those out first."
        )
    return points


def pairwise_distances(points: Tensor) -> Tensor:
    r"""Euclidean distances between all pairs of points.

    $$d_{ij}^2 = |x_i|^2 + |x_j|^2 - 2 x_i \cdot x_j$$

    for centred points x, in float64 and in row blocks. This loses the digits of close pairs, so pairs with d² below
    1e-4 of |x_i|² + |x_j|² are evaluated again from the differences, and so are all pairs in few dimensions. The error
    is about 1e-13 of the cloud's size for all pairs, and relative to the distance itself for close ones.

    Args:
        points: Cloud of shape (n, D), floating point, on any device.

    Returns:
        Distances, shape (n, n), float64, exactly symmetric with a zero diagonal.

    Raises:
        ValueError: When the points are not a finite (n, D) cloud.

    Example:
        >>> import torch
        >>> from lightning_topo.functional.distances import pairwise_distances
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]], dtype=torch.float64)
    """
    x = as_cloud(points, "pairwise_distances")
    if x.shape[1] <= DIRECT_DIMENSION:
        return _direct(x, x)
    n = len(x)
    distances = x.new_empty(n, n)
    centred = x - x.mean(0)
    norms = torch.linalg.vecdot(centred, centred)
    rows = max(_MIN_BLOCK_ROWS, _BLOCK_ELEMENTS // n)
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        block = _upper_block(x, centred, norms, start, stop)
        distances[start:stop, start:] = block
        distances[start:, start:stop] = block.T
    return distances


def distances_to(points: Tensor, index: int | Tensor) -> Tensor:
    """Distances of all float64 ``points`` (n, D) to one of them, shape (n,), from direct differences."""
    return _direct(points, points[index].reshape(1, -1))[:, 0]


def _direct(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _upper_block(x: Tensor, centred: Tensor, norms: Tensor, start: int, stop: int) -> Tensor:
    """Distances of the rows start:stop to all points from ``start`` on; its leading square is symmetric."""
    sums = norms[start:stop, None] + norms[None, start:]
    squared = torch.addmm(sums, centred[start:stop], centred[start:].T, alpha=-2.0)
    close = squared < sums.mul_(_TRUSTED_SHARE)
    i, j = close.triu_(1).nonzero(as_tuple=True)
    for part in range(0, len(i), chunk := max(1, _GATHER_ELEMENTS // x.shape[1])):
        a, b = i[part : part + chunk], j[part : part + chunk]
        squared[a, b] = (x[start + a] - x[start + b]).square_().sum(1)
    # A matrix product need not be symmetric in its last digit.
    square = squared[:, : stop - start]
    square.triu_(1)
    square += square.T.clone()
    return squared.clamp_(min=0.0).sqrt_()
