import copy
import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.compile import from_compiled
from torch import nn

from lightning_topo.neurons import (
    Member,
    NeuronGroup,
    UncoveredAxis,
    discover_neurons,
    example_inputs_from_batch,
    find_neuron_groups,
)


def test_multilayer_perceptron():
    model = nn.Sequential(
        *(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Dropout()),
        *(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)),
    )
    found = discover_neurons(model, torch.randn(6, 3))
    assert found.groups == (
        NeuronGroup(
            "0",
            (Member("0.weight"), Member("0.bias"), Member("2.weight"), Member("2.bias"), Member("4.weight", axis=1)),
        ),
        NeuronGroup("4", (Member("4.weight"), Member("6.weight", axis=1))),
    )
    assert found.uncovered == (
        UncoveredAxis("0.weight", 1, "model input"),
        UncoveredAxis("6.weight", 0, "model output"),
        UncoveredAxis("6.bias", 0, "model output"),
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_with_batch_norm_pooling_and_flatten(dimensions):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    pool = (nn.MaxPool1d, nn.AvgPool2d, nn.MaxPool3d)[dimensions - 1]
    pixels = 2**dimensions
    model = nn.Sequential(
        conv(2, 4, 3), norm(4), nn.ReLU(), pool(2), conv(4, 5, 2), nn.ELU(), nn.Flatten(), nn.Linear(5 * pixels, 3)
    )
    groups = find_neuron_groups(model, torch.randn(2, 2, *[8] * dimensions))
    statistics = (Member("1.running_mean"), Member("1.running_var"))
    scale = (Member("0.weight"), Member("0.bias"), Member("1.weight"), Member("1.bias"))
    assert groups == (
        NeuronGroup("0", (*scale, Member("4.weight", axis=1), *statistics)),
        NeuronGroup("4", (Member("4.weight"), Member("4.bias"), Member("7.weight", axis=1, inner=pixels))),
    )


def test_reasons_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    uncovered = discover_neurons(model, torch.zeros(1, 2, 5, 5)).uncovered
    reasons = {(axis.parameter, axis.axis): axis.reason for axis in uncovered}
    assert reasons == {
        ("0.weight", 1): "model input",
        ("0.weight", 2): "position in the kernel",
        ("0.weight", 3): "position in the kernel",
        ("3.weight", 0): "model output",
        ("3.bias", 0): "model output",
    }


def test_frozen_parameters_are_members():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    (group,) = find_neuron_groups(model, torch.randn(2, 3))
    assert len(group.members) == 3


def test_names_are_unique_and_in_forward_order():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.head = nn.Linear(4, 6), nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x):
            left, right = self.second(self.first(x).relu()).chunk(2, -1)
            return self.head(left.tanh()) + self.head(right.relu() ** 2)

    class Halves(Reversed):
        def forward(self, x):
            left, right = self.second(self.first(x).relu()).chunk(2, -1)
            return torch.cat([left.tanh(), right.relu()], -1) @ self.mix

    model = Halves()
    model.mix = nn.Parameter(torch.randn(6, 2))
    assert [group.name for group in find_neuron_groups(model, torch.randn(2, 3))] == ["first", "second.0", "second.1"]
    assert [group.name for group in find_neuron_groups(Reversed(), torch.randn(2, 3))] == ["first", "second"]


def test_weights_of_the_root_module_name_themselves():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5, 2))

        def forward(self, x):
            return (x @ self.w1).relu() @ self.w2

    (group,) = find_neuron_groups(Raw(), torch.randn(2, 3))
    assert group == NeuronGroup("w1", (Member("w1", axis=1), Member("w2", axis=0)))


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self):
        super().__init__()
        self.small, self.large, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        if x.abs().sum() < 0:
            return self.small(x)
        h = self.large(x)
        while h.norm() > 1:
            h = h / 2
        return self.head(h.relu())


def test_data_dependent_control_flow_is_followed_as_it_ran():
    message = (
        r"Branching depends on the values of its input, .* not use small.weight, small.bias: .*; pass an example_inp"
    )
    with pytest.warns(UserWarning, match=message):
        found = discover_neurons(Branching(), torch.randn(2, 3))
    assert [group.name for group in found.groups] == ["large"]
    assert UncoveredAxis("small.weight", 0, "not used in the forward pass") in found.uncovered


def test_constants_tell_units_apart_unless_they_are_alike():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.fc1, self.fc2, self.scale = nn.Linear(3, 4), nn.Linear(4, 2), scale

        def forward(self, x):
            return self.fc2(self.fc1(x).relu() * self.scale)

    assert [group.name for group in find_neuron_groups(Scaled(torch.full((4,), 3.0)), torch.randn(2, 3))] == ["fc1"]
    found = discover_neurons(Scaled(torch.tensor([1.0, 2.0, 2.0, 3.0])), torch.randn(2, 3))
    assert found.groups == ()
    assert UncoveredAxis("fc1.bias", 0, "fixed values") in found.uncovered


