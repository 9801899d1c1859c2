"""Algebra of tensor axes: which positions of two axes are the same unit.

An axis is an atom (a set of units), a product (units of the first factor, each a block of the others, as a flattened
convolution output), or a concatenation (packed gates). Aligning two axes makes their atoms one; where the layouts
differ, atoms are refined into products or concatenations, for every tensor that carries them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


class Misaligned(Exception):  # noqa: N818 (a signal, not an error of the user)
    """Two layouts have no common refinement."""


class Atom:
    """Units that no operation has told apart so far.

    Attributes:
        size: Number of units.
        reason: Why they cannot be exchanged; None while they can.
        bound: What the atom was refined into or made one with.
        sites: Reshapes that made the atom as the leading factor of a packed axis.
    """

    __slots__ = ("bound", "reason", "sites", "size")

    def __init__(self, size: int, reason: str | None = None) -> None:
        self.size = size
        self.reason = reason
        self.bound: Axis | None = None
        self.sites: set[object] = set()


@dataclass(frozen=True, eq=False)
class Free:
    """Positions that all hold the same values, so that any exchange leaves them as they are."""

    size: int


@dataclass(frozen=True, eq=False)
class Product:
    """Row-major product of at least two factors."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(part.size for part in self.parts)


@dataclass(frozen=True, eq=False)
class Concat:
    """Concatenation of at least two segments."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)


Axis = Atom | Free | Product | Concat


def resolve(axis: Axis) -> Axis:
    """The axis in normal form, with every refinement made so far."""
    if isinstance(axis, Atom):
        if axis.bound is None:
            return axis
        axis.bound = resolve(axis.bound)
        return axis.bound
    if isinstance(axis, Product):
        return product(map(resolve, axis.parts))
    if isinstance(axis, Concat):
        return concat(map(resolve, axis.parts))
    return axis


def product(axes: Iterable[Axis]) -> Axis:
    """Normal form of a product: no factor of size 1, no product or leading concatenation inside."""
    factors = _squashed((factor for factor in _flat(axes, Product) if factor.size > 1), lambda a, b: a * b)
    if len(factors) < 2:
        return factors[0] if factors else Free(1)
    if isinstance(factors[0], Concat):
        return concat(product((segment, *factors[1:])) for segment in factors[0].parts)
    return Product(tuple(factors))


def concat(axes: Iterable[Axis]) -> Axis:
    """Normal form of a concatenation: no concatenation inside."""
    segments = _squashed(_flat(axes, Concat), lambda a, b: a + b)
    return segments[0] if len(segments) == 1 else Concat(tuple(segments))


def atoms(axis: Axis) -> Iterator[Atom]:
    """Every atom of the axis, from left to right."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis
    elif isinstance(axis, (Product, Concat)):
        for part in axis.parts:
            yield from atoms(part)


def freeze(axis: Axis, reason: str) -> None:
    """From now on no unit of the axis can be exchanged."""
    for atom in atoms(axis):
        atom.reason = atom.reason or reason


def frozen(axis: Axis) -> bool:
    """Whether no unit of the axis can be exchanged."""
    return all(atom.reason is not None for atom in atoms(axis))


def unify(first: Axis, second: Axis) -> Axis:
    """Make position i of one axis the same unit as position i of the other; returns the common axis."""
    first, second = resolve(first), resolve(second)
    if first is second or isinstance(second, Free):
        return first
    if isinstance(first, Free):
        return second
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Atom) and one.reason is not None:
            freeze(other, one.reason)
            return one
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Atom):
            return _bind(one, other)
    try:
        return _align(first, second)
    except Misaligned:
        reason = "its layout does not fit that of another axis"
        freeze(first, reason)
        freeze(second, reason)
        return Atom(first.size, reason)


