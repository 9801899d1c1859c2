"""Constants that exchanges of positions leave as they are, against exchanges that are made."""

from itertools import permutations

import pytest
import torch

from lightning_topo.neurons.exchange.constants import equal_slices, same_everywhere, twin_axes
from lightning_topo.neurons.exchange.perturbed import perturb

EYE = torch.eye(4)
CONSTANTS = {
    "identity": EYE,
    "identity and a constant": 2.0 * EYE - 0.5,
    "one identity for each item": torch.stack([EYE, 3.0 * EYE]),
    "identity between two axes": EYE[:, None].expand(4, 3, 4),
    "mask": EYE.bool(),
    "triangle": torch.ones(4, 4).tril(),
    "diagonal that varies": torch.diag(torch.arange(1.0, 5.0)),
    "no square": torch.eye(4, 5),
    "ones": torch.ones(4, 4),
    "knots": torch.linspace(0.0, 1.0, 5).expand(4, 5),
    "symmetric": torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]),
    "empty": torch.empty(0, 0),
    "scalar": torch.tensor(1.0),
}


def invariant(tensor, *axes):
    """Whether every exchange along the axes, the same along each, leaves the tensor as it is."""
    for order in permutations(range(tensor.shape[axes[0]])):
        exchanged = tensor
        for axis in axes:
            exchanged = exchanged.index_select(axis, torch.tensor(order, dtype=torch.long))
        if not torch.equal(exchanged, tensor):
            return False
    return True


@pytest.mark.parametrize("name", CONSTANTS)
def test_against_all_exchanges(name):
    tensor = CONSTANTS[name]
    alone = [invariant(tensor, axis) for axis in range(tensor.ndim)]
    assert [equal_slices(tensor, axis) for axis in range(tensor.ndim)] == alone
    pairs = {
        (one, other)
        for one in range(tensor.ndim)
        for other in range(one + 1, tensor.ndim)
        if tensor.shape[one] == tensor.shape[other] > 1 and not alone[one] and invariant(tensor, one, other)
    }
    assert {pair for pair in twin_axes(tensor) if pair[0] != pair[1]} == pairs


def test_a_square_that_is_flattened():
    assert twin_axes(EYE.flatten()) == ((0, 0),)
    assert twin_axes(EYE.flatten().expand(3, 16)) == ((1, 1),)
    assert twin_axes(torch.ones(4, 4).tril().flatten()) == ()
    assert twin_axes(torch.eye(2).flatten()) == ()  # four numbers may be one by chance


def test_other_layouts_and_types():
    assert twin_axes(EYE.to_sparse()) == ()
    assert not equal_slices(EYE.to_sparse(), 0)
    assert not same_everywhere(torch.ones(3, dtype=torch.long))
    assert same_everywhere(torch.ones(3))
    assert not same_everywhere(torch.ones(1))


def test_perturbed_buffers_stay_as_invariant_as_they_are():
    """But a buffer of one number everywhere, which may be a statistic of the units, tells them apart."""
    module = torch.nn.Module()
    for name, buffer in {"eye": EYE, "knots": CONSTANTS["knots"], "statistic": torch.ones(4)}.items():
        module.register_buffer(name, buffer.clone())
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        perturb(module, generator)
        assert twin_axes(module.eye) == ((0, 1),)
        assert equal_slices(module.knots, 0)
        assert not equal_slices(module.knots, 1)
    assert not torch.equal(module.eye, EYE)
    assert len(module.statistic.unique()) == 4
