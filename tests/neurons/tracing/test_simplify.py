"""Traces rewritten so that pieces which are joined again are never cut, against the operations themselves."""

import pytest
import torch
from torch.utils._pytree import tree_map

from lightning_topo.neurons.exchange.example import ExampleCall
from lightning_topo.neurons.tracing.simplify import simplified
from lightning_topo.neurons.tracing.trace import Recorder, Value

X = torch.arange(2.0 * 6 * 4).view(2, 6, 4)


OVERLOADS = {"split": "Tensor", "slice": "Tensor", "add": "Tensor", "select": "int", "unbind": "int"}


def traced(function):
    x = X.clone()
    recorder = Recorder(torch.nn.Module(), ExampleCall((x,)))
    with recorder:
        y = function(x)
    return recorder.finish(y), recorder._values[x], y


def replayed(trace, value):
    """The result of the operations of a trace, one after the other."""
    known = {value: X.clone()}
    for op in trace.operations:
        arguments = tree_map(lambda item: known[item] if isinstance(item, Value) else item, dict(op.arguments))
        if op.name == "view":  # a reshape, whose strides may ask for a copy
            result = arguments["self"].reshape(arguments["size"])
        else:
            result = getattr(getattr(torch.ops.aten, op.name), OVERLOADS.get(op.name, "default"))(**arguments)
        results = result if isinstance(result, (tuple, list)) else (result,)
        known.update(zip(op.outputs, results, strict=True))
    return known[trace.results[0]]


JOINED = {
    "chunks stacked": lambda x: torch.stack(x.chunk(3, 1), 0),
    "chunks stacked behind": lambda x: torch.stack(x.chunk(2, 2), 3),
    "slices joined where they were cut": lambda x: torch.cat([x[:, :2], x[:, 2:5]], 1),
    "slices joined along another axis": lambda x: torch.cat([x[:, :3], x[:, 3:]], 2),
    "slices joined in front": lambda x: torch.cat([x[..., :2], x[..., 2:]], 0),
    "single positions stacked": lambda x: torch.stack(x.unbind(1), 0),
    "single positions joined": lambda x: torch.cat(x.unbind(1), -1),
    "single positions joined in front": lambda x: torch.cat(x.unbind(2), 0),
    "some single positions": lambda x: torch.stack([x[:, i] for i in range(1, 4)], 2),
    "pieces of pieces": lambda x: torch.cat([x[:, 1:][:, :2], x[:, 1:][:, 2:4]], 1),
}


@pytest.mark.parametrize("name", JOINED)
def test_joins_become_views(name):
    trace, value, y = traced(JOINED[name])
    simple = simplified(trace)
    assert not {op.name for op in simple.operations} & {"cat", "stack", "split", "unbind", "chunk"}
    assert torch.equal(replayed(simple, value), y)


KEPT = {
    "in another order": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "with a gap": lambda x: torch.cat([x[:, :2], x[:, 3:5]], 1),
    "of unequal sizes": lambda x: torch.cat([x[:, :2, :3], x[:, 2:4, 1:]], 2),
    "of two tensors": lambda x: torch.cat([x[:, :2], (x + x)[:, 2:]], 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_joins_stay(name):
    trace, value, y = traced(KEPT[name])
    simple = simplified(trace)
    assert "cat" in {op.name for op in simple.operations}
    assert torch.equal(replayed(simple, value), y)


def test_pieces_that_are_written_to_are_left_alone():
    def function(x):
        first, second = x.chunk(2, 1)
        first.zero_()
        return torch.cat([first, second], 1)

    trace, _, _ = traced(function)
    assert [op.name for op in simplified(trace).operations] == [op.name for op in trace.operations]


def test_a_slice_of_a_slice_is_one():
    trace, value, y = traced(lambda x: x[:, 1:][:, ::2])
    (op,) = simplified(trace).operations
    assert (op.arguments["start"], op.arguments["step"], op.inputs[0].shape) == (1, 2, (2, 6, 4))
    assert torch.equal(replayed(simplified(trace), value), y)


def test_only_the_pieces_that_are_used_are_cut():
    trace, value, y = traced(lambda x: (lambda a, b, c: torch.cat([a, b], 1) + torch.cat([c, c], 1))(*x.split(2, 1)))
    names = [op.name for op in simplified(trace).operations]
    assert "split" not in names
    assert names.count("slice") == 2
    assert torch.equal(replayed(simplified(trace), value), y)
