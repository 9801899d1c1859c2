"""How many neurons of a cloud are different from each other."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_topo.functional.distances import ROUNDING, as_cloud, pairwise_distances
from lightning_topo.functional.double_precision import in_double
from lightning_topo.functional.persistence import spanning_tree_lengths

# Neurons closer than a tenth of what neighbours were at the start count as one. In a cloud of dimension d, 0.7 · 0.1^d
# of them are by chance: 0.7% on a sphere, none in a layer of ordinary width.
SHARE = 0.1


def distinct_neurons(points: Tensor, start: Tensor | None = None, share: float = SHARE) -> int:
    r"""Number of neurons that are left when those that have come close to each other count as one.

    $$
    t = \text{share} \cdot m_0 \cdot \frac{s}{s_0}, \qquad
    m_0 = \operatorname{median}_i \min_{j \ne i} |x_i - x_j|, \qquad s = \sqrt{\tfrac1n \sum_i |p_i|^2},
    $$

    with x the neurons at the start, p those of now, and s_0 the s of the start. Neurons are joined where their
    distance is at most t, and chains of joined neurons count as one: the number is that of single-linkage clusters at
    the height t, n minus the edges of a minimum spanning tree of length at most t. It is the Betti number b_0 at t, a
    scale that the neighbours at the start set, where ``betti_numbers`` takes one from the diameter.

    It does not change when the coordinates of the start, or those of now, are multiplied by a number: what counts is
    the distance in relation to the size of the neurons, about the origin. A network that shrinks or grows as a whole
    has lost nothing; where some neurons become many times larger than the others, those look alike beside them.
    Neurons at random in few dimensions have close neighbours by chance: about 0.7 · share^d of them are closer than t,
    with d the dimension of the cloud, so that 512 on a sphere count as about 510.

    Cloned units as a form of lost plasticity: arXiv 2510.00304. Merging of neurons: arXiv 2510.02670, section 3.

    Args:
        points: Neurons now, shape (n, D), floating point, on any device.
        start: The neurons from whose distances the scale is taken, shape (m, D'); default ``points``.
        share: Share of the median nearest-neighbour distance of the start, at least 0; default a tenth. 0 counts
            neurons that differ at all.

    Returns:
        A number from 1 to n.

    Raises:
        ValueError: When a cloud is not finite or not of shape (n, D), or the share is negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import distinct_neurons
        >>> start = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
        >>> now = start.clone()
        >>> now[:30] = now[0] + 0.001 * start[:30]  # thirty neurons that have become alike
        >>> distinct_neurons(start), distinct_neurons(now, start)
        (100, 71)
    """
    if not 0.0 <= share < math.inf:
        raise ValueError(f"distinct_neurons expects a finite share >= 0, but got {share}.")
    cloud = as_cloud(points, "distinct_neurons")
    distances = pairwise_distances(cloud)
    if start is None:
        return distinct_of_distances(distances, share * median_nearest(distances))
    reference = as_cloud(start, "distinct_neurons")
    nearest = median_nearest(pairwise_distances(reference))
    return distinct_of_distances(distances, share * nearest * growth(cloud, size(reference)))


def distinct_of_distances(distances: Tensor, threshold: float) -> int:
    """Single-linkage clusters at the height ``threshold``, from the symmetric float64 matrix of distances (n, n)."""
    joined = threshold + ROUNDING * float(distances.max())
    return len(distances) - int((spanning_tree_lengths(distances.cpu().numpy()) <= joined).sum())


def median_nearest(distances: Tensor) -> float:
    """Median distance of a point to its nearest other, from the matrix of distances; 0.0 for a single point."""
    if len(distances) < 2:
        return 0.0
    apart = distances.clone()
    apart.fill_diagonal_(math.inf)
    return float(apart.amin(1).quantile(0.5))


def size(points: Tensor) -> float:
    """Root mean square of the norms of points (n, D): about the origin, for a cloud that falls into one keeps it."""
    return float(in_double(points).square().sum(1).mean().sqrt())


def growth(points: Tensor, start: float) -> float:
    """How many times larger points are than at the start; 1 where there was nothing."""
    return size(points) / start if start > 0 else 1.0
