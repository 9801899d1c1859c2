"""Reshaping of structured axes, and packed axes that are told apart by an index.

A packed query-key-value projection is reshaped to (..., 3, heads, channels) and then indexed along the 3. Its axis is
the concatenation of three, so after the reshape the tensor has an ``Index`` axis of three parts and ``Family`` axes
whose meaning depends on the part. Where several heads of queries share one key, the parts are (heads, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise

from lightning_topo.neurons.tracing.alignment import Misaligned, factor, unify
from lightning_topo.neurons.tracing.axes import Atom, Axis, Concat, Free, concat, freeze, product, resolve

# Of each reshape that makes a packed axis, at which positions it is cut later.
Cuts = Mapping[object, frozenset[int]]


@dataclass(frozen=True, eq=False)
class Index:
    """The axis along which the members of a family lie: ``parts[k]`` of it have the family's part k.

    Attributes:
        parts: The positions of each member.
        site: The reshape that made it, None if none did.
        offset: Where it begins on the axis that the reshape made.
    """

    parts: tuple[Axis, ...]
    site: object = None
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, eq=False)
class Family:
    """An axis that is ``parts[k]`` wherever the index is in its part k."""

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


def narrowed(axes: Sequence[AnyAxis], dim: int, start: int, stop: int) -> list[AnyAxis] | None:
    """The axes of the slice from ``start`` to ``stop`` along the index at ``dim``; None if it cuts a part of it."""
    index = axes[dim]
    assert isinstance(index, Index)
    ends = list(accumulate((part.size for part in index.parts), initial=0))
    if start not in ends or stop not in ends or start >= stop:
        return None
    first, last = ends.index(start), ends.index(stop)
    shorter = Index(index.parts[first:last], index.site, index.offset + start)
    along: AnyAxis = shorter if last - first > 1 else index.parts[first]
    result: list[AnyAxis] = []
    for position, axis in enumerate(axes):
        if isinstance(axis, Family) and axis.index is index:
            result.append(Family(shorter, axis.parts[first:last]) if last - first > 1 else axis.parts[first])
        else:
            result.append(along if position == dim else axis)
    return result


def reshape(axes: Sequence[AnyAxis], shape: Sequence[int], cuts: Cuts, site: object, reason: str) -> list[AnyAxis]:
    """The axes of a tensor after a reshape; those that are cut where they have no common meaning are frozen.

    Args:
        axes: Before.
        shape: After.
        cuts: Places at which packed axes are known to be cut later, so that they become families.
        site: Names this reshape, and all that make the same of the same tensor.
        reason: Why axes are frozen.
    """
    if 0 in shape:
        return [Free(size) for size in shape]
    result: list[AnyAxis] = [Free(1)] * len(shape)
    for before, after in _blocks([axis.size for axis in axes], shape):
        block = [axes[position] for position in before]
        try:
            made = _reshaped(block, {position: shape[position] for position in after}, cuts, site)
        except Misaligned:
            for axis in plain(block):
                freeze(axis, reason)
            made = dict[int, AnyAxis]((position, Atom(shape[position], reason)) for position in after)
        result = [made.get(position, axis) for position, axis in enumerate(result)]
    return _whole_families(result)


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Positions of neighbouring axes that a reshape turns into one another, as few as possible; none of size 1."""
    rest, ahead = ([i for i, size in enumerate(sizes) if size != 1] for sizes in (before, after))
    while rest:
        taken, made = [rest.pop(0)], [ahead.pop(0)]
        while (n := math.prod(before[i] for i in taken)) != (m := math.prod(after[i] for i in made)):
            (taken if n < m else made).append((rest if n < m else ahead).pop(0))
        yield taken, made


def _reshaped(axes: list[AnyAxis], sizes: Mapping[int, int], cuts: Cuts, site: object) -> dict[int, AnyAxis]:
    rest = list(axes)
    result: dict[int, AnyAxis] = {}
    for position, needed in sizes.items():
        factors: list[AnyAxis] = []
        while needed > 1:
            head = rest.pop(0)
            front, back = _split(head, math.gcd(head.size, needed), (site, position), cuts)
            if front.size == 1 or (back.size > 1 and front.size < needed):
                raise Misaligned
            factors.append(front)
            rest[:0] = [back] if back.size > 1 else []
            needed //= front.size
        result[position] = _merge(factors)
    return result


def _split(axis: AnyAxis, size: int, site: object, cuts: Cuts) -> tuple[AnyAxis, AnyAxis]:
    if size == axis.size:
        return axis, Free(1)
    if isinstance(axis, Index):
        raise Misaligned
    if isinstance(axis, Family):
        pairs = [factor(part, size) for part in axis.parts]
        return Family(axis.index, tuple(f for f, _ in pairs)), Family(axis.index, tuple(b for _, b in pairs))
    axis = _cut(resolve(axis), axis.size // size, cuts.get(site, frozenset()))
    if isinstance(axis, Concat) and all(part.size % (axis.size // size) == 0 for part in axis.parts):
        pairs = [factor(part, part.size * size // axis.size) for part in axis.parts]
        if all(back is pairs[0][1] for _, back in pairs):
            return concat(front for front, _ in pairs), pairs[0][1]
        index = Index(tuple(front for front, _ in pairs), site)
        return index, Family(index, tuple(back for _, back in pairs))
    front, back = factor(axis, size)
    if isinstance(front, Atom):
        front.sites.add(site)
    return front, back


def _cut(axis: Axis, inner: int, at: frozenset[int]) -> Axis:
    """The axis with its atoms cut at some multiples of ``inner``, so that both sides have nothing in common."""
    start = 0
    for part in axis.parts if isinstance(axis, Concat) else (axis,):
        size = part.size // inner
        bounds = [0, *sorted(cut - start for cut in at if start < cut < start + size), size]
        if isinstance(part, Atom) and part.reason is None and len(bounds) > 2 and part.size % inner == 0:
            part.bound = concat([product((Atom(stop - begin), Atom(inner))) for begin, stop in pairwise(bounds)])
        start += size
    return resolve(axis)


def _merge(factors: Sequence[AnyAxis]) -> AnyAxis:
    """One axis of several, the first of them outermost."""
    if len(factors) == 1:
        return factors[0]
    found = next(((i, axis) for i, axis in enumerate(factors) if isinstance(axis, Index)), None)
    if found is None:
        indices = {axis.index for axis in factors if isinstance(axis, Family)}
        if len(indices) != 1:
            return product(plain(factors))
        (index,) = indices
        parts = range(len(index.parts))
        return Family(index, tuple(product(_part(axis, index, k) for axis in factors) for k in parts))
    where, leading = found
    behind = factors[where + 1 :]
    packed = concat(
        [product((part, *(_part(axis, leading, k) for axis in behind))) for k, part in enumerate(leading.parts)]
    )
    return _merge([*factors[:where], packed])


def _whole_families(axes: list[AnyAxis]) -> list[AnyAxis]:
    """A family whose index is gone cannot be told apart any more."""
    indices = [axis for axis in axes if isinstance(axis, Index)]
    return [_plain(axis) if isinstance(axis, Family) and axis.index not in indices else axis for axis in axes]


def _part(axis: AnyAxis, index: Index, k: int) -> Axis:
    return axis.parts[k] if isinstance(axis, Family) and axis.index is index else _plain(axis)


def _plain(axis: AnyAxis) -> Axis:
    if isinstance(axis, Index):
        return concat([part if part.size > 1 else Atom(1, "position in a packed axis") for part in axis.parts])
    return reduce(unify, axis.parts) if isinstance(axis, Family) else resolve(axis)
