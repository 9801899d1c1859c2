"""What a list of positions takes from an axis: a slice, every second one, each repeated, blocks in another order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lightning_topo.neurons.tracing.alignment import Misaligned, factor, segment
from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, concat, freeze, product, resolve

# A list that falls into more runs than this names its positions one by one.
_MOST_RUNS = 16

Loops = list[tuple[int, int]]  # length and stride of each, outermost first


def taken_at(axis: Axis, positions: Sequence[int], reason: str) -> Axis:
    """The axis of what lies at ``positions``; where they have no pattern, the axis is frozen."""
    axis = resolve(axis)
    if isinstance(axis, Free) or not positions:
        return Free(len(positions))
    try:
        loops = loops_of(positions)
        if loops is not None and all(stride >= 0 for _, stride in loops):
            return _looped(axis, positions[0], loops)
        return concat(segment(axis, start, stop) for start, stop in _runs(positions))
    except Misaligned:
        freeze(axis, reason)
        return Atom(len(positions), reason)


def loops_of(positions: Sequence[int]) -> Loops | None:
    """Nested loops that count through the positions from the first on; None if there are none.

    Example:
        >>> loops_of([0, 0, 1, 1, 2, 2])
        [(3, 1), (2, 0)]
        >>> loops_of([0, 3, 1, 4, 2, 5])
        [(3, 1), (2, 3)]
    """
    loops: Loops = []
    heads = list(positions)
    while len(heads) > 1:
        stride = heads[1] - heads[0]
        length = next((i for i in range(1, len(heads)) if heads[i] - heads[i - 1] != stride), len(heads))
        if len(heads) % length:
            return None
        if any(heads[i] - heads[i - 1] != stride for i in range(1, len(heads)) if i % length):
            return None
        loops.insert(0, (length, stride))
        heads = heads[::length]
    return loops


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring positions taken together, as (start, stop)."""
    bounds = [0, *(i for i in range(1, len(positions)) if positions[i] != positions[i - 1] + 1), len(positions)]
    if len(bounds) > _MOST_RUNS + 1:
        raise Misaligned
    return [(positions[begin], positions[end - 1] + 1) for begin, end in pairwise(bounds)]


def _looped(axis: Axis, first: int, loops: Loops) -> Axis:
    """Each loop with a stride is a factor of the axis, each without repeats the same positions."""
    factors: dict[int, Axis] = {}
    inside = axis
    for stride, length in sorted(((stride, length) for length, stride in loops if stride), reverse=True):
        if stride < 0 or stride in factors:
            raise Misaligned
        start = first - first % stride if first - first % stride + length * stride <= inside.size else first
        if start + length * stride > inside.size:
            raise Misaligned
        factors[stride], inside = factor(segment(inside, start, start + length * stride), length)
        first -= start
    if inside.size > 1:
        segment(inside, first, first + 1)  # the others are not taken, so they are told apart
    elif not factors:
        segment(axis, first, first + 1)
    return product(factors[stride] if stride else Free(length) for length, stride in loops)
