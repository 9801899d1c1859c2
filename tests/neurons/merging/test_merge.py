"""Merging on whole models: the function stays, the layers say their sizes, and a model that cannot be merged stays."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import lightning_topo as lt

from ..conftest import Net


def perceptron(width=6):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


@torch.no_grad()
def clone(unit, of, *made, size=None):
    """Give a unit the incoming weights of another one: along axis 0 of each tensor, in every block of ``size``."""
    for tensor in made:
        rows = tensor.view(-1, size or len(tensor), *tensor.shape[1:])
        rows[:, unit] = rows[:, of]


def state(model):
    """Everything that a merge may touch, with the objects that hold it."""
    tensors = {name: (id(t), t.detach().clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    sizes = {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, bool, tuple)
    }
    return tensors, sizes, [parameter.grad for parameter in model.parameters()]


def unchanged(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (identity, values) in before[0].items():
        assert after[0][name][0] == identity
        assert torch.equal(after[0][name][1], values)


@torch.no_grad()
def outputs(model, x):
    return copy.deepcopy(model).double().eval()(x.double() if x.is_floating_point() else x)


def test_three_clones_of_a_perceptron_by_hand():
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    clone(2, 0, model[0].weight, model[0].bias)
    clone(5, 0, model[0].weight, model[0].bias)
    w1, b1, w2 = (t.detach().clone() for t in (model[0].weight, model[0].bias, model[2].weight))
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    assert torch.equal(model[0].weight, w1[[0, 1, 3, 4]])
    assert torch.equal(model[0].bias, b1[[0, 1, 3, 4]])
    torch.testing.assert_close(model[2].weight.detach()[:, 0], w2[:, [0, 2, 5]].double().sum(1).float(), rtol=0, atol=0)
    assert torch.equal(model[2].weight[:, 1:], w2[:, [1, 3, 4]])
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (4, 4, 2)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)
    (group,) = report.groups
    assert (group.name, group.units_before, group.units_after, group.distance, group.refused) == ("0", 6, 4, 0.0, None)
    assert (report.parameters_before, report.parameters_after) == (38, 26)
    assert report.largest_change == pytest.approx(float((outputs(model, x) - before).abs().max()), abs=1e-12)
    assert report.largest_output == pytest.approx(float(before.abs().max()))
    assert "0: 6 units -> 4" in str(report)
    assert "optimizers" in str(report)


def test_the_smaller_model_trains():
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    model[0].bias.requires_grad_(False)
    clone(2, 0, model[0].weight, model[0].bias)
    lt.merge_neurons(model, example_input=x)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(x).square().mean()
    before.backward()
    optimizer.step()
    assert model(x).square().mean() < before


def test_nothing_to_merge_leaves_every_object_as_it_was():
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    model(x).sum().backward()
    before = state(model)
    report = lt.merge_neurons(model, example_input=x)
    unchanged(before, state(model))
    assert report.groups[0].units_after == 6
    assert report.largest_change == 0.0
    assert report.parameters_before == report.parameters_after == 38
    assert "no two units coincide" in str(report)


@pytest.mark.parametrize("seed", range(4))
def test_with_a_tolerance_the_change_is_bounded(seed):
    """Of a ReLU perceptron: at most the sum over units that went of |outgoing| |difference of incoming| |(x, 1)|."""
    torch.manual_seed(seed)
    model, x = perceptron(40), torch.randn(50, 3)
    with torch.no_grad():
        model[0].weight[20:] = model[0].weight[:20] + 0.004 * torch.randn(20, 3)
        model[0].bias[20:] = model[0].bias[:20] + 0.004 * torch.randn(20)
    points = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().double()
    w2 = model[2].weight.detach().double()
    scale = points.square().sum(1).mean().sqrt()
    assert lt.merge_neurons(copy.deepcopy(model), example_input=x).groups[0].units_after == 40
    small = copy.deepcopy(model)
    report = lt.merge_neurons(small, example_input=x, tolerance=0.05)
    assert report.groups[0].units_after <= 20
    assert 0 < report.groups[0].distance <= 0.05 * scale
    size = torch.cat([x, torch.ones(50, 1)], 1).double().norm(dim=1).max()
    bound = w2.norm(dim=0).sum() * report.groups[0].distance * size
    assert 0 < report.largest_change <= bound
    assert report.largest_change == pytest.approx(float((outputs(small, x) - outputs(model, x)).abs().max()), rel=1e-9)


def test_a_tolerance_that_would_merge_all_is_refused_and_the_model_is_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    clone(2, 0, model[0].weight, model[0].bias)
    with torch.no_grad():
        model[2].weight.copy_(1.0 + 1e-3 * torch.randn(4, 5))
        model[2].bias.fill_(0.0)
    before = state(model)
    with pytest.raises(ValueError, match="all 4 units of '2' would become one; choose a smaller"):
        lt.merge_neurons(model, example_input=torch.randn(5, 3), tolerance=0.1)
    unchanged(before, state(model))


def test_units_that_are_all_exact_clones_become_one():
    model, x = perceptron(), torch.randn(5, 3)
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    before = outputs(model, x)
    assert lt.merge_neurons(model, example_input=x).groups[0].units_after == 1
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, "0.1", True, None])
def test_tolerances_that_say_nothing(tolerance):
    with pytest.raises(ValueError, match="expected a tolerance of 0 or more"):
        lt.merge_neurons(perceptron(), example_input=torch.randn(5, 3), tolerance=tolerance)


def test_a_group_given_by_hand():
    """Its roles are read off the forward pass as those of a group that was found."""
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    clone(2, 0, model[0].weight, model[0].bias)
    clone(5, 4, model[0].weight, model[0].bias)
    members = (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
    half = lt.NeuronGroup("half", tuple(lt.Member(name, axis, size=3) for name, axis in members))
    before = outputs(model, x)
    report = lt.merge_neurons(model, [half], x)
    assert [(group.name, group.units_after) for group in report.groups] == [("half", 2)]
    assert model[0].out_features == 5
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)


def test_a_wrong_group_given_by_hand():
    wrong = lt.NeuronGroup("wrong", (lt.Member("0.weight"), lt.Member("0.bias")))
    with pytest.raises(ValueError, match="changes the output"):
        lt.merge_neurons(perceptron(), [wrong], torch.randn(5, 3))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((("0.wieght", 0), ("2.weight", 1)), "no parameter or buffer '0.wieght'; near names: 0.weight"),
        ((("0.weight", 1), ("2.weight", 1)), "disagree on the number of units"),
        ((("0.weight", 0), ("2.weight", 1)), "changes the output"),
    ],
)
def test_groups_given_by_hand_that_do_not_fit(members, message):
    torch.manual_seed(0)
    model = perceptron()
    before = state(model)
    group = lt.NeuronGroup("mine", tuple(lt.Member(name, axis) for name, axis in members))
    with pytest.raises(ValueError, match=message):
        lt.merge_neurons(model, [group], torch.randn(5, 3))
    unchanged(before, state(model))


def test_units_that_two_groups_given_by_hand_share_become_one_once():
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    clone(2, 0, model[0].weight, model[0].bias)
    members = tuple(lt.Member(name, axis) for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)))
    before = outputs(model, x)
    report = lt.merge_neurons(model, [lt.NeuronGroup("one", members), lt.NeuronGroup("other", members)], x)
    assert [group.units_after for group in report.groups] == [5, 6]
    assert "units of one that became one lay in some of its units only" in report.groups[1].refused
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)


def test_units_that_coincide_and_are_refused_are_not_said_to_differ():
    """Layer norm takes statistics over the units, so that those that are alike cannot become one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    clone(2, 0, model[0].weight, model[0].bias)
    said = str(lt.merge_neurons(model, example_input=torch.randn(5, 3)))
    assert "nothing was merged, so the model is as it was" in said
    assert "0: not merged, because" in said


