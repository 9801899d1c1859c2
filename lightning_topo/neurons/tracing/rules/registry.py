"""The table of rules, and the rules of operations that leave positions where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_topo.neurons.tracing.axes import Atom, Axis, Free
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.packed_axes import AnyAxis
from lightning_topo.neurons.tracing.trace import Operation, Value

Results = Sequence[Sequence[AnyAxis]]  # axes of each output
Rule = Callable[[Flow, Operation], Results]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def positions(value: Value) -> list[Axis]:
    """Axes of a tensor whose positions are known by their place."""
    return [Atom(size, "position") if size > 1 else Free(size) for size in value.shape]


# Those that PyTorch does not tag as pointwise; the last line, before 2.6.
@rule("copy_", "fill_", "zero_", "masked_fill", "masked_fill_", "native_dropout", "rrelu_with_noise", "_prelu_kernel")
@rule(
    "hardswish", "hardswish_", "relu6_", "threshold_", "log_sigmoid_forward", "floor_divide", "rsub", "complex", "polar"
)
@rule("elu", "leaky_relu", "hardtanh", "hardsigmoid", "softplus", "mish", "threshold", "softshrink", "hardshrink")
def pointwise(flow: Flow, op: Operation) -> Results:
    """Each position of the result comes from the same, broadcast position of the inputs."""
    shape = op.outputs[0].shape
    values = [value for value in dict.fromkeys(op.inputs) if any(size > 1 for size in value.shape)]
    if len(values) == 1 and values[0].shape == shape:
        return [flow.raw(op, values[0])] * len(op.outputs)
    axes = flow.broadcast(op, values, shape)
    for value in values:
        for size, axis in zip(reversed(value.shape), reversed(axes), strict=False):
            if size > 1:
                flow.makes(value, axis, strong=False)
    if op.name in ("add", "add_"):
        _note_residual(flow, values, axes)
    return [axes] * len(op.outputs)


@rule("clone", "detach", "alias", "_to_copy", "lift_fresh", "_conj", "_neg_view")
def _same(flow: Flow, op: Operation) -> Results:
    return [flow.raw(op, op.inputs[0])]


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(flow: Flow, op: Operation) -> Results:
    """Normalising along an axis treats its units alike."""
    flow.softmaxed.add(flow.origin(op.inputs[0]))
    if op.inputs[0].shape:
        along = flow.axes(op, op.inputs[0])[op.arguments["dim"]]
        flow.totals_over(along, f"operation {op.name.removeprefix('_')} runs over its units")
    return [flow.raw(op, op.inputs[0])]


def _note_residual(flow: Flow, values: Sequence[Value], axes: Sequence[Axis]) -> None:
    """Two tensors of one shape and different origin are added: their common units are a residual stream.

    Two products of one shape may be the scores of an attention, by content and by position: then so is their sum.
    """
    computed = [value for value in values if flow.trace.is_live(value) and flow.source(value) is None]
    origins = {flow.origin(value) for value in computed}
    if len(origins) == 2 and computed[0].shape == computed[1].shape:
        if origins <= flow.scores.keys():
            flow.scores[flow.time] = flow.scores[min(origins)]
        else:
            for axis in axes:
                flow.plays("residual", axis)
