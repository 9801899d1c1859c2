"""Alignment of tensor axes: two of them made one, factored, or cut, with what that refines in every other tensor.

Aligning two axes makes their atoms one; where the layouts differ, atoms are refined into products or concatenations,
for every tensor that carries them.
"""

from __future__ import annotations

import math

from lightning_topo.neurons.tracing.axes import Atom, Axis, Concat, Free, Product, concat, freeze, product, resolve


class Misaligned(Exception):  # noqa: N818 (a signal, not an error of the user)
    """Two layouts have no common refinement."""


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