def test_only_the_groups_that_are_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    clone(2, 0, model[0].weight, model[0].bias)
    clone(2, 0, model[2].weight, model[2].bias)
    lt.merge_neurons(model, "2", torch.randn(5, 3))
    assert [module.out_features for module in model[::2]] == [5, 3, 2]


def test_units_that_coincide_once_those_before_them_have_merged():
    """The second layer reads two clones of the first by other weights, but the same sums."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 3)
    clone(1, 0, model[0].weight, model[0].bias)
    clone(2, 1, model[2].weight, model[2].bias)
    with torch.no_grad():
        model[2].weight[1, :2] = torch.tensor([0.25, 0.5])
        model[2].weight[2, :2] = torch.tensor([0.5, 0.25])
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    assert [group.units_after for group in report.groups] == [3, 2]
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_units_that_differ_only_in_which_of_them_they_read(kind):
    """Two units that have merged in training: each reads itself as the other reads itself."""
    torch.manual_seed(0)
    model = Net(lambda net, x: net.out(net.rnn(x)[0][:, -1]), rnn=kind(3, 5, batch_first=True), out=nn.Linear(5, 2))
    rnn, x = model.rnn, torch.randn(4, 6, 3)
    clone(4, 1, rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0, size=5)
    with torch.no_grad():
        own = rnn.weight_hh_l0.view(-1, 5, 5)
        own[:, 4, 1], own[:, 4, 4] = own[:, 1, 4].clone(), own[:, 1, 1].clone()
    assert not torch.equal(rnn.weight_hh_l0[1], rnn.weight_hh_l0[4])
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    assert report.groups[0].units_after == 4
    assert (rnn.hidden_size, rnn.input_size, model.out.in_features) == (4, 3, 4)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)
    assert model(x).shape == (4, 2)  # its list of flat weights holds the new ones


def convolutional():
    """A convolution, a depthwise one with BatchNorm, one with PReLU, a transposed one, and a flattened head."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1), nn.PReLU(4), nn.ConvTranspose2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 25, 2),
    )  # fmt: skip


