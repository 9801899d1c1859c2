"""Which neurons of a large cloud an update moves most relative to each other, found without all distances."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional._pairs import in_double, pair_blocks, resolution, resolved

# Clouds of up to twice this dimension are searched as they are, others in a random image of this dimension.
_SKETCH_DIMENSION = 64
_ROW_BLOCK_ELEMENTS = 2**19


def most_changed(before: Tensor, after: Tensor, k: int, eps: float | None = None) -> Tensor:
    r"""Neurons of the pairs that decide the bi-Lipschitz constants of an update, as far as a random image shows them.

    A linear map S of random signs (a count sketch: Charikar, Chen, Farach-Colton, ICALP 2002) takes the points and
    their displacements u to 64 dimensions, where distances are right to a tenth or so. All pairs are compared there,
    and a neuron scores by its largest

    .. math:: \frac{|S u_i - S u_j|}{|S p_i - S p_j|}, \qquad \frac{|S p_i' - S p_j'|}{|S p_i - S p_j|}, \qquad
        -\frac{|S p_i' - S p_j'|}{|S p_i - S p_j|}

    over j. About half of the ``k`` are those that score highest by the first (criticality), a quarter each by the
    second and third (upper and lower constant). Pairs that rounding cannot resolve (see ``bi_lipschitz``) do not
    count; points that are not finite come first. In up to 128 dimensions S is left out. O(n D + 64 n²) operations.

    Args:
        before: Points before the update, shape (n, D), on any device, floating point.
        after: The same points after it, same shape.
        k: Number of neurons.
        eps: Relative spacing of the numbers that the points were stored in; default that of ``after.dtype``.

    Returns:
        Indices, shape (min(k, n),), ascending, on the points' device.
    """
    n = len(before)
    if k >= n:
        return torch.arange(n, device=before.device)
    eps = torch.finfo(after.dtype).eps if eps is None else eps
    p, u, *squared_norms = (in_double(part) for part in _sketch(before.detach(), after.detach()))
    p -= p.mean(0)
    smallest = [resolution(norms, eps) for norms in squared_norms]
    scores = p.new_zeros(3, n)
    for rows, (d2, u2, a2) in pair_blocks((p, u, p + u), exact=False):
        hidden = ~resolved(rows, d2, u2, *smallest)
        critical, change = ((part / d2).masked_fill_(hidden, 0.0) for part in (u2, a2 - d2))
        for axis, part in ((1, scores[:, rows]), (0, scores[:, rows.start :])):
            best = torch.stack([critical.amax(axis), change.amax(axis), -change.amin(axis)])
            torch.maximum(part, best, out=part)
    scores[0, ~(squared_norms[0] + squared_norms[1]).isfinite()] = torch.inf
    quarter = k // 8 * 2  # even: a pair is two
    return _highest(scores, (k - 2 * quarter, quarter, quarter)).to(before.device)


def _sketch(before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Images of the points and of their displacements, shapes (n, d); squared norms before and after, shapes (n,)."""
    n, dimension = before.shape
    dtype = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    width = dimension if dimension <= 2 * _SKETCH_DIMENSION else _SKETCH_DIMENSION
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (dimension,), generator=generator).mul_(2).sub_(1).to(before.device, dtype)
    images = before.new_empty(2, n, width, dtype=dtype)
    norms = before.new_empty(2, n, dtype=dtype)
    size = max(1, _ROW_BLOCK_ELEMENTS // max(1, dimension))
    for rows in (slice(start, start + size) for start in range(0, n, size)):
        p, q = before[rows].to(dtype), after[rows].to(dtype)
        norms[0, rows], norms[1, rows] = p.square().sum(1), q.square().sum(1)
        images[0, rows], images[1, rows] = _folded(p * signs, width), _folded((q - p) * signs, width)
    return (*images, *norms)


def _folded(x: Tensor, width: int) -> Tensor:
    """Sum of the coordinates whose numbers agree modulo ``width``."""
    whole = x.shape[1] // width * width
    folded = x[:, :whole].unflatten(1, (-1, width)).sum(1)
    folded[:, : x.shape[1] - whole] += x[:, whole:]
    return folded


def _highest(scores: Tensor, shares: tuple[int, ...]) -> Tensor:
    """Indices of the highest scores, so many of each kind, none twice."""
    taken = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
    for score, share in zip(scores, shares, strict=True):
        taken[score.masked_fill(taken, -torch.inf).topk(share).indices] = True
    return taken.nonzero().squeeze(1)
