"""Matrix products and convolutions: where weights read one set of units and make another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from lightning_topo.neurons.tracing.alignment import factor, unify
from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, freeze, product
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation, Value


@rule("mm", "addmm", "addmm_", "_addmm_activation", "_sparse_addmm", "mv", "addmv", "dot", "vdot")
def _matrix_product(flow: Flow, op: Operation) -> Results:
    first, second = _factors(op)
    left, right = flow.axes(op, first), flow.axes(op, second)
    flow.contracts(op, unify(left[-1], right[0]), (first, len(left) - 1), (second, 0))
    for axis in left[:-1]:
        flow.makes(first, axis)
    for axis in right[1:]:
        flow.makes(second, axis)
    return [_plus_summand(flow, op, [*left[:-1], *right[1:]])]


@rule("linear")
def _linear(flow: Flow, op: Operation) -> Results:
    """Comes as one operation where the input is a nested tensor."""
    weight, bias = op.arguments["weight"], op.arguments["bias"]
    *places, read = flow.axes(op, op.arguments["input"])
    made, contracted = flow.axes(op, weight)
    flow.contracts(op, unify(read, contracted), (op.arguments["input"], len(places)), (weight, 1))
    if bias is not None:
        made = unify(made, flow.axes(op, bias)[0])
    flow.makes(weight, made)
    return [[*places, made]]


@rule("bmm", "baddbmm", "baddbmm_")
def _batched_product(flow: Flow, op: Operation) -> Results:
    first, second = _factors(op)
    left, right = flow.axes(op, first), flow.axes(op, second)
    batch = unify(left[0], right[0])
    contracted = unify(left[2], right[1])
    flow.contracts(op, contracted, (first, 2), (second, 1))
    for value, free in ((first, left[1]), (second, right[2])):
        flow.makes(value, batch)
        flow.makes(value, free)
    flow.originates()
    flow.scores[flow.time] = batch, contracted
    for weights, free in ((first, right[2]), (second, left[1])):
        _note_attention(flow, weights, free)
    return [_plus_summand(flow, op, [batch, left[1], right[2]])]


def _note_attention(flow: Flow, weights: Value, free: Axis) -> None:
    """The softmax of a product of queries and keys is multiplied with values."""
    place = flow.origin(weights)
    if place in flow.scores and place in flow.softmaxed:
        heads, keys = flow.scores[place]
        for role, axis in (("heads", heads), ("keys", keys), ("values", free)):
            flow.plays(role, axis, place)


@rule("_cdist_forward", "_euclidean_dist")
def _distances(flow: Flow, op: Operation) -> Results:
    first, second = op.arguments["x1"], op.arguments["x2"]
    (*batch, rows, read), (*others, columns, also_read) = flow.axes(op, first), flow.axes(op, second)
    flow.totals_over(unify(read, also_read), "distances are sums over its units")
    flow.makes(first, rows)
    flow.makes(second, columns)
    common = [
        unify(*pair) if pair[0].size == pair[1].size else Atom(max(a.size for a in pair), "position")
        for pair in zip(batch, others, strict=True)
    ]
    return [[*common, rows, columns]]


@rule("_trilinear")
def _bilinear_layer(flow: Flow, op: Operation) -> Results:
    """Product of three tensors, each with new axes, summed over some."""
    shaped = []
    for value, name in zip(op.inputs, ("expand1", "expand2", "expand3"), strict=True):
        axes = flow.axes(op, value)
        for dim in sorted(op.arguments[name]):
            axes.insert(dim, Free(1))
        shaped.append(axes)
    dims = op.arguments["sumdim"]
    result = []
    for position, aligned in enumerate(zip(*shaped, strict=True)):
        common = reduce(unify, sorted(aligned, key=lambda axis: -axis.size))
        for value in op.inputs:
            if position not in dims:
                flow.makes(value, common)
        if position in dims:
            flow.contracts(op, common, *_places(op, position))
        result.append(common)
    return [[axis for position, axis in enumerate(result) if position not in dims]]


def _places(op: Operation, position: int) -> list[tuple[Value, int]]:
    """Which axis of which factor lies at a position of their product."""
    places = []
    for value, name in zip(op.inputs, ("expand1", "expand2", "expand3"), strict=True):
        if position not in op.arguments[name]:
            places.append((value, position - sum(dim < position for dim in op.arguments[name])))
    return places


@rule("_grouped_mm")
def _grouped_product(flow: Flow, op: Operation) -> Results:
    """Rows in runs, each multiplied with the matrix of its expert: an expert is known by its place."""
    rows, experts = op.arguments["self"], op.arguments["mat2"]
    *places, read = flow.axes(op, rows)
    which, contracted, made = flow.axes(op, experts)
    flow.contracts(op, unify(read, contracted), (rows, len(places)), (experts, 1))
    freeze(which, "chosen by index")
    flow.makes(experts, made)
    return [[*places, made]]


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def _convolution(flow: Flow, op: Operation) -> Results:
    values = op.arguments
    weight, bias = values["weight"], values["bias"]
    kernel = flow.axes(op, weight)
    n_spatial = len(kernel) - 2
    *batch, channels = flow.axes(op, values["input"])[: -n_spatial or None]
    if values["transposed"]:
        group, read = factor(unify(channels, kernel[0]), values["groups"])
        flow.contracts(op, read, (weight, 0))
        made = product((group, kernel[1]))
    else:
        (of_input, read), (of_kernel, each) = (factor(axis, values["groups"]) for axis in (channels, kernel[0]))
        flow.contracts(op, unify(read, kernel[1]), (weight, 1))
        made = product((unify(of_kernel, of_input), each))
    if bias is not None:
        made = unify(made, flow.axes(op, bias)[0])
    flow.makes(weight, made)
    for axis in kernel[2:]:
        freeze(axis, "position in the kernel")
    return [[*batch, made, *_convolved(flow, op, n_spatial)]]


def _factors(op: Operation) -> tuple[Value, Value]:
    """The two operands; an accumulating product has its summand in front of them."""
    first, second = op.inputs[-2:]
    return first, second


def _plus_summand(flow: Flow, op: Operation, axes: list[Axis]) -> list[Axis]:
    if len(op.inputs) < 3:
        return axes
    shape = op.outputs[0].shape
    added = flow.broadcast(op, op.inputs[:1], shape)
    return [unify(axis, other) for axis, other in zip(axes, added, strict=True)]


def _convolved(flow: Flow, op: Operation, n_spatial: int) -> Sequence[Axis]:
    """Spatial axes of the result; those along which the kernel has one position stay as they are."""
    if not n_spatial:
        return []
    values = op.arguments
    kernel = values["weight"].shape[2:]
    moves = [values["stride"], *(values[name] for name in ("padding", "output_padding"))]
    strides, *pads = ([*given] * (n_spatial if len(given) == 1 else 1) for given in moves)
    result: list[Axis] = []
    before, after = flow.axes(op, values["input"])[-n_spatial:], positions(op.outputs[0])[-n_spatial:]
    for dim, (axis, position) in enumerate(zip(before, after, strict=True)):
        still = kernel[dim] == strides[dim] == 1 and not any(pad[dim] for pad in pads)
        if not still:
            freeze(axis, "position")
        result.append(axis if still else position)
    return result
