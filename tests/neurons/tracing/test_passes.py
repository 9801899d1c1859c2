"""Propagation over traces written by hand: operations that only other devices run, and unknown ones."""

import pytest
import torch

from lightning_topo.neurons.tracing.axes import atoms, occurrences
from lightning_topo.neurons.tracing.passes import propagate
from lightning_topo.neurons.tracing.rules import RULES
from lightning_topo.neurons.tracing.trace import Operation, Trace, Value


def trace_of(*operations, owned):
    trace = Trace(list(operations), {value.name: value for value in owned})
    trace.results = operations[-1].outputs
    return trace


def operation(name, inputs, outputs, **arguments):
    return Operation(name, arguments, tuple(inputs), tuple(outputs), False, {})


def computed(*shape):
    return Value(shape, "computed")


def parameter(name, *shape):
    return Value(shape, "parameter", name)


@pytest.mark.parametrize(("cell", "n_gates", "n_states"), [("lstm", 4, 2), ("gru", 3, 1)])
def test_fused_recurrent_cells(cell, n_gates, n_states):
    units = 2
    x, state = Value((5, 3), "input"), computed(5, units)
    w_in, w_out = parameter("in", 3, n_gates * units), parameter("out", units, 7)
    w_hidden = parameter("hidden", units, n_gates * units)
    bias = parameter("bias", n_gates * units)
    gates_in, gates_hidden = computed(5, n_gates * units), computed(5, n_gates * units)
    states, workspace = [computed(5, units) for _ in range(n_states)], computed(5, 9)
    flow = propagate(
        trace_of(
            operation("mm", (x, w_in), (gates_in,)),
            operation("mm", (state, w_hidden), (gates_hidden,)),
            operation(f"_thnn_fused_{cell}_cell", (gates_in, gates_hidden, state, bias), (*states, workspace)),
            operation("mm", (states[0], w_out), (computed(5, 7),)),
            owned=(w_in, w_hidden, w_out, bias),
        )
    )
    ((unit, offset, inner),) = occurrences(flow.owned("out")[0])
    assert (unit.size, offset, inner) == (units, 0, 1)
    expected = [(unit, gate * units, 1) for gate in range(n_gates)]
    assert list(occurrences(flow.owned("in")[1])) == expected
    assert list(occurrences(flow.owned("bias")[0])) == expected
    assert list(occurrences(flow.owned("hidden")[1])) == expected
    assert list(occurrences(flow.owned("hidden")[0])) == [(unit, 0, 1)]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("invented", "operation invented is not known"),
        ("transpose", "operation transpose is called in a way that is not known"),
        ("view", "operation view cuts its units"),
        ("clone", "operation clone has a result of unexpected shape"),
    ],
)
def test_what_is_not_understood_freezes_its_inputs_and_says_why(name, problem):
    weight = parameter("w", 4, 6)
    flow = propagate(trace_of(operation(name, (weight,), (computed(3, 8),)), owned=(weight,)))
    assert {atom.reason for axis in flow.owned("w") for atom in atoms(axis)} == {problem}


def test_experts_chosen_by_index():
    """Mixture layers sort their tokens by expert: what is within an expert can be exchanged, experts cannot."""
    tokens, stream, experts = Value((6, 3), "input"), parameter("stream", 3, 4), parameter("experts", 5, 4, 8)
    out, read, made = parameter("out", 8, 2), computed(6, 4), computed(6, 8)
    flow = propagate(
        trace_of(
            operation("mm", (tokens, stream), (read,)),
            operation("_grouped_mm", (read, experts), (made,), self=read, mat2=experts),
            operation("mm", (made, out), (computed(6, 2),)),
            owned=(stream, experts, out),
        )
    )
    which, inside, units = flow.owned("experts")
    assert [atom.reason for atom in atoms(which)] == ["chosen by index"]
    assert list(atoms(inside)) == list(atoms(flow.owned("stream")[1]))
    assert list(atoms(units)) == list(atoms(flow.owned("out")[0]))
    assert {atom.reason for atom in (*atoms(inside), *atoms(units))} == {None}


WINDOWED = "position in a window"


@pytest.mark.parametrize(
    ("size", "stride", "reasons"),
    [
        ((2, 3, 4), (12, 4, 1), ["model output"] * 3),
        ((2, 3, 4), (12, 1, 3), ["model output", WINDOWED, WINDOWED]),  # two axes exchanged, as a view does not
        ((2, 2, 2, 4), (12, 4, 4, 1), ["model output", WINDOWED, "model output"]),  # overlapping windows
        ((2, 3, 2, 3), (12, 4, 1, 1), ["model output", "model output", WINDOWED]),
        ((2, 3, 3), (12, 4, 2), [WINDOWED] * 3),  # reaches into the next row, and the last row elsewhere
        ((24,), (1,), [WINDOWED] * 3),
    ],
)
def test_strides_that_make_windows(size, stride, reasons):
    weight = parameter("w", 2, 3, 4)
    step = operation("as_strided", (weight,), (computed(*size),), size=list(size), stride=list(stride))
    flow = propagate(trace_of(step, owned=(weight,)))
    assert [{atom.reason for atom in atoms(axis)} for axis in flow.owned("w")] == [{reason} for reason in reasons]


@pytest.mark.parametrize(
    ("own", "size", "stride", "reasons"),
    [
        ((1, 2, 6), (2, 3, 4), (1, 2, 6), ["model output"] * 3),
        ((1, 2, 6), (2, 3, 2, 3), (1, 2, 6, 6), ["model output", "model output", WINDOWED]),
        ((24, 8, 2), (2, 3, 4), (24, 8, 2), ["operation as_strided cuts its units"] * 3),  # every second number
    ],
)
def test_strides_of_a_storage_that_is_laid_out_otherwise(own, size, stride, reasons):
    weight = parameter("w", 2, 3, 4)
    options = {"size": list(size), "stride": list(stride), "self_stride": own}
    flow = propagate(trace_of(operation("as_strided", (weight,), (computed(*size),), **options), owned=(weight,)))
    assert [{atom.reason for atom in atoms(axis)} for axis in flow.owned("w")] == [{reason} for reason in reasons]


# Operations that came after the oldest version of PyTorch that is supported.
NEWER = {
    "_grouped_mm",
    "_fused_rms_norm",
    "rms_norm",
    "_safe_softmax",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
}


def test_every_rule_is_for_an_operation_that_there_is():
    missing = {name for name in RULES if not hasattr(torch.ops.aten, name)}
    assert missing <= (NEWER if torch.__version__ < "2.9" else set())
