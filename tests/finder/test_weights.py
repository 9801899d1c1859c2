import pytest
import torch
from torch import nn

from lightning_topo.finder import _weights
from lightning_topo.finder._weights import Slices, WeightsBefore
from lightning_topo.neurons import Member, NeuronGroup


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"conv": nn.Conv2d(3, 6, 3), "fc": nn.Linear(2 * 6 * 4 + 5, 7)})


# The units of a convolution, and those of a linear layer that reads them twice, four pixels each, behind five others.
GROUPS = {
    "conv": (Member("conv.weight"), Member("conv.bias"), Member("fc.weight", axis=1, outer=2, inner=4, offset=5)),
    "fc": (Member("fc.weight", axis=0), Member("fc.bias", axis=-1)),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("block", [1, 2**17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clouds_and_lengths_are_those_of_the_groups_points(monkeypatch, name, block, dtype):
    monkeypatch.setattr(_weights, "_BLOCK_ELEMENTS", block)
    model, group = network().to(dtype), NeuronGroup(name, GROUPS[name])
    slices, weights = Slices(model, group), WeightsBefore(model.parameters())
    before = group.points(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after, some = group.points(model), torch.tensor([4, 1])
    assert slices.shape == after.shape
    assert torch.equal(slices.before(weights), before)
    assert torch.equal(slices.now(), after)
    assert torch.equal(slices.before(weights, some), before[some])
    assert torch.equal(slices.now(some), after[some])
    expected = torch.linalg.vector_norm(after.double() - before.double(), dim=1)
    assert torch.allclose(slices.moved(weights).double(), expected, rtol=1e-5, atol=0)
    weights.take()
    assert torch.equal(slices.before(weights), after)
    assert not slices.moved(weights).any()


@pytest.mark.parametrize("name", GROUPS)
def test_projection_takes_some_of_the_coordinates_of_each_member(name):
    model, group = network(), NeuronGroup(name, GROUPS[name])
    slices, weights = Slices(model, group), WeightsBefore(model.parameters())
    points = group.points(model)
    assert torch.equal(slices.projected(weights, 1), points)
    few = slices.projected(weights, 4)
    assert points.shape[1] / 4 <= few.shape[1] <= points.shape[1] / 4 + len(group.members)
    assert all((points == column[:, None]).all(0).sum() == 1 for column in few.T)
