import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_topo.neurons import Member, NeuronGroup, find_neuron_groups, is_permutation_symmetric


def without(group, parameter):
    return NeuronGroup(group.name, tuple(member for member in group.members if member.parameter != parameter))


def conv_net():
    """Everything that initialisation makes alike: scales of one, zero shifts and means, unit variances."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    )


CONV = NeuronGroup(
    "0",
    (
        *(Member(f"0.{name}") for name in ("weight", "bias")),
        *(Member(f"1.{name}") for name in ("weight", "bias", "running_mean", "running_var")),
        Member("3.weight", axis=1),
    ),
)


@pytest.mark.parametrize("member", [member.parameter for member in CONV.members])
def test_units_that_are_alike_hide_no_missing_member(member):
    model, example = conv_net(), torch.randn(3, 1, 8, 8)
    nn.init.zeros_(model[0].bias)
    assert is_permutation_symmetric(model, CONV, example)
    assert not is_permutation_symmetric(model, without(CONV, member), example)


def test_zero_initialised_layer_and_zero_input():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    whole = NeuronGroup("0", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))
    for example in (torch.randn(5, 3), torch.zeros(5, 3)):
        assert is_permutation_symmetric(model, whole, example)
        for member in whole.members:
            assert not is_permutation_symmetric(model, without(whole, member.parameter), example)


def test_tiny_layer_scale():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.out = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.full((4,), 1e-6))

        def forward(self, x):
            return self.out(x + self.scale * self.down(self.up(x).relu()))

    whole = NeuronGroup("up", (Member("up.weight"), Member("up.bias"), Member("down.weight", axis=1)))
    for member in whole.members:
        assert not is_permutation_symmetric(Block(), without(whole, member.parameter), torch.randn(4, 4))
    assert is_permutation_symmetric(Block(), whole, torch.randn(4, 4))


def test_first_layer_of_a_deep_net_that_damps_it():
    """Twenty layers without normalisation leave less than a millionth of what the first does."""
    layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model, example = nn.Sequential(*layers, nn.Linear(16, 2)), torch.randn(4, 16)
    whole = NeuronGroup("0", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))
    assert is_permutation_symmetric(model, whole, example)
    for member in whole.members:
        assert not is_permutation_symmetric(model, without(whole, member.parameter), example)


def test_recurrence_that_amplifies_rounding():
    class Chaotic(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(2, 16, batch_first=True), nn.Linear(16, 1)
            with torch.no_grad():
                self.rnn.weight_hh_l0.mul_(4)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    (group,) = find_neuron_groups(Chaotic(), torch.randn(2, 40, 2))
    assert is_permutation_symmetric(Chaotic(), group, torch.randn(2, 40, 2))
    assert not is_permutation_symmetric(Chaotic(), without(group, "rnn.bias_hh_l0"), torch.randn(2, 40, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    (group,) = find_neuron_groups(model, torch.randn(4, 3))
    assert is_permutation_symmetric(model, group, torch.randn(4, 3, dtype=dtype))
    assert not is_permutation_symmetric(model, without(group, "0.bias"), torch.randn(4, 3))


def test_forward_that_insists_on_single_precision():
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            if x.dtype != torch.float32 or self.fc1.weight.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.fc2(self.fc1(x).relu())

    (group,) = find_neuron_groups(Insists(), torch.randn(4, 3))
    assert is_permutation_symmetric(Insists(), group, torch.randn(4, 3))
    assert not is_permutation_symmetric(Insists(), without(group, "fc1.bias"), torch.randn(4, 3))


def test_casts_within_forward_run_in_double_precision():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.fc1(x).float()
            h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
            return self.fc2(h.to(x.dtype))

    (group,) = find_neuron_groups(Casts(), torch.randn(4, 3))
    assert {member.parameter for member in group.members} == {"fc1.weight", "fc1.bias", "fc2.weight"}


def test_output_layer_is_no_group():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    outputs = NeuronGroup("2", (Member("2.weight"), Member("2.bias")))
    assert not is_permutation_symmetric(model, outputs, torch.randn(2, 3))


def test_all_outputs_count_wherever_they_are():
    class Two(nn.Module):
        def __init__(self, nested):
            super().__init__()
            self.fc1, self.fc2, self.nested = nn.Linear(3, 4), nn.Linear(4, 2), nested

        def forward(self, x):
            h = self.fc1(x).relu()
            return {"out": self.fc2(h), "extra": [({"hidden": h},)] if self.nested else h.argmax(-1)}

    whole = NeuronGroup("fc1", (Member("fc1.weight"), Member("fc1.bias"), Member("fc2.weight", axis=1)))
    assert is_permutation_symmetric(Two(nested=False), whole, torch.randn(2, 3))
    assert not is_permutation_symmetric(Two(nested=True), whole, torch.randn(2, 3))


def test_random_numbers_in_forward_are_the_same_in_both_runs():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(self.fc1(x + torch.randn_like(x) + np.random.rand() + random.random()).relu())  # noqa: NPY002

    whole = NeuronGroup("fc1", (Member("fc1.weight"), Member("fc1.bias"), Member("fc2.weight", axis=1)))
    assert is_permutation_symmetric(Noisy(), whole, torch.randn(2, 3))


def test_a_group_of_one_unit_is_symmetric():
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2))
    assert is_permutation_symmetric(model, NeuronGroup("0", (Member("0.weight"),)), torch.randn(2, 3))


def test_group_that_does_not_fit():
    with pytest.raises(ValueError, match="disagree on the number of units"):
        is_permutation_symmetric(conv_net(), NeuronGroup("g", (Member("0.weight"), Member("3.weight"))), None)


def test_no_floating_point_output():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(self.fc1(x)).argmax(-1)

    whole = NeuronGroup("fc1", (Member("fc1.weight"), Member("fc1.bias"), Member("fc2.weight", axis=1)))
    with pytest.raises(ValueError, match=r"Classes\.forward \(ValueError: it returns no floating-point tensor\)"):
        is_permutation_symmetric(Classes(), whole, torch.randn(2, 3))


def test_infinite_outputs_are_compared_where_they_are_finite():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc2(self.fc1(x).relu()).masked_fill(torch.tensor([False, True, False]), float("-inf"))

    (group,) = find_neuron_groups(Masked(), torch.randn(4, 3))
    assert is_permutation_symmetric(Masked(), group, torch.randn(4, 3))
    assert not is_permutation_symmetric(Masked(), without(group, "fc1.bias"), torch.randn(4, 3))


def test_model_is_left_as_it_is():
    model = conv_net().train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    fired = []
    handle = model[0].register_forward_hook(lambda *_: fired.append(1))
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    is_permutation_symmetric(model, CONV, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])  # noqa: NPY002
    assert random.getstate() == random_states[2]
    assert (model.training, model[3].training, model[0].weight.requires_grad) == (True, False, False)
    assert fired == []
    assert list(model[0]._forward_hooks) == [handle.id]


def test_parameters_that_must_be_positive_and_inputs_that_must_be_too():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.rates, self.head = nn.Parameter(torch.rand(3, 6) + 0.1), nn.Linear(6, 2)

        def forward(self, x):
            if (x < 0).any():
                raise ValueError("counts expected")
            return self.head((x @ self.rates.log()).tanh())

    (group,) = find_neuron_groups(Positive(), torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]]))
    assert group.members == (Member("rates", axis=1), Member("head.weight", axis=1))


@pytest.mark.parametrize("container", [dict, list, tuple])
def test_what_a_forward_pass_has_kept_with_its_graph_is_copied(container):
    """As LeViT keeps the biases of its attention."""

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.kept = nn.Linear(4, 10), nn.Linear(10, 2), container()

        def forward(self, x):
            hidden = self.fc1(x)
            self.kept = {"hidden": hidden} if container is dict else container([hidden])
            return self.fc2(hidden.relu())

    torch.manual_seed(0)
    model, x = Keeping(), torch.randn(3, 4)
    model(x)
    groups = find_neuron_groups(model, x)
    assert [group.name for group in groups] == ["fc1"]
    assert is_permutation_symmetric(model, groups[0], x)
