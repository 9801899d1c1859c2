"""Which neurons of large clouds an update moves most relative to each other, found without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional._pairs import resolution
from lightning_topo.functional._products import (
    hashes,
    largest,
    least_square,
    mixed_integers,
    power_of_two,
    product_dtype,
    relative_error,
    row_blocks,
    smallest_size,
    squared_lengths,
    subtract_products,
)

# Clouds of up to twice this dimension are searched as they are, others in a random image of this dimension.
_SKETCH_DIMENSION = 64


def most_changed(before: Tensor, after: Tensor, k: int, eps: float) -> Tensor:
    r"""Neurons of the pairs that decide the bi-Lipschitz constants of an update, as far as a random image shows them.

    A linear map S of random signs (a count sketch: Charikar, Chen, Farach-Colton, ICALP 2002) takes the points and
    their displacements u to 64 dimensions, where distances are right to a tenth or so. All pairs are compared there,
    and a neuron scores by its largest

    $$
    \frac{|S u_i - S u_j|}{|S p_i - S p_j|}, \qquad \frac{|S p_i' - S p_j'|}{|S p_i - S p_j|}, \qquad
    -\frac{|S p_i' - S p_j'|}{|S p_i - S p_j|}
    $$

    over j. About half of the ``k`` are those that score highest by the first (criticality), a quarter each by the
    second and third (upper and lower constant). Pairs that rounding cannot resolve (see ``bi_lipschitz``) do not
    count, as far as products in single precision tell; points that are not finite come first. In up to 128 dimensions S
    is left out. O(n D + 64 n²) operations a cloud, and nothing is read back.

    Args:
        before: Points before the update, shape (n, D) or (G, n, D), on any device, floating point.
        after: The same points after it, same shape.
        k: Number of neurons of each cloud.
        eps: Relative spacing of the numbers that the points were stored in.

    Returns:
        Indices, shape (min(k, n),) or (G, min(k, n)), ascending, on the points' device.
    """
    if before.ndim == 2:
        return most_changed(before[None], after[None], k, eps)[0]
    groups, n, _ = before.shape
    if k >= n:
        return torch.arange(n, device=before.device).expand(groups, n)
    images, raw, equal, error = _images(before.detach(), after.detach())
    scores = _scores(*_centred(images, raw, eps, error), equal)
    scores[0].masked_fill_(~raw.sum(0).isfinite(), torch.inf)
    quarter = k // 8 * 2  # even: a pair is two
    return _highest(scores.nan_to_num_(0.0, torch.inf), (k - 2 * quarter, quarter, quarter))


def _images(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Images of the points and of their displacements, with room for their sum, shape (3, G, n, d), and more.

    Besides, squared norms of the points before and after, shape (2, G, n), hashes of the points before, shape (G, n),
    and the relative error of products of images.
    """
    groups, n, dimension = before.shape
    dtype = product_dtype(before, after)
    width = dimension if dimension <= 2 * _SKETCH_DIMENSION else _SKETCH_DIMENSION
    # New memory costs more than the arithmetic.
    p, q, scratch = before.new_empty(3, groups, n, dimension, dtype=dtype).unbind(0)
    size = torch.maximum(largest(before, (1, 2), scratch), largest(after, (1, 2), scratch)).to(dtype)
    signs = mixed_integers(dimension, before.device).sign().to(dtype) / power_of_two(size)[:, None, None]
    torch.mul(before, signs, out=p)
    torch.mul(after, signs, out=q)
    raw = torch.stack([squared_lengths(p, scratch), squared_lengths(q, scratch)])
    equal = hashes(p, scratch)
    q.sub_(p)
    images = p.new_empty(3, groups, n, width)
    _fold(p, images[0])
    _fold(q, images[1])
    return images, raw, equal, relative_error(dtype, width, before.device.type)


def _fold(x: Tensor, out: Tensor) -> None:
    """Sum of the coordinates whose numbers agree modulo the width."""
    width = out.shape[-1]
    whole = x.shape[-1] // width * width
    torch.sum(x[..., :whole].unflatten(-1, (-1, width)), -2, out=out)
    if whole < x.shape[-1]:
        out[..., : x.shape[-1] - whole] += x[..., whole:]


def _centred(x: Tensor, raw: Tensor, eps: float, error: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points, displacements and their sum about zero and of size one; what each adds to the products; 1 - ρ."""
    pair = x[:2]
    pair.sub_(pair.mean(-2, keepdim=True))
    scales = power_of_two(largest(pair, (2, 3)).clamp_min_(smallest_size(x.dtype)))[..., None]
    pair.div_(scales[..., None])
    torch.add(*pair, out=x[2])
    norms = squared_lengths(x)
    before, after = (resolution(raw, eps) / scales / scales).unbind(0)
    least = torch.maximum(norms[0] * error, before) + least_square(x.dtype)
    return x, torch.cat([norms, torch.stack([least, after])]), (1 - scales[1] / scales[0])[..., None]


def _scores(x: Tensor, terms: Tensor, ratio: Tensor, equal: Tensor) -> Tensor:
    """Squared criticality, growth and shrinking of each point's most extreme pairs, up to a factor, shape (3, G, n)."""
    groups, n = equal.shape
    scores = terms.new_zeros(3, groups, n)
    for rows in row_blocks(groups, n, x.device):
        columns = slice(rows.start, None)
        sums = terms[:, :, rows, None] + terms[:, :, None, columns]
        subtract_products(sums[:3].flatten(0, 1), x[:, :, rows].flatten(0, 1), x[:, :, columns].flatten(0, 1))
        d2, u2, change, least_before, least_after = sums.unbind(0)
        hidden = (u2 < least_after) | (equal[:, rows, None] == equal[:, None, columns])
        change.sub_(d2).addcmul_(u2, -ratio)
        # Of pairs closer than products tell, the distance is taken for what they tell: these are of interest.
        d2.clamp_min_(least_before)
        torch.neg(change, out=least_before)
        found = sums[1:4].div_(d2).masked_fill_(hidden, 0.0)
        for mine, axis in ((scores[:, :, rows], -1), (scores[:, :, columns], -2)):
            torch.maximum(mine, found.amax(axis), out=mine)
    return scores


def _highest(scores: Tensor, shares: tuple[int, ...]) -> Tensor:
    """Indices of the highest scores, so many of each kind, none twice, ascending, shape (G, k)."""
    chosen = []
    for kind, share in enumerate(shares):
        chosen.append(scores[kind].topk(share).indices)
        scores.scatter_(-1, chosen[-1].expand(len(scores), -1, -1), -torch.inf)
    return torch.cat(chosen, dim=-1).sort(-1).values
