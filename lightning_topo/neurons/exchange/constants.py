"""Which exchanges of positions leave a constant tensor as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

# Larger tensors are masks and tables; identities are as large as the square of a layer's width.
_MOST_NUMBERS = 2**22
_FEWEST_FLATTENED = 3  # four numbers may be an identity of 2 x 2 by chance


def same_everywhere(tensor: Tensor) -> bool:
    """Whether a tensor of real numbers holds one number at all of several positions."""
    real = tensor.is_floating_point() and tensor.layout is torch.strided
    return real and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def equal_slices(tensor: Tensor, axis: int) -> bool:
    """Whether all slices along the axis are equal, so that any exchange of them leaves the tensor as it is."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.shape[axis] < 2 or bool((tensor == tensor.narrow(axis, 0, 1)).all())


def twin_axes(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Pairs of axes along which the tensor stays as it is if the same positions are exchanged along both.

    Along them it is a multiple of the identity plus a constant. An axis is a pair with itself if that is so once it is
    folded into a square.

    Example:
        >>> twin_axes(torch.eye(4)), twin_axes(torch.eye(4).flatten()), twin_axes(torch.ones(4, 4).tril())
        (((0, 1),), ((0, 0),), ())
    """
    if tensor.layout is not torch.strided or not 3 < tensor.numel() <= _MOST_NUMBERS:
        return ()
    found: list[tuple[int, int]] = []
    for one, other in _squares(tensor):
        if not {one, other} & {axis for pair in found for axis in pair}:
            side = math.isqrt(tensor.shape[one])
            matrix = tensor.unflatten(one, (side, side)) if one == other else tensor
            if _like_identity(matrix, one, other + (one == other)):
                found.append((one, other))
    return tuple(found)


def _squares(tensor: Tensor) -> Iterator[tuple[int, int]]:
    for one, other in combinations(range(tensor.ndim), 2):
        if tensor.shape[one] == tensor.shape[other] > 1:
            yield one, other
    for axis, size in enumerate(tensor.shape):
        if size == math.isqrt(size) ** 2 >= _FEWEST_FLATTENED**2:
            yield axis, axis


def _like_identity(tensor: Tensor, one: int, other: int) -> bool:
    """Whether each matrix along two axes has one number on its diagonal and another one off it."""
    matrix = tensor.movedim((one, other), (0, 1))
    on, off = matrix[0, 0], matrix[0, 1]
    diagonal = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    diagonal = diagonal.reshape(*diagonal.shape, *[1] * (matrix.ndim - 2))
    return bool((matrix == torch.where(diagonal, on, off)).all()) and not bool((on == off).all())
