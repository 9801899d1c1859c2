"""Operations that move positions, cut axes or join them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_topo.neurons.tracing.alignment import Misaligned, factor_or_frozen, segment_or_frozen, unify
from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, atoms, concat, freeze, frozen, product
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.packed_axes import AnyAxis, Family, Index, narrowed, plain, reshape
from lightning_topo.neurons.tracing.positions import taken_at
from lightning_topo.neurons.tracing.rules.registry import Results, rule
from lightning_topo.neurons.tracing.trace import Operation


@rule("t", "transpose", "transpose_", "permute", "numpy_T")
def _reordered(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    order = list(range(len(axes)))
    if op.name == "permute":
        order = [dim % len(axes) for dim in op.arguments["dims"]]
    elif len(axes) > 1:
        one, other = (op.arguments.get(name, default) % len(axes) for name, default in (("dim0", 0), ("dim1", 1)))
        order[one], order[other] = order[other], order[one]
    return [[axes[position] for position in order]]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "reshape_as", "flatten", "unflatten")
def _reshaped(flow: Flow, op: Operation) -> Results:
    reason = f"operation {op.name} cuts its units"
    return [
        reshape(flow.raw(op, op.inputs[0]), op.outputs[0].shape, flow.cuts, (op.inputs[0], op.outputs[0].shape), reason)
    ]


@rule("as_strided", "as_strided_")
def _strided(flow: Flow, op: Operation) -> Results:
    """Axes of the storage that keep their stride stay; those of windows into it are positions."""
    axes, before = flow.axes(op, op.inputs[0]), op.inputs[0].shape
    strides = op.arguments.get("self_stride", [math.prod(before[dim + 1 :]) for dim in range(len(before))])
    if not _dense(before, strides):
        raise Misaligned  # the storage holds more than the tensor
    began, given = op.arguments.get("self_offset", 0), op.arguments.get("storage_offset")
    offset = 0 if given is None else given - began
    after = list(zip(op.arguments["size"], op.arguments["stride"], strict=True))
    kept = {dim for dim, size in enumerate(before) if size > 1 and _untouched(size, strides[dim], after, offset)}
    for dim, axis in enumerate(axes):
        if dim not in kept:
            freeze(axis, "position in a window")
    by_stride = {(before[dim], strides[dim]): axes[dim] for dim in kept}
    return [[Free(1) if size == 1 else by_stride.get((size, stride), Atom(size, "position")) for size, stride in after]]


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the numbers of a tensor lie side by side, whatever the order of its axes."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _untouched(size: int, stride: int, after: Sequence[tuple[int, int]], offset: int) -> bool:
    """Whether an axis of the storage is one of the strided tensor's, and no other axis of that reaches across it."""
    others = [(n, step) for n, step in after if n > 1 and (n, step) != (size, stride)]
    inner = sum((n - 1) * step for n, step in others if step < stride)
    outer = [step for _, step in others if step >= stride]
    whole = len([1 for n, step in after if (n, step) == (size, stride)]) == 1
    return whole and offset % (stride * size) + inner < stride and all(step % (stride * size) == 0 for step in outer)


@rule("channel_shuffle", "native_channel_shuffle")
def _channels_shuffled(flow: Flow, op: Operation) -> Results:
    """Channels in groups are read one of each group at a time."""
    axes = flow.axes(op, op.arguments["self"])
    dim = max(len(axes) - 3, 0)
    groups, channels = factor_or_frozen(axes[dim], op.arguments["groups"], "its layout does not fit the groups")
    axes[dim] = product((channels, groups))
    return [axes]


