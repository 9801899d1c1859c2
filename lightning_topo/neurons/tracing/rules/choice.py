"""Operations that choose positions, and the integers that name those: to look up, or place, tells no units apart.

The codes of a quantised autoencoder can be exchanged if the nearest of them is only looked up, and so can the units of
which the largest are kept.
"""

from __future__ import annotations

from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, freeze
from lightning_topo.neurons.tracing.flow import Flow, Named
from lightning_topo.neurons.tracing.rules.rearrangement import dims_of
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation, Value

# What leaves integers the names that they are: other axes, fewer of them, and the checks of their range.
_HAND_ON = frozenset((
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "t", "transpose", "permute",
    "unsqueeze", "squeeze", "expand", "slice", "select", "unbind", "split", "clone", "detach", "alias", "_to_copy",
    "lift_fresh",
))  # fmt: skip
_CHECKS = frozenset(("min", "max", "aminmax", "ge", "lt", "all", "any", "_local_scalar_dense"))
# Those that look up or place, by their rules, and by which argument they are told where.
_BY_NAME = {
    "embedding": "indices", "index": "indices", "_unsafe_index": "indices", "index_select": "index", "gather": "index",
    "scatter": "index", "scatter_": "index", "scatter_add": "index", "scatter_add_": "index",
}  # fmt: skip


@rule("argmax", "argmin", "argsort", "sort", "topk")
def _chosen(flow: Flow, op: Operation) -> Results:
    """The integers name positions of the axis; what lies there comes in an order of its own."""
    axes = flow.axes(op, op.inputs[0])
    dim = op.arguments.get("dim", -1)
    dims = sorted(dims_of(dim, len(axes)))
    reason = f"operation {op.name} depends on positions"
    if dim is None or not axes:
        for axis in axes:
            freeze(axis, reason)
    else:
        flow.names(op.outputs[-1], Named(axes[dims[0]], reason))
        if not op.name.startswith("arg"):
            flow.totals_over(axes[dims[0]], f"operation {op.name} counts its units")
    results = []
    for value in op.outputs:
        if len(value.shape) == len(axes):
            kept: list[Axis] = [_at_place(size) if p in dims else axes[p] for p, size in enumerate(value.shape)]
        else:
            kept = [axis for position, axis in enumerate(axes) if position not in dims]
        results.append(kept)
    return results


@rule("nonzero")
def _found(flow: Flow, op: Operation) -> Results:
    """Where something is, one place after the other."""
    for axis in flow.axes(op, op.inputs[0]):
        freeze(axis, "chosen by index")
    return [positions(value) for value in op.outputs]


def hand_on_names(flow: Flow, op: Operation) -> None:
    """What becomes of integers that name positions of an axis: used as numbers, they tell its units apart."""
    for value in op.inputs:
        named = flow.named_by(value)
        if named is None or _looks_up(op, value) or (op.name in _CHECKS and not any(v.shape for v in op.outputs)):
            continue
        if op.name in _HAND_ON:
            for made in op.outputs:
                flow.names(made, named)
        else:
            freeze(named.axis, named.reason)


def _looks_up(op: Operation, value: Value) -> bool:
    """Whether the operation takes the value for the places of what it looks up or puts down."""
    places = op.arguments.get(_BY_NAME.get(op.name, ""))
    return places is value or (isinstance(places, list) and value in places)


def _at_place(size: int) -> Axis:
    return Atom(size, "position") if size > 1 else Free(size)