def test_sizes_of_convolutions_and_norms():
    torch.manual_seed(0)
    model, x = convolutional(), torch.randn(2, 3, 4, 4)
    model(torch.randn(8, 3, 4, 4))  # running statistics of their own
    clone(5, 2, model[0].weight, model[0].bias, model[3].weight, model[3].bias)
    for norm in (model[1], model[4]):
        clone(5, 2, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    clone(3, 0, model[5].weight, model[5].bias, model[6].weight)
    clone(4, 0, model[7].weight.transpose(0, 1), model[7].bias)
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    assert [(group.units_before, group.units_after) for group in report.groups] == [(6, 5), (4, 3), (5, 4)]
    sizes = [(m.in_channels, m.out_channels, m.groups) for m in model if hasattr(m, "groups")]
    assert sizes == [(3, 5, 1), (5, 5, 5), (5, 3, 1), (3, 4, 1)]
    assert [m.num_features for m in model if isinstance(m, nn.BatchNorm2d)] == [5, 5]
    assert (model[6].num_parameters, model[-1].in_features) == (3, 4 * 25)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)
    model.train()(torch.randn(4, 3, 4, 4)).sum().backward()


def test_a_norm_without_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 6, 6)
    clone(5, 2, model[0].weight, model[0].bias)
    before = outputs(model, x)
    lt.merge_neurons(model, example_input=x)
    assert model[1].num_features == 5
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)  # a wrong size would be a warning


