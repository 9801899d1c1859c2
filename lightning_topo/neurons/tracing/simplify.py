"""Pieces of an axis that are put together again: what was cut for that alone is not cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lightning_topo.neurons.tracing.loops import Loop, NoLoop
from lightning_topo.neurons.tracing.trace import Operation, Trace, Value

_SPLITS = (
    "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split",
)  # fmt: skip
_CUTS = frozenset((*_SPLITS, "slice", "select", "unbind", "alias"))


@dataclass(frozen=True, eq=False)
class _Piece:
    """Positions ``start`` to ``stop`` of one axis of another value; ``single``: one position, and the axis is gone."""

    whole: Value
    dim: int
    start: int
    stop: int
    single: bool = False


def simplified(trace: Trace) -> Trace:
    """The trace with joins of neighbouring pieces as views of what they are pieces of, and slices of slices as one.

    A loop over heads that are stacked again thus reads as the reshape that it is, and one that computes on each of them
    as the computation on all. Where anything is written in place
    to the memory of the pieces, they are left alone.
    """
    written = {op.inputs[0].memory for op in trace.operations if op.name.endswith("_") and op.inputs}
    pieces: dict[Value, _Piece] = {}
    same: dict[Value, Value] = {}  # torch 2.4 writes x[:, 1:] as a slice of all rows, and of that one of the columns
    made_by: dict[Value, tuple[Operation, int]] = {}
    replaced: set[Operation] = set()
    operations: list[Operation] = []
    for op in trace.operations:
        if op.name in _CUTS and op.inputs and op.inputs[0].memory not in written:
            if _is_whole(op):
                (value,), known = op.outputs, pieces.get(op.inputs[0])
                same[value] = same.get(op.inputs[0], op.inputs[0])
                pieces.update({} if known is None else {value: known})
            else:
                op = _composed(op, pieces)
                pieces.update(_pieces(op, pieces, same))
        made_by.update((value, (op, i)) for i, value in enumerate(op.outputs))
        made = None
        if op.name in ("cat", "stack"):
            made = _rejoined(op, pieces) or _without_loop(op, pieces, made_by, trace, replaced)
        operations += made or [op]
    return replace(trace, operations=_needed(operations, trace.results, replaced))


def _is_whole(op: Operation) -> bool:
    """Whether a slice leaves its input as it is."""
    shape = op.inputs[0].shape
    return op.name == "slice" and bool(shape) and _range(op) == (0, shape[op.arguments["dim"]], 1)


def _pieces(
    op: Operation, pieces: Mapping[Value, _Piece], same: Mapping[Value, Value]
) -> Iterator[tuple[Value, _Piece]]:
    """What each output of a cut is of its input, or of what that is a piece of."""
    whole = same.get(op.inputs[0], op.inputs[0])
    if op.name == "alias" or not whole.shape:
        return
    dim = op.arguments["dim"] % len(whole.shape)
    first, known = 0, pieces.get(op.inputs[0])
    if known is not None and known.dim == dim and not known.single:
        whole, first = known.whole, known.start
    if op.name == "slice":
        start, stop, step = _range(op)
        if step == 1:
            yield op.outputs[0], _Piece(whole, dim, first + start, first + max(stop, start))
    elif op.name in ("select", "unbind"):
        index = op.arguments["index"] % op.inputs[0].shape[dim] if op.name == "select" else 0
        for i, value in enumerate(op.outputs, start=first + index):
            yield value, _Piece(whole, dim, i, i + 1, single=True)
    else:
        start = first
        for value in op.outputs:
            yield value, _Piece(whole, dim, start, start + value.shape[dim])
            start += value.shape[dim]


def _composed(op: Operation, pieces: dict[Value, _Piece]) -> Operation:
    """A slice of a piece as a slice of the whole."""
    known = pieces.get(op.inputs[0])
    if op.name != "slice" or known is None or known.single:
        return op
    dim = op.arguments["dim"] % len(op.inputs[0].shape)
    start, stop, step = _range(op)
    if dim != known.dim or step == 1 or stop <= start:
        return op
    last = start + (op.outputs[0].shape[dim] - 1) * step
    return _slice(known.whole, op.outputs[0], dim, known.start + start, known.start + last + 1, step)


def _rejoined(op: Operation, pieces: dict[Value, _Piece]) -> list[Operation] | None:
    """The views that make the same of the whole as the join makes of its pieces; None if they are not neighbours."""
    parts = [pieces.get(value) for value in op.arguments["tensors"]]
    known = [part for part in parts if part is not None]
    if len(known) < 2 or len(known) < len(parts):
        return None
    first = known[0]
    sizes = {part.stop - part.start for part in known}
    alike = all((p.whole, p.dim, p.single) == (first.whole, first.dim, first.single) for p in known)
    if not alike or any(one.stop != other.start for one, other in pairwise(known)):
        return None
    out, n = op.outputs[0], len(known)
    dim = op.arguments["dim"] % len(out.shape)
    views = _Views(first.whole)
    views.cut(first.dim, first.start, known[-1].stop)
    if op.name == "cat" and dim == first.dim and not first.single:
        return views.ending_in(out)
    if len(sizes) > 1:
        return None
    if not first.single:
        views.unflatten(first.dim, n)
    views.move(first.dim, dim)  # the axis that counts the pieces; a ``cat`` has it in front of what it makes longer
    return views.ending_in(out)


def _without_loop(
    op: Operation,
    pieces: Mapping[Value, _Piece],
    made_by: Mapping[Value, tuple[Operation, int]],
    trace: Trace,
    replaced: set[Operation],
) -> list[Operation] | None:
    """What makes the same as a join of what a loop over pieces makes; None if there is no such loop."""
    values = list(op.arguments["tensors"])
    if len(set(values)) < 2 or any(value.shape != values[0].shape for value in values):
        return None

    def stacked(parts: Sequence[Value]) -> tuple[list[Operation], Value] | None:
        return _stacked([pieces.get(part) for part in parts])

    loop = Loop(made_by, stacked, trace.is_live, len(values))
    try:
        views = _Views(loop.lifted(values))
    except NoLoop:
        return None
    replaced |= loop.replaced
    views.move(0, op.arguments["dim"] % len(op.outputs[0].shape))
    return [*loop.operations, *views.ending_in(op.outputs[0])]


def _stacked(parts: Sequence[_Piece | None]) -> tuple[list[Operation], Value] | None:
    """Neighbouring pieces of one axis along a leading axis; None if they are none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not _neighbours(known):
        return None
    first = known[0]
    views = _Views(first.whole)
    views.cut(first.dim, first.start, known[-1].stop)
    if not first.single:
        views.unflatten(first.dim, len(known))
    views.move(first.dim, 0)
    return views.made()


