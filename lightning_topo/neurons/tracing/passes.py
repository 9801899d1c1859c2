"""Passes over a trace, operation by operation, each by its rule: which units of which parameters belong together."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_topo.neurons.tracing.alignment import Misaligned
from lightning_topo.neurons.tracing.axes import Atom, Free, freeze
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.packed_axes import AnyAxis, Cuts, plain
from lightning_topo.neurons.tracing.rules import RULES, hand_on_names, pointwise
from lightning_topo.neurons.tracing.simplify import simplified
from lightning_topo.neurons.tracing.trace import SHAPE_ONLY, Operation, Trace, Value

_MAX_PASSES = 5


def propagate(trace: Trace) -> Flow:
    """Axes of all parameters after the last of as many passes as packed axes need to be told apart."""
    trace = simplified(trace)
    cuts: Cuts = {}
    for _ in range(_MAX_PASSES):
        flow = Flow(trace, cuts)
        _run(flow)
        if flow.found_cuts == cuts:
            break
        cuts = flow.found_cuts
    return flow


def _run(flow: Flow) -> None:
    """Carry the axes through all operations; what the model returns cannot be exchanged."""
    for time, operation in enumerate(flow.trace.operations):
        if operation.name not in SHAPE_ONLY and any(map(flow.trace.is_live, operation.inputs)):
            flow.begin(time)
            hand_on_names(flow, operation)
            flow.end(operation, _results(flow, operation))
    for value in flow.trace.results:
        if flow.trace.is_live(value):
            for axis in plain(flow.known(value)):
                freeze(axis, "model output")


def _results(flow: Flow, operation: Operation) -> list[Sequence[AnyAxis]]:
    """Axes of what the operation returned; where its rule does not fit, those of values of which nothing is known."""
    rule = RULES.get(operation.name, pointwise if operation.pointwise else None)
    try:
        results = rule(flow, operation) if rule else _stopped(flow, operation, "is not known")
    except Misaligned:
        results = _stopped(flow, operation, "cuts its units")
    except (LookupError, TypeError, ValueError):  # signatures differ between versions of PyTorch
        results = _stopped(flow, operation, "is called in a way that is not known")
    fitting: list[Sequence[AnyAxis]] = []
    for value, axes in zip(operation.outputs, results, strict=True):
        if tuple(axis.size for axis in axes) != value.shape and 0 not in value.shape:
            (axes,) = _stopped(flow, operation, "has a result of unexpected shape", (value,))
        fitting.append(axes)
    return fitting


def _stopped(
    flow: Flow, operation: Operation, problem: str, outputs: Sequence[Value] | None = None
) -> list[list[AnyAxis]]:
    """Freeze all that goes in, because nothing is known of what comes out."""
    reason = f"operation {operation.name} {problem}"
    for value in operation.inputs:
        for axis in flow.axes(operation, value):
            freeze(axis, reason)
    values = operation.outputs if outputs is None else outputs
    return [[Atom(size, reason) if size > 1 else Free(size) for size in value.shape] for value in values]