def test_state_that_is_the_same_for_all_units_now_goes_with_them():
    class Custom(nn.Module):
        """A state that is not bound to stay the same for all units."""

        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            return self.fc3(self.fc2(self.fc1(x) - self.mean).relu())

    first, second = find_neuron_groups(Custom(), torch.randn(2, 3))
    assert (first.name, second.name) == ("fc1", "fc2")
    assert Member("mean") in first.members


def test_group_that_fails_the_exchange_test_is_dropped_with_a_warning():
    class Detour(nn.Module):
        """Reads a parameter where no operation shows it, and where all its numbers are alike at first."""

        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.mean = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return self.fc3(self.fc2(self.fc1(x) - torch.from_numpy(self.mean.detach().numpy())).relu())

    with pytest.warns(UserWarning, match="exchanging their units changes the output: fc1, mean$"):
        found = discover_neurons(Detour(), torch.randn(2, 3))
    assert [group.name for group in found.groups] == ["fc2"]
    assert UncoveredAxis("fc1.bias", 0, "refuted by the exchange test") in found.uncovered


class Experts(nn.Module):
    """Each row goes to one of some experts; few rows do not reach all of them."""

    def __init__(self):
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(6))

    def forward(self, x):
        x = self.stem(x)
        chosen, y = self.router(x).argmax(-1), torch.zeros_like(x)
        for which in chosen.unique():
            rows = (chosen == which).nonzero().squeeze(1)
            y = y.index_add(0, rows, self.experts[int(which)](x[rows]))
        return self.head(x + y)


def test_branches_that_the_first_run_did_not_take():
    """The stream that all experts read has a member in each, whichever were chosen."""
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some expert is never chosen
        found = discover_neurons(model, x)
    used = {int(which) for which in model.router(model.stem(x)).argmax(-1)}
    stream = next(group for group in found.groups if group.n_units(model) == 6)
    reached = {int(member.parameter.split(".")[1]) for member in stream.members if "experts" in member.parameter}
    assert reached > used
    assert {group.name for group in found.groups} >= {f"experts.{which}.0" for which in reached}


def test_unknown_operation_is_named():
    class Inverts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(torch.fft.ifft(torch.fft.fft(self.fc1(x))).real)

    found = discover_neurons(Inverts(), torch.randn(2, 3))
    assert found.groups == ()
    (reason,) = {axis.reason for axis in found.uncovered if axis.parameter == "fc1.bias"}
    assert reason.startswith("operation _fft")


def test_outputs_filled_in_place():
    class Fills(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = torch.zeros(len(x), 5, 4)
            for step in range(5):
                hidden[:, step] = self.fc1(x[:, step]).relu_()
            return self.fc2(hidden)

    (group,) = find_neuron_groups(Fills(), torch.randn(2, 5, 3))
    assert group.members == (Member("fc1.weight"), Member("fc1.bias"), Member("fc2.weight", axis=1))


@pytest.mark.parametrize(("factor", "names"), [(1.0, ["fc1"]), (torch.nan, [])])
def test_a_finite_loss_is_the_function_of_a_model_that_returns_more(factor, names):
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, labels):
            hidden = self.fc1(x).relu()
            return {"loss": factor * nn.functional.cross_entropy(self.fc2(hidden), labels), "hidden": hidden}

    found = discover_neurons(Trained(), {"x": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])})
    assert [group.name for group in found.groups] == names


def test_model_without_exchangeable_units():
    found = discover_neurons(nn.Linear(3, 2), torch.randn(4, 3))
    assert found.groups == ()
    assert {axis.reason for axis in found.uncovered} == {"model input", "model output"}


def test_example_that_does_not_run_shows_the_reason():
    with pytest.raises(ValueError, match=r"does not run through Linear.forward \(RuntimeError: mat1.*pass example_i"):
        find_neuron_groups(nn.Linear(3, 2), torch.randn(4, 7))


def test_model_without_forward():
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match='is missing the required "forward" function'):
        find_neuron_groups(model, torch.zeros(3))


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"'0.weight' is lazy and has no shape yet; run one batch through"):
        find_neuron_groups(model, torch.randn(2, 3))
    model(torch.randn(2, 3))
    assert [group.name for group in find_neuron_groups(model, torch.randn(2, 3))] == ["0"]