def factor(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """The axis as a product: its leading factor of ``size``, and the rest.

    Raises:
        Misaligned: The layout does not allow it.
    """
    axis = resolve(axis)
    if size == 1 or size == axis.size:
        return (axis, Free(1)) if size > 1 else (Free(1), axis)
    rest = axis.size // size
    if axis.size % size:
        raise Misaligned
    if isinstance(axis, Free):
        return Free(size), Free(rest)
    if isinstance(axis, Atom):
        first, second = Atom(size, axis.reason), Atom(rest, axis.reason)
        if axis.reason is None:
            axis.bound = Product((first, second))
        return first, second
    if isinstance(axis, Concat):
        pairs = [factor(part, part.size // rest) for part in axis.parts if part.size % rest == 0]
        if len(pairs) < len(axis.parts):
            raise Misaligned
        common = pairs[0][1]
        for _, back in pairs[1:]:
            common = unify(common, back)
        return concat(front for front, _ in pairs), common
    head, tail = axis.parts[0], product(axis.parts[1:])
    if size % head.size == 0:
        front, back = factor(tail, size // head.size)
        return product((head, front)), back
    front, back = factor(head, size)
    return front, product((back, tail))


def cut(axis: Axis, position: int) -> tuple[Axis, Axis]:
    """The axis as a concatenation of what lies before ``position`` (0 < position < size) and what lies behind.

    Raises:
        Misaligned: The layout does not allow it.
    """
    axis = resolve(axis)
    if isinstance(axis, Free):
        return Free(position), Free(axis.size - position)
    if isinstance(axis, Atom):
        first, second = Atom(position, axis.reason), Atom(axis.size - position, axis.reason)
        if axis.reason is None:
            axis.bound = Concat((first, second))
        return first, second
    if isinstance(axis, Product):
        head, tail = axis.parts[0], product(axis.parts[1:])
        if position % tail.size:
            raise Misaligned
        before, behind = cut(head, position // tail.size)
        return product((before, tail)), product((behind, tail))
    end = 0
    for index, part in enumerate(axis.parts):
        start, end = end, end + part.size
        if position == end:
            return concat(axis.parts[: index + 1]), concat(axis.parts[index + 1 :])
        if position < end:
            before, behind = cut(part, position - start)
            return concat((*axis.parts[:index], before)), concat((behind, *axis.parts[index + 1 :]))
    raise Misaligned


def segment(axis: Axis, start: int, stop: int) -> Axis:
    """Positions ``start`` to ``stop`` of the axis.

    Raises:
        Misaligned: The layout does not allow it.
    """
    if stop < axis.size:
        axis, _ = cut(axis, stop)
    return cut(axis, start)[1] if start else resolve(axis)


def segment_or_frozen(axis: Axis, start: int, stop: int, reason: str) -> Axis:
    """As ``segment``; an axis whose layout does not allow it is frozen."""
    try:
        return segment(axis, start, stop)
    except Misaligned:
        freeze(axis, reason)
        return Atom(stop - start, reason)


def factor_or_frozen(axis: Axis, size: int, reason: str) -> tuple[Axis, Axis]:
    """As ``factor``; an axis whose layout does not allow it is frozen."""
    try:
        return factor(axis, size)
    except Misaligned:
        if axis.size % size:
            raise
        freeze(axis, reason)
        return Atom(size, reason), Atom(axis.size // size, reason)


def occurrences(axis: Axis) -> Iterator[tuple[Atom, int, int]]:
    """Where each exchangeable atom lies on the axis: (atom, offset, positions in a row that belong to one unit)."""
    axis = resolve(axis)
    if isinstance(axis, Atom) and axis.reason is None and axis.size > 1:
        yield axis, 0, 1
    elif isinstance(axis, Concat):
        start = 0
        for part in axis.parts:
            yield from ((atom, start + offset, inner) for atom, offset, inner in occurrences(part))
            start += part.size
    elif isinstance(axis, Product):
        head, tail = axis.parts[0], product(axis.parts[1:])
        yield from ((atom, offset * tail.size, inner * tail.size) for atom, offset, inner in occurrences(head))
        inside = list(occurrences(tail))
        for block in range(head.size if inside else 0):
            yield from ((atom, block * tail.size + offset, inner) for atom, offset, inner in inside)


def _align(first: Axis, second: Axis) -> Axis:
    """Common refinement of two compound axes."""
    if isinstance(first, Concat) or isinstance(second, Concat):
        head = min(axis.parts[0].size if isinstance(axis, Concat) else axis.size for axis in (first, second))
        pairs = zip(cut(first, head), cut(second, head), strict=True)
        return concat([unify(one, other) for one, other in pairs])
    assert isinstance(first, Product)
    assert isinstance(second, Product)
    head = math.gcd(first.parts[0].size, second.parts[0].size)
    if head == 1:
        raise Misaligned
    pairs = zip(factor(first, head), factor(second, head), strict=True)
    return product([unify(one, other) for one, other in pairs])


def _bind(atom: Atom, axis: Axis) -> Axis:
    """Make the atom what ``axis`` is; free positions in it become units of the atom's own."""
    atom.bound = _owned(axis)
    if isinstance(atom.bound, Atom):
        atom.bound.sites |= atom.sites
    return atom.bound


def _owned(axis: Axis) -> Axis:
    if isinstance(axis, Free):
        return Atom(axis.size)
    if isinstance(axis, Product):
        return product(map(_owned, axis.parts))
    return concat(map(_owned, axis.parts)) if isinstance(axis, Concat) else axis


def _flat(axes: Iterable[Axis], kind: type[Product] | type[Concat]) -> Iterator[Axis]:
    for axis in axes:
        yield from axis.parts if isinstance(axis, kind) else (axis,)


def _squashed(parts: Iterable[Axis], size: Callable[[int, int], int]) -> list[Axis]:
    """Neighbours that are frozen both are one frozen atom: nothing has to tell them apart."""
    squashed: list[Axis] = []
    for part in parts:
        last = squashed[-1] if squashed else None
        if isinstance(part, Atom) and isinstance(last, Atom) and part.reason and last.reason:
            squashed[-1] = Atom(size(last.size, part.size), last.reason)
        else:
            squashed.append(part)
    return squashed
