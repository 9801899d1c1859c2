"""Normalisation, pooling, gates and recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_topo.neurons._axes import Atom, Axis, Free, factor, freeze, segment, unify
from lightning_topo.neurons._rules.registry import Results, rule
from lightning_topo.neurons._trace import Operation, Value

if TYPE_CHECKING:
    from lightning_topo.neurons._flow import Flow

_POOLS = ("{}_pool{}d", "{}_pool{}d_with_indices", "adaptive_{}_pool{}d", "_adaptive_{}_pool{}d")
_RESIZES = ("reflection_pad{}d", "replication_pad{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d")
_INTERPOLATIONS = ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa")
_SPATIAL = (
    *(name.format(kind, n) for name in _POOLS for kind in ("max", "avg") for n in (1, 2, 3)),
    *(name.format(n) for name in _RESIZES for n in (1, 2, 3)),
    *(*_INTERPOLATIONS, "upsample_trilinear3d", "_upsample_bicubic2d_aa"),
)


@rule(*_SPATIAL)
def _spatial(flow: Flow, op: Operation) -> Results:
    """Pooling, resizing and padding of the last axes, each channel by itself."""
    n_spatial = next(int(character) for character in op.name if character.isdigit())
    axes = flow.axes(op, op.inputs[0])
    for axis in axes[-n_spatial:]:
        freeze(axis, "position")
    return [[*axes[:-n_spatial], *_positions(value)[-n_spatial:]] for value in op.outputs]


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(flow: Flow, op: Operation) -> Results:
    n_spatial = int(op.name[-2])
    axes, places = (flow.axes(op, op.arguments[name]) for name in ("self", "indices"))
    for axis in (*axes[-n_spatial:], *places[-n_spatial:]):
        freeze(axis, "position")
    leading = zip(axes[:-n_spatial], places[:-n_spatial], strict=True)
    return [[*(unify(axis, place) for axis, place in leading), *_positions(op.outputs[0])[-n_spatial:]]]


@rule("grid_sampler_2d", "grid_sampler_3d")
def _sampled_on_grid(flow: Flow, op: Operation) -> Results:
    """Each channel is read at the places of the grid, whose last axis holds coordinates."""
    (batch, channels, *spatial), (grids, *places, coordinates) = map(flow.axes, (op, op), op.inputs[:2])
    for axis in (*spatial, coordinates):
        freeze(axis, "position")
    return [[unify(batch, grids), channels, *places]]


@rule("affine_grid_generator")
def _affine_grid(flow: Flow, op: Operation) -> Results:
    batch, *matrix = flow.axes(op, op.arguments["theta"])
    for axis in matrix:
        freeze(axis, "position")
    return [[batch, *_positions(op.outputs[0])[1:]]]


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
    return _first_only(op, axes)


@rule("native_group_norm")
def _group_norm(flow: Flow, op: Operation) -> Results:
    first, *vectors = op.inputs
    axes = flow.axes(op, first)
    for value in vectors:
        axes[1] = _scaled(flow, op, value, axes[1])
    factor(axes[1], op.arguments["group"])  # statistics are shared within a group: its channels stay together
    return _first_only(op, axes)


@rule("_weight_norm_interface")
def _weight_norm(flow: Flow, op: Operation) -> Results:
    direction, size = (flow.axes(op, op.arguments[name]) for name in ("v", "g"))
    dim = op.arguments["dim"]
    direction[dim] = unify(direction[dim], size[dim])
    return _first_only(op, direction)


@rule("glu")
def _gated(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.arguments["self"])
    dim = op.arguments["dim"] % len(axes)
    half = axes[dim].size // 2
    axes[dim] = unify(segment(axes[dim], 0, half), segment(axes[dim], half, 2 * half))
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
    return [*([*batch, units] for _ in range(n_states)), *(_positions(value) for value in op.outputs[n_states:])]


def _scaled(flow: Flow, op: Operation, value: Value, channels: Axis) -> Axis:
    channels = unify(channels, flow.axes(op, value)[0])
    flow.makes(value, channels, strong=False)
    return channels


def _first_only(op: Operation, axes: Sequence[Axis]) -> Results:
    """The result, and statistics that only the backward pass reads."""
    return [axes, *(_positions(value) for value in op.outputs[1:])]


def _positions(value: Value) -> list[Axis]:
    return [Atom(size, "position") if size > 1 else Free(size) for size in value.shape]
