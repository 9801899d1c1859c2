"""Clouds and their update made ready for matrix products in single precision, with what rounding may add to each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lightning_topo.functional._pairs import single_precision_is_kept
from lightning_topo.functional.double_precision import has_double

# A dot product of D terms is right to sqrt(D) times the rounding of one of them, and this far above. Measured on the
# CPU for D from 10 to 100,000: at most 0.8 in clouds on a line, whose partial sums round alike, and 0.1 in others.
_DOT = 2.0
# Elsewhere terms may be summed one after the other.
_DEVICE_DOT = 4.0
# Single roundings on the way to a bound, in units of the rounding of one.
_FEW = 16.0
# Parts of a number that has been split for TensorFloat-32: 10 explicit bits of the significand, and the rest.
_HIGH_BITS = -(2**13)
_SPLIT_ERROR = 2.0**-18
# Entries of a block of pairs: few on the CPU, so that a block stays in the cache and most pairs that come twice are
# left out, but rows enough for a product; on an accelerator the calls cost more than the memory.
_BLOCK_ELEMENTS = 2**17
_MIN_BLOCK_ROWS = 128
_DEVICE_BLOCK_ELEMENTS = 2**25
# A GPU's multiprocessors each make a tile of a product. Where there are few tiles, they share the coordinates, so many
# at the least: with 256 points of 100,000 coordinates four of 132 would work, with twelve points one.
_TILE = 64
_TILES_EACH = 2
_LEAST_SHARE = 512


@dataclass(frozen=True)
class UpdateClouds:
    """Clouds before an update, the update, and a sum of both, relative to means that are large, in units of their size.

    Attributes:
        points: Before, update u and, with ``crossed``, before + t u, shape (2 or 3, G, n, D).
        squares: Their squared lengths, shape (2 or 3, G, n).
        raw: Squared lengths of the points before and after themselves, shape (2, G, n).
        ratio: t, the size of the cloud over that of its update, at least 1, shape (G, 1).
        drift: Error of the squares of the points and their updates because the update itself is rounded relative to
            what it is and not relative to its mean, shape (2, G, n).
        size: The largest coordinate before or after, not finite where one is not, shape (G,).
        unit: A power of two below it, shape (G, 1, 1).
        hashes: Equal for points, and for displacements, whose coordinates are all equal, and else rarely: shape
            (2, G, n).
        error: What a product's rounding adds to a squared distance, relative to the sum of the two squared lengths.
    """

    points: Tensor
    squares: Tensor
    raw: Tensor
    ratio: Tensor
    drift: Tensor
    size: Tensor
    unit: Tensor
    hashes: Tensor
    error: float


def product_dtype(*clouds: Tensor) -> torch.dtype:
    """Numbers whose products are fast, and rounded like single precision at the worst."""
    if not has_double(clouds[0].device):
        return torch.float32
    if any(cloud.dtype == torch.float64 for cloud in clouds):
        return torch.float64
    on_the_cpu = clouds[0].device.type == "cpu"
    return torch.float64 if on_the_cpu and not single_precision_is_kept() else torch.float32


def update_clouds(before: Tensor, after: Tensor, crossed: bool = True) -> UpdateClouds:
    """Prepare the products of some groups of one shape, without reading anything back.

    Args:
        before: Points before the update, shape (G, n, D), n and D at least 1.
        after: The same after it.
        crossed: Whether the sum of the points and their update is wanted, whose distances tell how the two correlate.
    """
    groups, n, dimension = before.shape
    dtype = product_dtype(before, after)
    x = before.new_empty(3, groups, n, dimension, dtype=dtype)
    scratch = torch.empty_like(x)  # used again and again: new memory costs more than the arithmetic
    p, u, z = x.unbind(0)
    torch.add(before.detach(), 0.0, out=p)  # no negative zeros: equal numbers have equal bits
    torch.add(after.detach(), 0.0, out=z)
    size = largest(x[::2], (0, 2, 3), scratch[::2])
    unit = power_of_two(size)[:, None, None]
    x[::2].div_(unit)
    torch.sub(z, p, out=u)
    raw, pair = squared_lengths(x, scratch), x[:2]
    equal = hashes(pair, scratch[:2])
    mean = _large(pair.mean(-2), raw[:2])
    pair.sub_(mean[:, :, None])
    squares = squared_lengths(pair, scratch[:2])
    lengths = squares.sqrt()
    sizes = lengths.amax(-1, keepdim=True).clamp_min_(smallest_size(dtype))
    torch.maximum(*sizes.unbind(0), out=sizes[0])
    ratios = sizes / sizes[1]  # t and 1
    ratio = ratios[0]
    common = torch.linalg.vector_norm(mean[1], dim=-1, keepdim=True).mul_(4 * torch.finfo(dtype).eps)
    drift = lengths.mul_(ratios * common)
    if crossed:
        torch.addcmul(p, u, ratio[..., None], out=z)
        squares = torch.cat([squares, squared_lengths(x[2:], scratch[2:])])
    error = relative_error(dtype, dimension, before.device.type)
    return UpdateClouds(x if crossed else pair, squares, raw[::2], ratio, drift, size, unit, equal, error)


def _large(mean: Tensor, squares: Tensor) -> Tensor:
    """The mean of each cloud, shape (2, G, D), 0 where it is small against the points, of squared lengths (2, G, n).

    To take it off would leave points that are near zero, as are the updates of dead neurons, without their digits.
    """
    return mean.mul_(mean.square().sum(-1, keepdim=True) > 0.25 * squares.mean(-1, keepdim=True))


def relative_error(dtype: torch.dtype, dimension: int, device_type: str) -> float:
    """Rounding of a squared distance out of a product of D terms, relative to the sum of the two squared norms."""
    dot = _DOT if device_type == "cpu" else _DEVICE_DOT
    error = torch.finfo(dtype).eps * (dot * math.sqrt(dimension) + _FEW)
    return error if device_type != "cuda" or _kept(dtype) else 4 * error + _SPLIT_ERROR


def subtract_products(out: Tensor, left: Tensor, right: Tensor) -> None:
    """``out -= 2 left @ right.mT``, batched, right to single precision whatever precision products are set to.

    In place, for autocast would round other products. Where products of single precision are rounded, each factor is
    split into two parts which that rounding leaves alone.
    """
    if left.device.type != "cuda":
        out.baddbmm_(left, right.mT, alpha=-2.0)
        return
    shares = _shares(out.shape, left.shape[-1], left.device)
    for x, y in [(left, right)] if _kept(left.dtype) else split_terms(left, right):
        subtract_by_shares(out, x, y, shares)


def _shares(shape: torch.Size, dimension: int, device: torch.device) -> int:
    """Among how many to divide the coordinates of a product of some shape, so that all multiprocessors work."""
    batch, n, m = shape
    tiles = batch * -(-n // _TILE) * -(-m // _TILE)
    return max(1, min(_TILES_EACH * _multiprocessors(device) // max(1, tiles), dimension // _LEAST_SHARE))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def subtract_by_shares(out: Tensor, left: Tensor, right: Tensor, shares: int) -> None:
    """``out -= 2 left @ right.mT``, batched, as the sum of products of some coordinates each."""
    each = left.shape[-1] // shares if shares > 1 else 0
    if each:
        x = _by_share(left, shares, each)
        same = right.data_ptr() == left.data_ptr() and right.shape == left.shape and right.stride() == left.stride()
        y = x if same else _by_share(right, shares, each)
        products = out.new_empty(len(x), *out.shape[1:])
        torch.bmm(x, y.mT, out=products)  # autocast leaves what is written into a tensor alone
        out.sub_(products.unflatten(0, (-1, shares)).sum(1), alpha=2.0)
    rest = shares * each
    if rest < left.shape[-1]:
        out.baddbmm_(left[..., rest:], right[..., rest:].mT, alpha=-2.0)


def _by_share(x: Tensor, shares: int, each: int) -> Tensor:
    """Points in some of their coordinates each, shape (B * shares, n, each)."""
    return x[..., : shares * each].unflatten(-1, (shares, each)).transpose(1, 2).flatten(0, 1)


def split_terms(left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Factors whose products sum up to that of two float32 factors, each with few significant bits."""
    parts = []
    for x in (left, right):
        high = x.view(torch.int32).bitwise_and(_HIGH_BITS).view(torch.float32)
        parts.append((high, x - high))
    (left_high, left_low), (right_high, right_low) = parts
    return [(left_high, right_high), (left_high, right_low), (left_low, right_high)]


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is not above each number, so that dividing by it is exact; of 0, a tiny one."""
    bits, mask = (torch.int64, 0x7FF0000000000000) if x.dtype == torch.float64 else (torch.int32, 0x7F800000)
    return x.clamp_min(torch.finfo(x.dtype).tiny).view(bits).bitwise_and_(mask).view(x.dtype)


def row_blocks(groups: int, n: int, device: torch.device) -> list[slice]:
    """Rows of the matrices of pairs that are worked on at a time, against the columns from the first of them on."""
    size = (
        max(_MIN_BLOCK_ROWS, _BLOCK_ELEMENTS // n) if device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS // (groups * n)
    )
    size = max(1, size)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def largest(x: Tensor, dims: tuple[int, ...], scratch: Tensor | None = None) -> Tensor:
    """The largest absolute value over some dimensions; of what is not finite, what is not finite."""
    if x.device.type == "cpu":
        out = scratch if scratch is not None and scratch.dtype == x.dtype else None
        return torch.abs(x, out=out).amax(dims)  # twenty times as fast as the norm there
    return torch.linalg.vector_norm(x, math.inf, dims)


def squared_lengths(x: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Sums of squares over the last dimension, right to a few roundings."""
    if x.device.type == "cpu":
        return torch.mul(x, x, out=scratch).sum(-1)  # in pairs, where the norm adds one term after the other
    return torch.linalg.vector_norm(x, dim=-1).square_()


