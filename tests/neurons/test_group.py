import pytest
import torch
from torch import nn

from lightning_topo.neurons import Member, NeuronGroup

FC1 = NeuronGroup("fc1", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))


def two_layers():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_points_are_rows_of_all_members_in_order():
    model = two_layers()
    points = FC1.points(model)
    for unit in range(4):
        expected = torch.cat([model[0].weight[unit], model[0].bias[unit, None], model[2].weight[:, unit]])
        torch.testing.assert_close(points[unit], expected, rtol=0, atol=0)


def test_points_are_a_detached_copy():
    model = two_layers()
    for group in (FC1, NeuronGroup("one member", (Member("0.weight"),))):
        before = model[0].weight.detach().clone()
        points = group.points(model)
        assert not points.requires_grad
        points.zero_()
        assert torch.equal(model[0].weight, before)


def test_indices_gather_only_their_rows():
    model = two_layers()
    torch.testing.assert_close(FC1.points(model, [3, 1]), FC1.points(model)[[3, 1]], rtol=0, atol=0)
    torch.testing.assert_close(FC1.points(model, torch.tensor([2])), FC1.points(model)[[2]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("member", "positions"),
    [
        (Member("w"), [[0], [1], [2], [3], [4], [5], [6], [7], [8], [9], [10], [11]]),
        (Member("w", inner=3), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
        (Member("w", outer=4), [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
        (Member("w", outer=2, inner=2), [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
        (Member("w", offset=8), [[8], [9], [10], [11]]),
        (Member("w", offset=4, size=2, inner=2), [[4, 5], [6, 7]]),
        (Member("w", axis=-1, offset=1, size=3), [[1], [2], [3]]),
    ],
)
def test_layouts(member, positions):
    model = nn.Module()
    model.w = nn.Parameter(torch.arange(12.0))
    group = NeuronGroup("g", (member,))
    assert group.n_units(model) == len(positions)
    assert group.points(model).long().tolist() == positions


def test_permutation_moves_rows_and_nothing_else():
    model = two_layers()
    before, rest = FC1.points(model), model[2].bias.detach().clone()
    FC1.permute_(model, [2, 0, 3, 1])
    assert torch.equal(FC1.points(model), before[[2, 0, 3, 1]])
    assert torch.equal(model[2].bias, rest)
    FC1.permute_(model, torch.tensor([2, 0, 3, 1]).argsort())
    assert torch.equal(FC1.points(model), before)


def test_permutation_keeps_parameters_and_their_gradients():
    model = two_layers()
    model(torch.ones(1, 3)).sum().backward()
    identities, gradient = [id(p) for p in model.parameters()], model[0].weight.grad.clone()
    FC1.permute_(model, [1, 0, 2, 3])
    assert [id(p) for p in model.parameters()] == identities
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[0].weight.grad, gradient)


def test_buffers_are_exchanged_but_are_no_coordinates():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_mean.copy_(torch.arange(4.0))
    group = NeuronGroup("0", (Member("0.weight"), Member("1.running_mean")))
    assert group.points(model).shape == (4, 3)
    group.permute_(model, [3, 2, 1, 0])
    assert model[1].running_mean.tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="holds buffers only"):
        NeuronGroup("b", (Member("1.running_mean"),)).points(model)


def test_tied_names_count_once():
    model = nn.Module()
    model.a, model.b = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    model.b.weight = model.a.weight
    group = NeuronGroup("tied", (Member("a.weight"), Member("b.weight")))
    before = model.a.weight.detach().clone()
    assert group.points(model).shape == (4, 3)
    group.permute_(model, [1, 0, 2, 3])
    assert torch.equal(model.a.weight, before[[1, 0, 2, 3]])


def test_recurrent_weight_is_permuted_along_both_axes():
    model = nn.RNN(2, 3)
    group = NeuronGroup("rnn", (Member("weight_hh_l0", 0), Member("weight_hh_l0", 1)))
    before, order = model.weight_hh_l0.detach().clone(), [2, 0, 1]
    group.permute_(model, order)
    assert torch.equal(model.weight_hh_l0, before[order][:, order])


def test_mixed_precision_promotes():
    model = two_layers()
    model[0].half()
    assert FC1.points(model).dtype == torch.float32


def test_frozen_parameters_are_members():
    model = two_layers().requires_grad_(False)
    assert FC1.points(model).shape == (4, 6)
    FC1.permute_(model, [1, 0, 3, 2])
    assert not model[0].weight.requires_grad


def test_names_are_found_through_wrappers():
    inner = two_layers()
    inner[2] = torch.compile(inner[2], backend="eager")
    assert "2._orig_mod.weight" in dict(inner.named_parameters())
    assert FC1.points(inner).shape == (4, 6)
    wrapped = nn.DataParallel(two_layers())
    assert torch.equal(FC1.points(wrapped), FC1.points(wrapped.module))


def test_parametrised_weights_are_named_by_their_originals():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    group = NeuronGroup("0", (Member("0.parametrizations.weight.original1"),))
    assert group.points(model).shape == (4, 3)


def test_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"no parameter or buffer '0.weigth'; near names: 0.weight"):
        NeuronGroup("g", (Member("0.weigth"),)).points(two_layers())
    with pytest.raises(ValueError, match="no parameter or buffer '0'"):
        NeuronGroup("g", (Member("0"),)).points(two_layers())


@pytest.mark.parametrize("axis", [2, -3])
def test_wrong_axis(axis):
    with pytest.raises(ValueError, match=rf"names axis {axis} of a tensor of shape \(4, 3\)"):
        NeuronGroup("g", (Member("0.weight", axis=axis),)).points(two_layers())


def test_scalar_has_no_axis():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="names axis 0 of a tensor of shape"):
        NeuronGroup("g", (Member("scale"),)).points(model)


@pytest.mark.parametrize("layout", [{"outer": 3}, {"inner": 5}, {"offset": 4}, {"offset": 2, "size": 3}])
def test_layout_that_does_not_fit(layout):
    with pytest.raises(ValueError, match="does not fit an axis of 4"):
        NeuronGroup("g", (Member("0.weight", **layout),)).points(two_layers())


@pytest.mark.parametrize("layout", [{"outer": 0}, {"inner": -1}, {"offset": -1}, {"size": 0}])
def test_impossible_layout(layout):
    with pytest.raises(ValueError, match="expected outer, inner, size >= 1 and offset >= 0"):
        Member("0.weight", **layout)


def test_disagreeing_sizes_name_the_members():
    group = NeuronGroup("g", (Member("0.weight"), Member("2.weight")))
    with pytest.raises(ValueError, match=r"0.weight axis 0: 4, 2.weight axis 0: 2"):
        group.n_units(two_layers())


def test_empty_group():
    with pytest.raises(ValueError, match="has no members"):
        NeuronGroup("g", ())


@pytest.mark.parametrize("permutation", [[0, 1, 2], [0, 0, 1, 2], [1, 2, 3, 4]])
def test_not_a_permutation(permutation):
    with pytest.raises(ValueError, match=r"expected a permutation of 0 \.\.\. 3"):
        FC1.permute_(two_layers(), permutation)


def test_lazy_and_integer_parameters():
    with pytest.raises(ValueError, match="run one batch through the model first"):
        NeuronGroup("g", (Member("0.weight"),)).points(nn.Sequential(nn.LazyLinear(4)))
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'w' is of type torch.int8"):
        NeuronGroup("g", (Member("w"),)).points(model)


@pytest.mark.gpu
def test_points_stay_on_the_device():
    model = two_layers().cuda()
    assert FC1.points(model, torch.tensor([1])).is_cuda
    FC1.permute_(model, torch.tensor([1, 0, 2, 3]))
