"""Lookups and what is placed by index: the indexed axis keeps its order, the others their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_topo.neurons.tracing.alignment import Misaligned, segment_or_frozen, unify
from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, freeze, frozen
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.packed_axes import AnyAxis, Family, Index, plain, reshape
from lightning_topo.neurons.tracing.positions import taken_at
from lightning_topo.neurons.tracing.rules.rearrangement import taken
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation, Value


@rule("embedding", "_embedding_bag")
def _embedding(flow: Flow, op: Operation) -> Results:
    rows, columns = flow.axes(op, op.arguments["weight"])
    _looked_up_along(flow, op.arguments["indices"], rows)
    flow.makes(op.arguments["weight"], columns)
    if op.name == "embedding":
        return [[*flow.axes(op, op.arguments["indices"]), columns]]
    return [[Atom(op.outputs[0].shape[0], "position"), columns], *(positions(value) for value in op.outputs[1:])]


@rule("embedding_renorm_")
def _embedding_renorm(flow: Flow, op: Operation) -> Results:
    """Rows that are looked up are scaled to a largest length, in which all their positions have a part alike."""
    rows, columns = flow.axes(op, op.arguments["self"])
    freeze(rows, "looked up by index")
    flow.totals_over(columns, "rows of an embedding are scaled to a largest length over its units")
    return [[rows, columns]]


@rule("index_select")
def _index_select(flow: Flow, op: Operation) -> Results:
    index = op.arguments["index"]
    raw = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(raw)
    if index in op.integers:
        return [_at(flow, raw, dim, op.integers[index].reshape(-1).tolist())]
    axes = plain(raw)
    _looked_up_along(flow, index, axes[dim])
    (axes[dim],) = _index_axes(flow, op, index, 1)
    return [axes]


@rule("index", "_unsafe_index")
def _index(flow: Flow, op: Operation) -> Results:
    """Indexed axes are replaced by those of the indices, in place if they are neighbours and in front if not."""
    indices = op.arguments["indices"]
    by_index = [dim for dim, index in enumerate(indices) if index is not None]
    if len(by_index) == 1 and indices[by_index[0]] in op.integers:
        (dim,), positions = by_index, op.integers[indices[by_index[0]]]
        axes = _at(flow, flow.raw(op, op.arguments["self"]), dim, positions.reshape(-1).tolist())
        if positions.ndim == 1:
            return [axes]
        shape = op.outputs[0].shape
        return [reshape(axes, shape, flow.cuts, (op.inputs[0], op.outputs[0].shape), "looked up by index")]
    kept, place, looked_up = _looked_up(flow, op, flow.axes(op, op.arguments["self"]))
    return [[*kept[:place], *looked_up, *kept[place:]]]


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def _index_put(flow: Flow, op: Operation) -> Results:
    """What is put has the axes that a lookup at the same indices would have, or is broadcast to them."""
    axes = _told_apart(flow, op)
    kept, place, looked_up = _looked_up(flow, op, axes)
    slots: list[Axis] = [*kept[:place], *looked_up, *kept[place:]]
    for slot, axis in zip(reversed(slots), reversed(flow.axes(op, op.arguments["values"])), strict=False):
        if axis.size == slot.size:
            unify(slot, axis)
    return [axes]


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def _index_add(flow: Flow, op: Operation) -> Results:
    axes, added = _told_apart(flow, op), flow.axes(op, op.arguments["source"])
    dim, index = op.arguments["dim"] % len(axes), op.arguments["index"]
    if index in op.integers:
        unify(taken_at(axes[dim], op.integers[index].reshape(-1).tolist(), "placed by index"), added[dim])
    for axis in (axes[dim], added[dim]) if index not in op.integers else ():
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
    _looked_up_along(flow, op.arguments["index"], axes[dim])
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
    positions = _along(op, op.arguments["index"], dim)
    result: list[Axis] = []
    for place, (axis, position) in enumerate(zip(axes, index, strict=True)):
        if place == dim:
            if positions is None:
                _looked_up_along(flow, op.arguments["index"], axis)
                result.append(position if frozen(position) else Atom(position.size, "position"))
            else:
                result.append(taken_at(axis, positions, "looked up by index"))
        elif axis.size == position.size:
            result.append(unify(axis, position))
        else:
            result.append(segment_or_frozen(axis, 0, position.size, "only some of its positions are used"))
    return [result]


def _looked_up_along(flow: Flow, index: Value, axis: Axis) -> None:
    """Integers that name positions of an axis look up the units there; others know theirs by their places."""
    named = flow.named_by(index)
    if named is not None and named.axis.size == axis.size:
        unify(axis, named.axis)
        return
    freeze(axis, "looked up by index")
    if named is not None:
        freeze(named.axis, named.reason)


def _at(flow: Flow, axes: Sequence[AnyAxis], dim: int, positions: list[int]) -> list[AnyAxis]:
    """The axes of what lies at constant positions along ``dim``."""
    positions = [position % axes[dim].size for position in positions]
    if positions == list(range(positions[0], positions[0] + len(positions))) if positions else False:
        return taken(flow, axes, dim, positions[0], positions[-1] + 1)
    given_up = plain(axes) if isinstance(axes[dim], (Index, Family)) else list(axes)
    (axis,) = plain([axes[dim]])
    return [*given_up[:dim], taken_at(axis, positions, "looked up by index"), *given_up[dim + 1 :]]


def _along(op: Operation, index: Value, dim: int) -> list[int] | None:
    """The positions that a constant index takes, if it takes the same ones everywhere."""
    positions = op.integers.get(index)
    if positions is None or not positions.numel():
        return None
    alike = positions.movedim(dim, 0).flatten(1)
    return alike[:, 0].tolist() if bool((alike == alike[:, :1]).all()) else None


def _told_apart(flow: Flow, op: Operation) -> list[Axis]:
    """Axes of what is written to: positions that hold equal values will not any more."""
    return [
        Atom(axis.size) if isinstance(axis, Free) and axis.size > 1 else axis
        for axis in flow.axes(op, op.arguments["self"])
    ]


def _looked_up(flow: Flow, op: Operation, axes: Sequence[Axis]) -> tuple[list[Axis], int, list[Axis]]:
    """The axes that are not indexed, where among them those of the indices come, and these."""
    by_dim: dict[int, tuple[Value, int]] = {}  # index of each indexed axis, and which of its own axes if it is a mask
    dim = 0
    for index in op.arguments["indices"]:
        width = len(index.shape) if index is not None and index.mask else 1
        if index is not None:
            by_dim.update({dim + i: (index, i) for i in range(width)})
        dim += width
    depth = max(1 if index.mask else len(index.shape) for index, _ in by_dim.values())
    looked_up: list[Axis | None] = [None] * depth
    for dim, (index, _) in by_dim.items():
        place = _identity(op, index, depth, axes[dim].size)
        if place is None:
            _looked_up_along(flow, index, axes[dim])
        else:
            known = looked_up[place]
            looked_up[place] = axes[dim] if known is None else unify(known, axes[dim])
    for index in dict.fromkeys(index for index, _ in by_dim.values()):
        if not index.mask and flow.trace.is_live(index):
            for i, axis in enumerate(_index_axes(flow, op, index, depth)):
                known = looked_up[i]
                if axis.size > 1:
                    looked_up[i] = axis if known is None else unify(known, axis)
    dims = list(by_dim)
    neighbours = dims[-1] - dims[0] == len(dims) - 1
    place = dims[0] if neighbours else 0
    kept = [axis for dim, axis in enumerate(axes) if dim not in by_dim]
    shape = op.outputs[0].shape if "values" not in op.arguments else _broadcast_shape(by_dim, depth)
    start = place if "values" not in op.arguments else 0
    made = [
        Atom(shape[start + i], "position") if axis is None or axis.size != shape[start + i] else axis
        for i, axis in enumerate(looked_up)
    ]
    return kept, place, made


def _broadcast_shape(by_dim: Mapping[int, tuple[Value, int]], depth: int) -> list[int]:
    shape = [1] * depth
    for index, _ in by_dim.values():
        for i, size in enumerate(reversed((0,) if index.mask else index.shape), start=1):
            shape[-i] = max(shape[-i], size)
    return shape


def _identity(op: Operation, index: Value, depth: int, size: int) -> int | None:
    """The axis along which a constant index counts through all positions, the same ones everywhere else."""
    positions = op.integers.get(index)
    if positions is None:
        return None
    for dim, length in enumerate(positions.shape):
        if length == size > 1 and _along(op, index, dim) == list(range(size)):
            return depth - positions.ndim + dim
    return None


def _index_axes(flow: Flow, op: Operation, index: Value, depth: int) -> list[Axis]:
    """Axes of the result that an index makes: its own, each position of which looks up at a place of its own."""
    axes = flow.axes(op, index) if flow.trace.is_live(index) else positions(index)
    return [*[Free(1)] * (depth - len(axes)), *axes]