def smallest_size(dtype: torch.dtype) -> float:
    """What a cloud or an update counts as at the least, where the largest coordinate of all is about one.

    Squares of smaller ones may underflow, which is allowed for where bounds are taken: see ``least_square``.
    """
    return 2.0**-300 if dtype == torch.float64 else 2.0**-30


def least_square(dtype: torch.dtype) -> float:
    """Far above what underflow takes from a sum of squares, and far below the squares of a cloud of size one."""
    return 1e-280 if dtype == torch.float64 else 1e-28


def mixed_integers(count: int, device: torch.device) -> Tensor:
    """So many integers of 32 bits without a pattern, always the same, made where they are needed."""
    # No number is twice another one, for that would show in the result.
    x = torch.arange(2**40, 2**40 + count, device=device).mul_(0x9E3779B97F4A7C1)
    return x.bitwise_xor_(x >> 29).mul_(0x2545F4914F6CDD1D).__rshift__(31).to(torch.int32)


def hashes(points: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Numbers of 32 bits that are equal for points whose coordinates are all equal, and else rarely, shape (..., n)."""
    bits = points.view(torch.int32)
    factors = mixed_integers(bits.shape[-1], points.device)
    # The low bits of numbers in half precision are all zero.
    mixed = torch.bitwise_right_shift(bits, 15, out=None if scratch is None else scratch.view(torch.int32))
    return mixed.bitwise_xor_(bits).mul_(factors).sum(-1, dtype=torch.int32)


def _kept(dtype: torch.dtype) -> bool:
    return dtype == torch.float64 or single_precision_is_kept()
