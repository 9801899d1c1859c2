"""Operations along an axis: those that treat its units alike, and those that depend on their order."""

from __future__ import annotations

from lightning_topo.neurons.tracing.alignment import unify
from lightning_topo.neurons.tracing.axes import Atom, Free, freeze
from lightning_topo.neurons.tracing.flow import Flow, Named
from lightning_topo.neurons.tracing.rules.rearrangement import dims_of
from lightning_topo.neurons.tracing.rules.registry import Results, rule
from lightning_topo.neurons.tracing.trace import Operation

# Those that are the same with a unit twice in it.
_EXTREMES = ("amax", "amin", "aminmax", "max", "min", "any", "all")


@rule("sum", "mean", "amax", "amin", "aminmax", "max", "min", "median", "nanmedian", "nansum", "prod", "any", "all")
@rule("std", "var", "std_mean", "var_mean", "logsumexp", "norm", "linalg_vector_norm", "count_nonzero")
def _reduced(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.inputs[0])
    dims = dims_of(op.arguments.get("dim"), len(axes))
    if op.name in ("max", "min") and len(op.outputs) == 2:
        flow.names(op.outputs[1], Named(axes[min(dims)], f"operation {op.name} depends on positions"))
    for position in dims if op.name not in _EXTREMES else ():
        flow.totals_over(axes[position], f"operation {op.name} runs over its units")
    kept = [Free(1) if position in dims else axis for position, axis in enumerate(axes)]
    dropped = [axis for position, axis in enumerate(axes) if position not in dims]
    return [kept if len(value.shape) == len(kept) else dropped for value in op.outputs]


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "roll", "cumsum_", "cumprod_")
@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "kthvalue", "mode")
def _ordered(flow: Flow, op: Operation) -> Results:
    axes = flow.axes(op, op.inputs[0])
    dims = dims_of(op.arguments.get("dim", op.arguments.get("dims")), len(axes))
    for position in dims:
        freeze(axes[position], f"operation {op.name} depends on positions")
    reason = "position"
    results = []
    for value in op.outputs:
        if len(value.shape) == len(axes):
            kept = [Atom(size, reason) if p in dims else axes[p] for p, size in enumerate(value.shape)]
        else:
            kept = [axis for position, axis in enumerate(axes) if position not in dims]
        results.append(kept)
    return results


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
def _loss(flow: Flow, op: Operation) -> Results:
    """Compared position by position, and reduced or not."""
    axes = flow.broadcast(op, op.inputs, op.inputs[0].shape)
    for axis in axes if op.outputs[0].shape != op.inputs[0].shape else ():
        flow.totals_over(axis, f"operation {op.name} runs over its units")
    return [axes if op.outputs[0].shape == op.inputs[0].shape else []]


@rule("nll_loss_forward", "nll_loss2d_forward")
def _class_loss(flow: Flow, op: Operation) -> Results:
    """The class is chosen by index."""
    scores, chosen = (flow.axes(op, op.arguments[name]) for name in ("self", "target"))
    classes = scores.pop(min(1, len(scores) - 1))
    freeze(classes, "model output")
    kept = [unify(one, other) for one, other in zip(scores, chosen, strict=True)] if scores else []
    return [kept if op.outputs[0].shape else [], []]
