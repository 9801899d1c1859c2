"""Reshaping of structured axes, and packed axes that are told apart by an index.

A packed query-key-value projection is reshaped to (..., 3, heads, channels) and then indexed along the 3. Its axis is
the concatenation of three, so after the reshape the tensor has an ``Index`` axis of length 3 and ``Family`` axes whose
meaning depends on the position along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from lightning_topo.neurons.tracing.axes import (
    Atom,
    Axis,
    Concat,
    Free,
    Misaligned,
    concat,
    factor,
    product,
    resolve,
    unify,
)


@dataclass(frozen=True, eq=False)
class Index:
    """The axis along which the members of a family lie."""

    size: int


@dataclass(frozen=True, eq=False)
class Family:
    """An axis that is ``parts[i]`` at position i along ``index``."""

    index: Index
    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.parts[0].size


AnyAxis = Axis | Index | Family


def plain(axes: Sequence[AnyAxis]) -> list[Axis]:
    """The axes with families given up: their members become one."""
    return [_plain(axis) for axis in axes]


def pick(axes: Sequence[AnyAxis], index: Index, position: int) -> list[AnyAxis]:
    """The axes, without ``index``, of the slice at ``position`` along it."""
    return [
        axis.parts[position] if isinstance(axis, Family) and axis.index is index else axis
        for axis in axes
        if axis is not index
    ]


def some(axes: Sequence[AnyAxis], index: Index, start: int, stop: int) -> list[AnyAxis]:
    """The axes of the slice from ``start`` to ``stop`` along ``index``."""
    shorter = Index(stop - start)
    return [
        Family(shorter, axis.parts[start:stop])
        if isinstance(axis, Family) and axis.index is index
        else shorter
        if axis is index
        else axis
        for axis in axes
    ]


def reshape(axes: Sequence[AnyAxis], shape: Sequence[int], split_sites: set[object], site: object) -> list[AnyAxis]:
    """The axes of a tensor after a reshape.

    Args:
        axes: Before.
        shape: After.
        split_sites: Places at which a packed axis is known to be indexed later, so that it becomes a family.
        site: Names this reshape.

    Raises:
        Misaligned: Axes are cut at places that have no common meaning.
    """
    rest = [axis for axis in axes if axis.size != 1]
    result: list[AnyAxis] = []
    for position, size in enumerate(shape):
        factors: list[AnyAxis] = []
        needed = size
        while needed > 1:
            head = rest.pop(0)
            front, back = _split(head, math.gcd(head.size, needed), (site, position), split_sites)
            if front.size == 1 or (back.size > 1 and front.size < needed):
                raise Misaligned
            factors.append(front)
            rest[:0] = [back] if back.size > 1 else []
            needed //= front.size
        result.append(_merge(factors))
    return _whole_families(result)


def _split(axis: AnyAxis, size: int, site: object, split_sites: set[object]) -> tuple[AnyAxis, AnyAxis]:
    if size == axis.size:
        return axis, Free(1)
    if isinstance(axis, Index):
        raise Misaligned
    if isinstance(axis, Family):
        pairs = [factor(part, size) for part in axis.parts]
        return Family(axis.index, tuple(f for f, _ in pairs)), Family(axis.index, tuple(b for _, b in pairs))
    axis = resolve(axis)
    if isinstance(axis, Atom) and axis.reason is None and site in split_sites:
        axis.bound = Concat(tuple(Atom(axis.size // size) for _ in range(size)))
        axis = axis.bound
    if isinstance(axis, Concat) and [part.size * size for part in axis.parts] == [axis.size] * size:
        index = Index(size)
        return index, Family(index, axis.parts)
    front, back = factor(axis, size)
    if isinstance(front, Atom):
        front.sites.add(site)
    return front, back


def _merge(factors: Sequence[AnyAxis]) -> AnyAxis:
    indices = {axis.index for axis in factors if isinstance(axis, Family)}
    leading = factors[0] if factors and isinstance(factors[0], Index) else None
    if len(factors) == 1:
        return factors[0]
    if leading and indices <= {leading}:
        return concat(product(_part(axis, i) for axis in factors[1:]) for i in range(leading.size))
    if len(indices) == 1 and not any(isinstance(axis, Index) for axis in factors):
        (index,) = indices
        return Family(index, tuple(product(_part(axis, i) for axis in factors) for i in range(index.size)))
    return product(plain(factors))


def _whole_families(axes: list[AnyAxis]) -> list[AnyAxis]:
    """A family whose index is gone cannot be told apart any more."""
    indices = [axis for axis in axes if isinstance(axis, Index)]
    return [_plain(axis) if isinstance(axis, Family) and axis.index not in indices else axis for axis in axes]


def _part(axis: AnyAxis, position: int) -> Axis:
    return axis.parts[position] if isinstance(axis, Family) else _plain(axis)


def _plain(axis: AnyAxis) -> Axis:
    if isinstance(axis, Index):
        return Atom(axis.size, "position in a packed axis")
    return reduce(unify, axis.parts) if isinstance(axis, Family) else resolve(axis)