def test_whole_groups_of_channels():
    """A block of GroupNorm and of a grouped convolution can become one, a channel of GroupNorm cannot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 9, 1, groups=3), nn.ReLU(),
                          nn.Conv2d(9, 2, 1))  # fmt: skip
    x = torch.randn(2, 2, 4, 4)
    tensors = (model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[3].weight, model[3].bias)
    with torch.no_grad():
        for tensor in tensors:
            blocks = tensor.view(3, len(tensor) // 3, *tensor.shape[1:])
            blocks[2] = blocks[0]
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    assert "statistics" in {group.name: group for group in report.groups}["0"].refused
    assert (model[1].num_groups, model[1].num_channels) == (2, 4)
    assert (model[3].groups, model[3].in_channels, model[3].out_channels, model[5].in_channels) == (2, 4, 6, 6)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


def test_a_gated_pair_and_the_sizes_of_modules_of_ones_own():
    class Gated(nn.Module):
        def __init__(self, width, hidden):
            super().__init__()
            self.width, self.hidden_size = width, hidden
            self.both, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

        def forward(self, x):
            gate, up = self.both(x).split(self.hidden_size, -1)
            return self.down(functional.silu(gate) * up)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), Gated(4, 6), nn.Linear(4, 2)), torch.randn(5, 3)
    clone(5, 1, model[1].both.weight, model[1].both.bias, size=6)
    before = outputs(model, x)
    lt.merge_neurons(model, example_input=x)
    assert (model[1].hidden_size, model[1].width) == (5, 4)
    assert (model[1].both.out_features, model[1].down.in_features) == (10, 5)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


class Attention(nn.Module):
    """Packed queries, keys and values, with the number of heads and their width as attributes."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, width // n_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, self.n_heads * self.head_dim))


def test_heads_of_a_packed_projection():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 12), Attention(12, 3), nn.Linear(12, 2)), torch.randn(2, 5, 3)
    with torch.no_grad():
        for tensor in (model[1].qkv.weight, model[1].qkv.bias):
            parts = tensor.view(3, 3, 4, -1)
            parts[:, 2] = parts[:, 0]
    before = outputs(model, x)
    report = lt.merge_neurons(model, example_input=x)
    named = {group.name.rpartition(".")[2]: group for group in report.groups}
    assert named["heads"].units_after == 2
    assert "multiplies its units with each other" in named["keys"].refused
    assert (model[1].n_heads, model[1].head_dim, model[1].qkv.out_features, model[1].out.in_features) == (2, 4, 24, 8)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


def residual(norm):
    def forward(net, x):
        x = net.first(x)
        x = x + net.down(net.up(net.norm(x)).relu())
        return net.out(net.norm(x))

    layers = {"first": nn.Linear(3, 8), "up": nn.Linear(8, 5), "down": nn.Linear(5, 8), "out": nn.Linear(8, 2)}
    return Net(forward, norm=norm, **layers)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [(nn.Identity(), None), (nn.BatchNorm1d(8), None), (nn.LayerNorm(8), "layer_norm takes statistics over its units")],
)
def test_a_residual_stream(norm, reason):
    torch.manual_seed(0)
    model, x = residual(norm), torch.randn(5, 3)
    clone(7, 2, model.first.weight, model.first.bias, model.down.weight, model.down.bias)
    before, was = outputs(model, x), state(model)
    stream = next(group for group in lt.merge_neurons(model, example_input=x).groups if group.units_before == 8)
    assert stream.units_after == (8 if reason else 7)
    assert reason is None or reason in stream.refused
    if reason:
        unchanged(was, state(model))
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


def test_what_does_not_run_with_fewer_units_is_as_it_was():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.out(net.first(x).view(-1, 6).tanh()), first=nn.Linear(3, 6), out=nn.Linear(6, 2))
    clone(5, 0, model.first.weight, model.first.bias)
    before = state(model)
    (group,) = lt.merge_neurons(model, example_input=torch.randn(5, 3)).groups
    unchanged(before, state(model))
    assert group.units_after == 6
    assert "does not run with fewer units (RuntimeError" in group.refused


def test_what_computes_something_else_with_fewer_units_is_as_it_was():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.out(net.first(x).tanh()) / len(net.first.bias), first=nn.Linear(3, 6),
                out=nn.Linear(6, 2))  # fmt: skip
    clone(5, 0, model.first.weight, model.first.bias)
    before = state(model)
    (group,) = lt.merge_neurons(model, example_input=torch.randn(5, 3)).groups
    unchanged(before, state(model))
    assert group.refused == "the output is another one with fewer units"


def test_a_silent_unit_is_tried_too():
    """The clones answer to no item of the example, so only the trial with other weights can see a wrong merge."""
    torch.manual_seed(0)
    model = Net(lambda net, x: net.out(net.first(x).relu().square().sum(-1, keepdim=True) * net.scale),
                first=nn.Linear(3, 6), out=nn.Linear(1, 2), scale=nn.Parameter(torch.ones(1)))  # fmt: skip
    clone(5, 0, model.first.weight, model.first.bias)
    with torch.no_grad():
        model.first.bias[[0, 5]] = -100.0
    x = torch.randn(5, 3)
    (group,) = lt.merge_neurons(model, example_input=x).groups
    assert group.refused is not None