def _neighbours(parts: Sequence[_Piece]) -> bool:
    """Whether the pieces are of one size, and follow each other on one axis."""
    first = parts[0]
    alike = all((p.whole, p.dim, p.single, p.stop - p.start) == (first.whole, first.dim, first.single,
                first.stop - first.start) for p in parts)  # fmt: skip
    return alike and all(one.stop == other.start for one, other in pairwise(parts))


class _Views:
    """A chain of operations that change no number, from one value on."""

    def __init__(self, value: Value) -> None:
        self._value = value
        self._operations: list[Operation] = []

    def cut(self, dim: int, start: int, stop: int) -> None:
        """Positions ``start`` to ``stop`` of one axis."""
        if stop - start < self._value.shape[dim]:
            shape = list(self._value.shape)
            shape[dim] = stop - start
            value = self._like(shape)
            self._add(_slice(self._value, value, dim, start, stop, 1))

    def unflatten(self, dim: int, n: int) -> None:
        """One axis as ``n`` times the rest of it."""
        shape = self._value.shape
        self._view([*shape[:dim], n, shape[dim] // n, *shape[dim + 1 :]])

    def move(self, dim: int, to: int) -> None:
        """One axis at another place."""
        order = [i for i in range(len(self._value.shape)) if i != dim]
        order.insert(to, dim)
        if order != sorted(order):
            value = self._like([self._value.shape[i] for i in order])
            self._add(_operation("permute", self._value, value, dims=order))

    def made(self) -> tuple[list[Operation], Value]:
        """The chain, and what it makes."""
        return self._operations, self._value

    def ending_in(self, value: Value) -> list[Operation]:
        """The chain, with what is left to do as a reshape."""
        self._add(_operation("view", self._value, value, size=list(value.shape)))
        return self._operations

    def _view(self, shape: Sequence[int]) -> None:
        value = self._like(shape)
        self._add(_operation("view", self._value, value, size=list(shape)))

    def _like(self, shape: Sequence[int]) -> Value:
        return Value(tuple(shape), "computed", memory=self._value.memory, mask=self._value.mask)

    def _add(self, operation: Operation) -> None:
        self._operations.append(operation)
        (self._value,) = operation.outputs


def _operation(name: str, value: Value, made: Value, **arguments: Any) -> Operation:
    return Operation(name, {"self": value, **arguments}, (value,), (made,), False, {})


def _slice(value: Value, made: Value, dim: int, start: int, stop: int, step: int) -> Operation:
    return _operation("slice", value, made, dim=dim, start=start, end=stop, step=step)


def _range(op: Operation) -> tuple[int, int, int]:
    size = op.inputs[0].shape[op.arguments["dim"] % len(op.inputs[0].shape)]
    return slice(op.arguments["start"], op.arguments["end"], op.arguments["step"]).indices(size)


def _needed(operations: Sequence[Operation], results: Sequence[Value], replaced: set[Operation]) -> list[Operation]:
    """The operations without the pieces, and the turns of loops, that nobody uses."""
    used = set(results)
    kept: list[Operation] = []
    for op in reversed(operations):
        wanted = [i for i, value in enumerate(op.outputs) if value in used]
        if op in replaced and not wanted:
            continue
        if op.name not in _CUTS or len(wanted) == len(op.outputs):
            kept.append(op)
        else:
            kept += [_one_piece(op, i) for i in wanted]
        if op.name not in _CUTS or wanted:
            used.update(op.inputs)
    return kept[::-1]


def _one_piece(op: Operation, i: int) -> Operation:
    """What makes one output of a cut into several."""
    whole, made = op.inputs[0], op.outputs[i]
    dim = op.arguments["dim"] % len(whole.shape)
    if op.name == "unbind":
        return _operation("select", whole, made, dim=dim, index=i)
    start = sum(value.shape[dim] for value in op.outputs[:i])
    return _slice(whole, made, dim, start, start + made.shape[dim], 1)
