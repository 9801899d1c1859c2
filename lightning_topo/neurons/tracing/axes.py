"""Algebra of tensor axes: which positions of an axis are units, and where each set of units lies.

An axis is an atom (a set of units), a product (units of the first factor, each a block of the others, as a flattened
convolution output), or a concatenation (packed gates). See ``alignment`` for how two axes become one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


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