def test_modules_that_are_one_stay_one():
    shared = nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    torch.manual_seed(0)
    clone(4, 1, model[0].weight, model[0].bias, shared.weight, shared.bias)
    before = outputs(model, x)
    assert lt.merge_neurons(model, example_input=x).groups[0].units_after == 4
    assert model[2] is model[4]
    assert (shared.in_features, shared.out_features) == (4, 4)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


def test_a_parameter_of_two_modules_stays_one():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(3, 5), "c": nn.Linear(5, 2)})
    model["b"].weight = model["a"].weight
    net = Net(lambda net, x: net.m["c"](net.m["a"](x).relu() + net.m["b"](-x).relu()), m=model)
    x = torch.randn(4, 3)
    clone(4, 1, model["a"].weight, model["a"].bias, model["b"].bias)
    before = outputs(net, x)
    assert lt.merge_neurons(net, example_input=x).groups[0].units_after == 4
    assert model["a"].weight is model["b"].weight
    assert (model["a"].out_features, model["b"].out_features) == (4, 4)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-5, atol=1e-6)


def test_tied_weights_that_make_and_read_are_refused():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.embed(x) @ net.embed.weight.T, embed=nn.Embedding(7, 4))
    clone(3, 0, model.embed.weight.T)
    (group,) = lt.merge_neurons(model, example_input=torch.randint(7, (2, 3))).groups
    assert "along one axis, as tied weights do" in group.refused


def test_parametrised_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2))
    x, parts = torch.randn(4, 3), model[0].parametrizations.weight
    clone(4, 1, parts.original0, parts.original1, model[0].bias)
    before = outputs(model, x)
    assert lt.merge_neurons(model, example_input=x).groups[0].units_after == 4
    assert model[0].out_features == 4
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-5, atol=1e-6)


def test_it_leaves_no_trace():
    torch.manual_seed(0)
    model, x = perceptron().train(), torch.randn(5, 3)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    clone(2, 0, model[0].weight, model[0].bias)
    before = torch.get_rng_state()
    lt.merge_neurons(model, example_input=x)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not calls
    assert len(model._forward_hooks) == 1
    assert torch.is_grad_enabled()


def test_marks_on_parameters_are_kept():
    model, x = perceptron(), torch.randn(5, 3)
    model[0].weight.no_decay = True
    clone(2, 0, model[0].weight, model[0].bias)
    lt.merge_neurons(model, example_input=x)
    assert model[0].weight.no_decay


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model, x = perceptron().to(dtype), torch.randn(5, 3, dtype=dtype)
    clone(2, 0, model[0].weight, model[0].bias)
    report = lt.merge_neurons(model, example_input=x)
    assert report.groups[0].units_after == 5
    assert model[0].weight.dtype == dtype
    assert report.largest_change <= 2 * torch.finfo(dtype).eps * report.largest_output


def test_under_inference_mode():
    model, x = perceptron(), torch.randn(5, 3)
    clone(2, 0, model[0].weight, model[0].bias)
    with torch.inference_mode():
        lt.merge_neurons(model, example_input=x)
    model(x).sum().backward()
    assert model[0].weight.grad.shape == (5, 3)


def test_when_the_output_changes_all_the_same_the_model_is_as_it_was(monkeypatch):
    """The last check runs the model itself; here it is made to see another output."""
    from lightning_topo.neurons.merging import merge

    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(5, 3)
    clone(2, 0, model[0].weight, model[0].bias)
    before = state(model)
    seen = iter([[torch.zeros(2)], [torch.ones(2)]])
    monkeypatch.setattr(merge._Merger, "_outputs", lambda self: next(seen))
    with pytest.raises(RuntimeError, match="the model is as it was"):
        lt.merge_neurons(model, example_input=x)
    unchanged(before, state(model))
