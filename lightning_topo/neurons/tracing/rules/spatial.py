"""Pooling, resizing, grids and patches: positions in an image are known by their place, channels are units."""

from __future__ import annotations

import math
from typing import Any

from lightning_topo.neurons.tracing.alignment import factor, unify
from lightning_topo.neurons.tracing.axes import Atom, freeze, product
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.rules.registry import Results, positions, rule
from lightning_topo.neurons.tracing.trace import Operation

_MAX_POOLS = ("max_pool{}d", "max_pool{}d_with_indices", "adaptive_max_pool{}d")
_AVERAGES = ("avg_pool{}d", "adaptive_avg_pool{}d")
_RESIZES = ("reflection_pad{}d", "replication_pad{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d")
_INTERPOLATIONS = ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa")
_SPATIAL = (
    *(name.format(n) for name in (*_MAX_POOLS, *_AVERAGES, *_RESIZES) for n in (1, 2, 3)),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *(*_INTERPOLATIONS, "upsample_trilinear3d", "_upsample_bicubic2d_aa"),
)


@rule(*_SPATIAL)
def _spatial(flow: Flow, op: Operation) -> Results:
    """Pooling, resizing and padding of the last axes, each channel by itself."""
    n_spatial = next(int(character) for character in op.name if character.isdigit())
    axes = flow.axes(op, op.inputs[0])
    still = _still(op, n_spatial)
    for axis, stays in zip(axes[-n_spatial:], still, strict=True):
        if not stays:
            freeze(axis, "position")
    return [
        [
            *axes[:-n_spatial],
            *(
                axis if stays else position
                for axis, position, stays in zip(axes[-n_spatial:], positions(value)[-n_spatial:], still, strict=True)
            ),
        ]
        for value in op.outputs
    ]


def _still(op: Operation, n_spatial: int) -> list[bool]:
    """Of each spatial axis, whether pooling leaves its positions as they are."""
    if "pool" not in op.name:
        return [False] * n_spatial
    if "adaptive" in op.name:
        before, after = op.inputs[0].shape[-n_spatial:], op.outputs[0].shape[-n_spatial:]
        return [one == other for one, other in zip(before, after, strict=True)]
    kernel, stride, padding = (
        _each(op.arguments.get(name), n_spatial) for name in ("kernel_size", "stride", "padding")
    )
    stride = stride or kernel
    return [k == 1 and s == 1 and p == 0 for k, s, p in zip(kernel, stride, padding or [0] * n_spatial, strict=True)]


def _each(value: Any, n: int) -> list[int]:
    """An argument that is given once for all axes, or once for each."""
    values = [value] if isinstance(value, int) else list(value or ())
    return values * n if len(values) == 1 else values


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(flow: Flow, op: Operation) -> Results:
    n_spatial = int(op.name[-2])
    axes, places = (flow.axes(op, op.arguments[name]) for name in ("self", "indices"))
    for axis in (*axes[-n_spatial:], *places[-n_spatial:]):
        freeze(axis, "position")
    leading = zip(axes[:-n_spatial], places[:-n_spatial], strict=True)
    return [[*(unify(axis, place) for axis, place in leading), *positions(op.outputs[0])[-n_spatial:]]]


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def _sampled_on_grid(flow: Flow, op: Operation) -> Results:
    """Each channel is read at the places of the grid, whose last axis holds coordinates."""
    (batch, channels, *spatial), (grids, *places, coordinates) = map(flow.axes, (op, op), op.inputs[:2])
    for axis in (*spatial, coordinates):
        freeze(axis, "position")
    return [[unify(batch, grids), channels, *places]]


@rule("affine_grid_generator", "cudnn_affine_grid_generator")
def _affine_grid(flow: Flow, op: Operation) -> Results:
    batch, *matrix = flow.axes(op, op.arguments["theta"])
    for axis in matrix:
        freeze(axis, "position")
    return [[batch, *positions(op.outputs[0])[1:]]]


@rule("pixel_shuffle")
def _pixels_shuffled(flow: Flow, op: Operation) -> Results:
    *batch, channels, height, width = flow.axes(op, op.arguments["self"])
    units, pixels = factor(channels, channels.size // op.arguments["upscale_factor"] ** 2)
    for axis in (pixels, height, width):
        freeze(axis, "position")
    return [[*batch, units, *(Atom(size, "position") for size in op.outputs[0].shape[-2:])]]


@rule("pixel_unshuffle")
def _pixels_gathered(flow: Flow, op: Operation) -> Results:
    *batch, units, height, width = flow.axes(op, op.arguments["self"])
    for axis in (height, width):
        freeze(axis, "position")
    pixels = Atom(op.arguments["downscale_factor"] ** 2, "position")
    return [[*batch, product((units, pixels)), *(Atom(size, "position") for size in op.outputs[0].shape[-2:])]]


@rule("im2col")
def _patches_taken(flow: Flow, op: Operation) -> Results:
    *batch, units, height, width = flow.axes(op, op.arguments["self"])
    for axis in (height, width):
        freeze(axis, "position")
    kernel = Atom(math.prod(op.arguments["kernel_size"]), "position in the kernel")
    return [[*batch, product((units, kernel)), Atom(op.outputs[0].shape[-1], "position")]]


@rule("col2im")
def _patches_put(flow: Flow, op: Operation) -> Results:
    *batch, packed, places = flow.axes(op, op.arguments["self"])
    units, kernel = factor(packed, packed.size // math.prod(op.arguments["kernel_size"]))
    for axis in (kernel, places):
        freeze(axis, "position in the kernel")
    return [[*batch, units, *(Atom(size, "position") for size in op.outputs[0].shape[-2:])]]
