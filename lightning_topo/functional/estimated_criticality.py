"""κ of an update estimated in few operations, for what follows it all the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_topo.functional._pairs import relative_resolution
from lightning_topo.functional._products import (
    largest,
    power_of_two,
    product_dtype,
    relative_error,
    subtract_products,
)
from lightning_topo.functional.update_constants import UpdateConstants

# Pairs that are evaluated from their differences.
_PAIRS = 8


def estimated_criticality(before: Tensor, after: Tensor, eps: float) -> UpdateConstants:
    r"""κ of G clouds of one shape by one product in single precision, with nothing read back from the device.

    $$\kappa = \max_{i < j} \frac{|u_i - u_j|}{|p_i - p_j|}$$

    of those eight pairs of each cloud that the product shows to be the largest, each evaluated from the differences. It
    takes less than half of the operations of ``update_criticality``, and does not tell whether another pair is larger:
    pairs closer than the product resolves count as if they were as far apart as that.

    Reference: arXiv 2510.02670, section 3; κ has no unit.

    Args:
        before: Points before the update, shape (G, n, D), floating point.
        after: The same points after it, same shape.
        eps: Relative spacing of the numbers that the points are stored in.

    Returns:
        The constants, of which κ, the pair and whether all points are finite are known, and nothing is certain.
    """
    _, n, dimension = before.shape
    if n < 2 or dimension == 0:
        return UpdateConstants.without_pairs(before, after)
    dtype = product_dtype(before, after)
    before, after = before.detach().to(dtype), after.detach().to(dtype)
    x = torch.stack([before, after])
    size = largest(x, (0, 2, 3))
    x /= power_of_two(size)[:, None, None]
    x[1] -= x[0]  # the update
    centred = x - x.mean(2, keepdim=True)
    lengths = torch.linalg.vector_norm(centred, dim=-1).square_()
    squares = lengths[..., :, None] + lengths[..., None, :]
    unresolved = squares[0] * relative_error(dtype, dimension, before.device.type)
    products = squares.flatten(0, 1)
    subtract_products(products, centred.flatten(0, 1), centred.flatten(0, 1))
    scores = (squares[1] / torch.maximum(squares[0], unresolved)).triu_(1)
    count = min(_PAIRS, n * (n - 1) // 2)
    best = scores.flatten(1).nan_to_num_(0.0, 0.0).topk(count).indices
    pairs = torch.stack([best.div(n, rounding_mode="floor"), best % n], dim=1)
    rows = pairs.flatten(1)[None, :, :, None].expand(2, -1, -1, dimension)
    ends = x.gather(2, rows).unflatten(2, (2, count))
    distances, changes = torch.linalg.vector_norm(ends[:, :, 0] - ends[:, :, 1], dim=-1).unbind(0)
    ends[1] += ends[0]  # after the update
    least, least_after = torch.linalg.vector_norm(ends, dim=(2, 4)).mul_(relative_resolution(eps)).unbind(0)
    hidden = (distances <= least) | ((changes < least_after) & (changes != 0))
    kappa, where = (changes / distances).masked_fill_(hidden, -math.inf).max(1)
    pair = pairs.gather(2, where[:, None, None].expand(-1, 2, 1))[..., 0]
    return UpdateConstants.estimated(kappa, pair, size)