@rule("unsqueeze", "unsqueeze_")
def _unsqueezed(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % (len(axes) + 1)
    return [[*axes[:dim], Free(1), *axes[dim:]]]


@rule("squeeze", "squeeze_")
def _squeezed(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dims = dims_of(op.arguments.get("dim"), len(axes))
    return [[axis for position, axis in enumerate(axes) if axis.size > 1 or position not in dims]]


@rule("expand")
def _expanded(flow: Flow, op: Operation) -> Results:
    axes, shape = flow.raw(op, op.arguments["self"]), op.outputs[0].shape
    aligned = [Free(1)] * (len(shape) - len(axes)) + list(axes)
    return [[axis if axis.size == size else Free(size) for axis, size in zip(aligned, shape, strict=True)]]


@rule("repeat")
def _repeated(flow: Flow, op: Operation) -> Results:
    axes, times = flow.axes(op, op.arguments["self"]), op.arguments["repeats"]
    aligned = [Free(1)] * (len(times) - len(axes)) + list(axes)
    return [[product((Free(count), axis)) for axis, count in zip(aligned, times, strict=True)]]


@rule("select")
def _selected(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    position = op.arguments["index"] % axes[dim].size
    return [_without(taken(flow, axes, dim, position, position + 1), dim)]


@rule("unbind")
def _unbound(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    return [_without(taken(flow, axes, dim, i, i + 1), dim) for i in range(axes[dim].size)]


@rule("slice")
def _sliced(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    size, step = axes[dim].size, op.arguments["step"]
    start, stop, _ = slice(op.arguments["start"], op.arguments["end"]).indices(size)
    if step != 1:
        kept = plain(axes)
        kept[dim] = taken_at(kept[dim], range(start, stop, step), "only some of its positions are used")
        return [kept]
    return [taken(flow, axes, dim, start, stop)]


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(flow: Flow, op: Operation) -> Results:
    axes = flow.raw(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    stops = [0]
    for value in op.outputs:
        stops.append(stops[-1] + value.shape[dim])
    return [taken(flow, axes, dim, start, stop) for start, stop in pairwise(stops)]


@rule("cat")
def _joined(flow: Flow, op: Operation) -> Results:
    values = [value for value in op.arguments["tensors"] if value.shape != (0,)]  # torch.cat skips those
    parts = [flow.axes(op, value) for value in values]
    dim = op.arguments["dim"] % len(parts[0])
    if len(set(values)) == 1:
        return [[product((Free(len(values)), axis)) if i == dim else axis for i, axis in enumerate(parts[0])]]
    aligned = enumerate(zip(*parts, strict=True))
    return [[concat(axes) if position == dim else _common(axes) for position, axes in aligned]]


@rule("stack")
def _stacked(flow: Flow, op: Operation) -> Results:
    """What is stacked may be taken apart again (the last states of all layers), so it need not agree."""
    parts = [flow.axes(op, value) for value in op.arguments["tensors"]]
    dim = op.arguments["dim"] % (len(parts[0]) + 1)
    if len(set(op.arguments["tensors"])) == 1:
        return [[*parts[0][:dim], Free(len(parts)), *parts[0][dim:]]]
    index = Index((Free(1),) * len(parts))
    result = [axes[0] if _agree(axes) else Family(index, axes) for axes in zip(*parts, strict=True)]
    if not any(isinstance(axis, Family) for axis in result):
        return [[*result[:dim], Atom(len(parts), "position in a stack") if len(parts) > 1 else Free(1), *result[dim:]]]
    return [[*result[:dim], index, *result[dim:]]]


@rule("constant_pad_nd")
def _padded(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    pads = op.arguments["pad"]
    for back, (left, right) in enumerate(zip(pads[::2], pads[1::2], strict=True), start=1):
        axes[-back] = _pad(axes[-back], left, right)
    return [axes]


@rule("to_padded_tensor")
def _padded_rows(flow: Flow, op: Operation) -> Results:
    """Rows of unequal lengths become one tensor."""
    axes, shape = flow.axes(op, op.inputs[0]), op.outputs[0].shape
    result = []
    for axis, size in zip(axes, shape, strict=True):
        if axis.size != size:
            freeze(axis, "position")
        result.append(axis if axis.size == size else Atom(size, "position"))
    return [result]


@rule("unfold")
def _windows(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    dim = op.arguments["dimension"] % len(axes)
    freeze(axes[dim], "position")
    *_, width = shape = op.outputs[0].shape
    return [[*axes[:dim], Atom(shape[dim], "position"), *axes[dim + 1 :], Atom(width, "position")]]


@rule("diagonal")
def _diagonal(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    crossed = {op.arguments[name] % len(axes) for name in ("dim1", "dim2")}
    for dim in crossed:
        freeze(axes[dim], "operation diagonal depends on positions")
    kept = [axis for dim, axis in enumerate(axes) if dim not in crossed]
    return [[*kept, Atom(op.outputs[0].shape[-1], "position")]]


@rule("view_as_complex")
def _pairs_as_complex(flow: Flow, op: Operation) -> Results:
    *axes, parts = flow.axes(op, op.arguments["self"])
    freeze(parts, "real and imaginary part")
    return [axes]


@rule("view_as_real")
def _complex_as_pairs(flow: Flow, op: Operation) -> Results:
    return [[*flow.axes(op, op.arguments["self"]), Atom(2, "real and imaginary part")]]


@rule("_pack_padded_sequence", "_pad_packed_sequence")
def _packed_sequence(flow: Flow, op: Operation) -> Results:
    """Steps of sequences of unequal lengths, one after the other; what a step holds stays as it is."""
    axes = flow.axes(op, op.inputs[0])
    n_places = 2 if op.name == "_pack_padded_sequence" else 1
    for axis in axes[:n_places]:
        freeze(axis, "position")
    first, lengths = op.outputs
    places = first.shape[: 3 - n_places]
    return [[*(Atom(size, "position") for size in places), *axes[n_places:]], [Atom(lengths.shape[0], "position")]]


@rule("tril", "triu", "tril_", "triu_")
def _triangle(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    for axis in axes[-2:]:
        freeze(axis, f"operation {op.name} depends on positions")
    return [axes]


def taken(flow: Flow, axes: Sequence[AnyAxis], dim: int, start: int, stop: int) -> list[AnyAxis]:
    """The axes of the slice from ``start`` to ``stop`` along ``dim``."""
    axis = axes[dim]
    if stop - start == axis.size:
        return list(axes)
    flow.tells_apart(axis, start, stop)
    if isinstance(axis, Index) and (narrow := narrowed(axes, dim, start, stop)):
        return narrow
    given_up = plain(axes) if isinstance(axis, (Index, Family)) else axes
    (axis,) = plain(given_up[dim : dim + 1])
    piece = segment_or_frozen(axis, start, stop, f"cut at {start} and {stop}") if stop > start else Free(0)
    return [*given_up[:dim], piece, *given_up[dim + 1 :]]


def _without(axes: Sequence[AnyAxis], dim: int) -> list[AnyAxis]:
    return [*axes[:dim], *axes[dim + 1 :]]


def _agree(axes: Sequence[Axis]) -> bool:
    return all(axis is axes[0] for axis in axes) or all(frozen(axis) for axis in axes)


def _common(axes: Sequence[Axis]) -> Axis:
    common = axes[0]
    for axis in axes[1:]:
        common = unify(common, axis)
    return common


def _pad(axis: Axis, left: int, right: int) -> Axis:
    if frozen(axis) and any(True for _ in atoms(axis)):
        return Atom(axis.size + left + right, "position")
    kept = segment_or_frozen(axis, max(-left, 0), axis.size - max(-right, 0), "only some of its positions are used")
    return concat(part for part in (Free(max(left, 0)), kept, Free(max(right, 0))) if part.size)


def dims_of(dim: int | Sequence[int] | None, ndim: int) -> set[int]:
    """Axes that an argument ``dim`` names; None and an empty list name all."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return set(range(ndim))
    return {d % ndim for d in ([dim] if isinstance(dim, int) else dim)} if ndim else set()
