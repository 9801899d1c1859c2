"""Lookups and what is placed by index: the indexed axis keeps its order, the others their units."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, Misaligned, freeze, unify
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.packed_axes import AnyAxis
from lightning_topo.neurons.tracing.rules.rearrangement import taken
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation, Value


@rule("embedding", "_embedding_bag")
def _embedding(flow: Flow, op: Operation) -> Results:
    rows, columns = flow.axes(op, op.arguments["weight"])
    freeze(rows, "looked up by index")
    flow.makes(op.arguments["weight"], columns)
    if op.name == "embedding":
        return [[*flow.axes(op, op.arguments["indices"]), columns]]
    return [[Atom(op.outputs[0].shape[0], "position"), columns], *(positions(value) for value in op.outputs[1:])]


@rule("index_select")
def _index_select(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    if op.arguments["index"] in op.runs:
        return [_run(flow, op, dim, op.arguments["index"])]
    freeze(axes[dim], "looked up by index")
    axes[dim] = Atom(op.outputs[0].shape[dim], "position")
    return [axes]


@rule("index")
def _index(flow: Flow, op: Operation) -> Results:
    """Indexed axes are replaced by those of the indices, in place if they are neighbours and in front if not."""
    indices, shape = op.arguments["indices"], op.outputs[0].shape
    by_index = [dim for dim, index in enumerate(indices) if index is not None]
    if len(by_index) == 1 and indices[by_index[0]] in op.runs:
        return [_run(flow, op, by_index[0], indices[by_index[0]])]
    axes = flow.axes(op, op.arguments["self"])
    kept, place = _unindexed(axes, indices)
    looked_up = [Atom(size, "position") for size in shape[place : place + len(shape) - len(kept)]]
    return [[*kept[:place], *looked_up, *kept[place:]]]


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def _index_put(flow: Flow, op: Operation) -> Results:
    """What is put has the axes that a lookup at the same indices would have, or is broadcast to them."""
    axes, indices = _told_apart(flow, op), op.arguments["indices"]
    kept, place = _unindexed(axes, indices)
    depth = max(1 if index.mask else len(index.shape) for index in indices if index is not None)
    slots: list[Axis | None] = [*kept[:place], *[None] * depth, *kept[place:]]
    for slot, axis in zip(reversed(slots), reversed(flow.axes(op, op.arguments["values"])), strict=False):
        if slot is None:
            freeze(axis, "placed by index")
        elif axis.size == slot.size:
            unify(slot, axis)
    return [axes]


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def _index_add(flow: Flow, op: Operation) -> Results:
    axes, added = _told_apart(flow, op), flow.axes(op, op.arguments["source"])
    dim = op.arguments["dim"] % len(axes)
    for axis in (axes[dim], added[dim]):
        freeze(axis, "placed by index")
    return [[axis if i == dim else unify(axis, other) for i, (axis, other) in enumerate(zip(axes, added, strict=True))]]


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def _scatter(flow: Flow, op: Operation) -> Results:
    """Each position goes to the place that the index at the same position tells, along one axis."""
    axes, source = _told_apart(flow, op), op.arguments.get("src")
    dim = op.arguments["dim"] % len(axes)
    for value in (op.arguments["index"], source):
        for position, axis in enumerate(flow.axes(op, value) if value is not None else ()):
            if position == dim:
                freeze(axis, "placed by index")
            elif axis.size == axes[position].size:
                unify(axes[position], axis)
            else:
                for one in (axis, axes[position]):
                    freeze(one, "only some of its positions are used")
    freeze(axes[dim], "placed by index")
    return [axes]


@rule("masked_scatter", "masked_scatter_")
def _masked_scatter(flow: Flow, op: Operation) -> Results:
    """Rows are filled in order; the last axis stays together where the mask treats all of it alike."""
    axes, mask, source = _told_apart(flow, op), *(flow.axes(op, op.arguments[name]) for name in ("mask", "source"))
    for axis in (*axes[:-1], *source[:-1]):
        freeze(axis, "placed by index")
    *_, last = axes
    if not mask or mask[-1].size == 1 or source[-1].size != last.size:
        raise Misaligned
    return [[*axes[:-1], unify(unify(last, mask[-1]), source[-1])]]


@rule("gather")
def _gather(flow: Flow, op: Operation) -> Results:
    axes, index = flow.axes(op, op.arguments["self"]), flow.axes(op, op.arguments["index"])
    dim = op.arguments["dim"] % len(axes) if axes else 0
    freeze(axes[dim], "looked up by index")
    result = []
    for place, (axis, position) in enumerate(zip(axes, index, strict=True)):
        if place != dim and axis.size != position.size:
            freeze(axis, "only some of its positions are used")
        alike = place != dim and axis.size == position.size
        result.append(unify(axis, position) if alike else Atom(position.size, "position"))
    return [result]


def _run(flow: Flow, op: Operation, dim: int, index: Value) -> list[AnyAxis]:
    """What a list of consecutive positions takes is a slice."""
    axes = flow.raw(op, op.arguments["self"])
    start = op.runs[index] % axes[dim].size
    return taken(flow, axes, dim, start, start + index.shape[0])


def _told_apart(flow: Flow, op: Operation) -> list[Axis]:
    """Axes of what is written to: positions that hold equal values will not any more."""
    return [
        Atom(axis.size) if isinstance(axis, Free) and axis.size > 1 else axis
        for axis in flow.axes(op, op.arguments["self"])
    ]


def _unindexed(axes: Sequence[Axis], indices: Sequence[Value | None]) -> tuple[list[Axis], int]:
    """The axes that are not indexed, and where among them those of the indices come. Freezes the others."""
    indexed: list[bool] = []
    for index in indices:
        indexed += [index is not None] * (len(index.shape) if index is not None and index.mask else 1)
    dims = [dim for dim, by_index in enumerate(indexed) if by_index]
    for dim in dims:
        freeze(axes[dim], "looked up by index")
    neighbours = dims[-1] - dims[0] == len(dims) - 1
    return [axis for dim, axis in enumerate(axes) if dim not in dims], dims[0] if neighbours else 0