def test_quantised_parameters():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.q = nn.Parameter(torch.randint(-9, 9, (4, 4), dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return self.fc3(self.fc2(self.fc1(x) @ self.q.to(x.dtype)).relu())

    found = discover_neurons(Quantised(), torch.randn(2, 3))
    assert [group.name for group in found.groups] == ["fc2"]
    assert UncoveredAxis("q", 0, "not a floating-point parameter") in found.uncovered
    assert UncoveredAxis("fc1.weight", 0, "not a floating-point parameter") in found.uncovered


def test_model_with_no_floating_point_parameter():
    model = nn.Module()
    model.q = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    for without in (model, nn.ReLU()):
        with pytest.raises(ValueError, match="has no floating-point parameter, so no neurons"):
            find_neuron_groups(without, torch.zeros(1, 3))


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("example", [torch.zeros(0, 3), torch.full((2, 3), torch.nan)])
def test_example_without_a_finite_output(example):
    with pytest.raises(ValueError, match=r"Sequential returned no finite number.*; pass an example_input \(not empty"):
        find_neuron_groups(mlp(), example)


def test_models_that_cannot_be_followed():
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got <function"):
        find_neuron_groups(lambda x: x, x)
    with pytest.raises(ValueError, match=r"'0.weight' is on the meta device and has no values; pass the model"):
        find_neuron_groups(mlp().to("meta"), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        compiled = torch.jit.trace(mlp(), x)
    with pytest.raises(ValueError, match=r"is compiled by torch.jit, .*; pass it uncompiled"):
        find_neuron_groups(nn.Sequential(compiled), x)


def test_model_that_cannot_be_copied():
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle this")

    with pytest.raises(ValueError, match="Stuck cannot be copied for a trial run: cannot pickle this"):
        find_neuron_groups(Stuck(3, 2), torch.zeros(1, 3))


def test_tensors_kept_from_training_do_not_stop_the_copy():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.last_output = model(torch.randn(2, 3))
    assert find_neuron_groups(model, torch.randn(2, 3))


def test_model_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))
    model[2].eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model.register_forward_pre_hook(lambda *_: seen.append(2))
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    example = torch.randn(2, 1, 8, 8)
    untouched = example.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    find_neuron_groups(model, example)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert [len(module._forward_hooks) for module in (model[0], model)] == [1, 0]
    assert torch.equal(example, untouched)
    assert seen == []
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_forward_that_writes_to_its_input():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(self.fc1(x.mul_(2)).relu())

    example = torch.ones(2, 3)
    assert [group.name for group in find_neuron_groups(Writes(), example)] == ["fc1"]
    assert torch.equal(example, torch.ones(2, 3))


def test_under_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        assert len(find_neuron_groups(model, torch.randn(2, 3))) == 1


def test_compiled_submodules_and_models():
    compiled = torch.compile(nn.Sequential(nn.ReLU(), nn.Linear(4, 5)), backend="eager")
    model = nn.Sequential(nn.Linear(3, 4), compiled, nn.ReLU(), nn.Linear(5, 2))
    groups = find_neuron_groups(model, torch.randn(2, 3))
    assert [group.name for group in groups] == ["0", "1.1"]
    assert groups[1].points(model).shape == (5, 7)
    whole = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), backend="eager")
    (group,) = find_neuron_groups(whole, torch.randn(2, 3))
    assert group.points(whole).shape == (4, 6)


class Compiled(pl.LightningModule):
    """Without a forward pass of its own; says what has been run on it."""

    def __init__(self, compile_parts):
        super().__init__()
        self.encoder, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.steps, self.modes = 0, []
        self.head_forward = self.head.forward
        if compile_parts:
            self.encode = torch.compile(self.encode, backend="eager")
            self.head_forward = torch.compile(self.head.forward, backend="eager")

    def encode(self, x):
        self.modes.append(self.training)
        return self.norm(self.encoder(x)).relu()

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.norm.eps_used = self.norm.eps
        loss = nn.functional.mse_loss(self.head_forward(self.encode(batch[0])), batch[1])
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("which", ["whole", "parts", "both"])
def test_functions_compiled_in_place_run_on_the_copy(which):
    model = Compiled(compile_parts=which != "whole")
    if which != "parts":
        model = from_compiled(torch.compile(model, backend="eager"))
    state, attributes = copy.deepcopy(model.state_dict()), dict(vars(model))
    batch = torch.randn(8, 3), torch.randn(8, 2)
    (group,) = find_neuron_groups(model, example_inputs_from_batch(model, batch))
    assert group.name == "encoder"
    assert {member.parameter for member in group.members} >= {"norm.weight", "head.weight"}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert vars(model).items() == attributes.items()
    assert (model.steps, model.modes, hasattr(model.norm, "eps_used")) == (0, [], False)
    assert all(module.training for module in model.modules())


@pytest.mark.gpu
def test_model_on_the_device():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).cuda()
    assert [group.name for group in find_neuron_groups(model, torch.randn(2, 3))] == ["0"]
