"""Normalisation, gates and recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_topo.neurons.tracing.alignment import factor_or_frozen, segment, segment_or_frozen, unify
from lightning_topo.neurons.tracing.axes import Axis
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation, Value


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")
@rule("_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm_elemt")
def _batch_norm(flow: Flow, op: Operation) -> Results:
    first, *vectors = op.inputs
    axes = flow.axes(op, first)
    for value in vectors:
        if value.shape == (axes[1].size,):
            axes[1] = _scaled(flow, op, value, axes[1])
    return _first_only(op, axes)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(flow: Flow, op: Operation) -> Results:
    first, *scales = op.inputs
    axes = flow.axes(op, first)
    for value in scales:
        for position, axis in enumerate(flow.axes(op, value), start=len(axes) - len(value.shape)):
            axes[position] = unify(axes[position], axis)
            flow.makes(value, axes[position], strong=False)
    for axis in axes[-len(op.arguments["normalized_shape"]) :]:
        flow.totals_over(axis, f"operation {op.name.removeprefix('native_')} takes statistics over its units")
    return _first_only(op, axes)


@rule("native_group_norm")
def _group_norm(flow: Flow, op: Operation) -> Results:
    first, *vectors = op.inputs
    axes = flow.axes(op, first)
    for value in vectors:
        axes[1] = _scaled(flow, op, value, axes[1])
    # Statistics are shared within a group: its channels stay together.
    _, together = factor_or_frozen(axes[1], op.arguments["group"], "its layout does not fit the groups")
    flow.totals_over(together, "operation group_norm takes statistics over its units")
    return _first_only(op, axes)


@rule("_weight_norm_interface")
def _weight_norm(flow: Flow, op: Operation) -> Results:
    direction, size = (flow.axes(op, op.arguments[name]) for name in ("v", "g"))
    dim = op.arguments["dim"] % len(direction)
    direction[dim] = unify(direction[dim], size[dim])
    for axis in (*direction[:dim], *direction[dim + 1 :]):
        flow.totals_over(axis, "weight_norm takes the length of what its units hold")
    return _first_only(op, direction)


@rule("glu")
def _gated(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    half = axes[dim].size // 2
    first, second = (segment_or_frozen(axes[dim], at, at + half, "cut in halves by a gate") for at in (0, half))
    axes[dim] = unify(first, second)
    return [axes]


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def _recurrent_cell(flow: Flow, op: Operation) -> Results:
    """Gates are blocks of all units, one after the other."""
    n_gates = 4 if "lstm" in op.name else 3
    gates, _, state, *_ = op.inputs
    *batch, units = flow.axes(op, state)
    blocks = flow.broadcast(op, [value for value in op.inputs if value is not state], gates.shape)[-1]
    for gate in range(n_gates):
        units = unify(units, segment(blocks, gate * units.size, (gate + 1) * units.size))
    n_states = n_gates - 2  # hidden state and cell of an LSTM; what follows is kept for the backward pass
    return [*([*batch, units] for _ in range(n_states)), *(positions(value) for value in op.outputs[n_states:])]


def _scaled(flow: Flow, op: Operation, value: Value, channels: Axis) -> Axis:
    channels = unify(channels, flow.axes(op, value)[0])
    flow.makes(value, channels, strong=False)
    return channels


def _first_only(op: Operation, axes: Sequence[Axis]) -> Results:
    """The result, and statistics that only the backward pass reads."""
    return [axes, *(positions(value) for value in op.outputs[1:])]
