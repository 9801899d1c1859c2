"""UpdateMeter: what it compares of updates, whole groups and drawn samples, against the functions of two clouds."""

import math

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.functional import bi_lipschitz
from lightning_topo.updates import UpdateMeter
from lightning_topo.updates.drawn_sample import DrawnSample
from lightning_topo.updates.placement import Placement

GROUP = lt.NeuronGroup("0", (lt.Member("0.weight"), lt.Member("0.bias"), lt.Member("2.weight", axis=1)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 60), nn.Tanh(), nn.Linear(60, 2))


def move(model, seed, size=0.01):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def measured(meter, model, groups, seed=0, **options):
    """What the meter says of an update, and the groups' clouds before and after it."""
    before = {group.name: group.points(model) for group in groups}
    meter.before(meter.sets)
    move(model, seed, **options)
    found = {group.name: constants for group, constants in meter.after().constants()}
    return found, before, {group.name: group.points(model) for group in groups}


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def blocks(depth, width=24):
    """Residual blocks that are all alike, between layers that are not."""
    torch.manual_seed(1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 40), nn.Linear(40, width)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x)).relu())

    return nn.Sequential(nn.Linear(6, width), *(Block() for _ in range(depth)), nn.Linear(width, 3))


@pytest.mark.parametrize("size", [None, 30, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_group_of_a_network(size, dtype):
    """Groups that are alike are measured together; each is as if it were alone."""
    model = blocks(4)
    groups = lt.find_neuron_groups(model, torch.randn(2, 6))
    assert len(groups) == 5
    model.to(dtype)
    meter = UpdateMeter(sgd(model), model, groups, size)
    assert len(meter.sets) == 2
    found, before, after = measured(meter, model, groups)
    for group in groups:
        eps = torch.finfo(dtype).eps
        expected = bi_lipschitz(before[group.name], after[group.name], eps)
        got = found[group.name]
        assert got.criticality <= expected.criticality * (1 + 1e-6)
        assert got.criticality == pytest.approx(expected.criticality, rel=1e-6 if size in (None, 100) else 0.3)
        if size in (None, 100):
            assert (got.lower, got.upper) == pytest.approx((expected.lower, expected.upper), rel=1e-6)
            assert got.n_unresolved == expected.n_unresolved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_estimates_are_of_the_neurons_that_moved_farthest(dtype):
    model = blocks(4)
    groups = lt.find_neuron_groups(model, torch.randn(2, 6))
    model.to(dtype)
    meter = UpdateMeter(sgd(model), model, groups, 10, estimates=True)
    before = {group.name: group.points(model) for group in groups}
    meter.before(meter.sets)
    move(model, 0)
    with torch.no_grad():
        model[2].up.bias[7] += 1.0  # one neuron far more than the others
    found = {one.groups[i].name: row for one, row, i in rows_by_group(meter)}
    for group in groups:
        p, q = before[group.name].float(), group.points(model).float()
        u = q - p
        chosen = torch.linalg.vector_norm(u - u.mean(0), dim=1).topk(10).indices
        expected = bi_lipschitz(p[chosen], q[chosen], torch.finfo(dtype).eps).criticality
        assert found[group.name] == pytest.approx(expected, rel=1e-3)


def rows_by_group(meter):
    measurement = meter.after()
    values = measurement.criticalities()
    for one in measurement._compared:
        for i in range(len(one.groups)):
            yield one, next(values)[0], i


def test_tied_parameters_and_slices_of_a_packed_one():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
            self.tied = nn.Linear(8, 24)
            self.tied.weight = self.qkv.weight

    torch.manual_seed(0)
    model = Packed()
    groups = [
        lt.NeuronGroup(
            "k", (lt.Member("qkv.weight", 0, offset=8, size=8), lt.Member("tied.weight", 0, offset=8, size=8))
        ),
        lt.NeuronGroup("gates", (lt.Member("qkv.weight", 0, outer=3), lt.Member("qkv.bias", 0, outer=3))),
        lt.NeuronGroup("inner", (lt.Member("qkv.bias", 0, inner=3), lt.Member("out.weight", -1))),
    ]
    found, before, after = measured(UpdateMeter(sgd(model), model, groups, None), model, groups)
    for name, constants in found.items():
        assert constants.criticality == pytest.approx(bi_lipschitz(before[name], after[name]).criticality, rel=1e-6)


def test_operations_do_not_grow_with_the_depth():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    def operations(depth):
        model = blocks(depth)
        groups = lt.find_neuron_groups(model, torch.randn(2, 6))
        meter = UpdateMeter(sgd(model), model, groups, 16)
        meter.before(meter.sets)  # makes room for the copies
        with Count() as count:
            meter.before(meter.sets)
            meter.after()
        return len(groups), count.n

    (few, shallow), (many, deep) = operations(3), operations(12)
    assert (few, many) == (4, 13)
    assert shallow == deep


def test_nothing_is_read_back_within_the_step():
    """Under fake tensors whatever depends on a number raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = blocks(2)
    groups = lt.find_neuron_groups(model, torch.randn(2, 6))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with mode:
            fake = blocks(2)
        meter = UpdateMeter(sgd(fake), fake, groups, 16)
        meter.before(meter.sets)
        meter.after()


def test_a_group_spread_over_two_devices_is_put_together_on_one(monkeypatch):
    """What lies elsewhere is brought to the device of the group's first coordinates; "meta" is the second one here."""
    brought = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *args, **kw: brought.append(x.shape) or to(x, *args, **kw))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    (group,) = lt.find_neuron_groups(model, torch.randn(2, 6))
    model[2].to("meta")
    placement = Placement(model, [group])
    (one,) = placement.alike
    assert {layout.device.type for layout, _ in one.parts} == {"cpu", "meta"}
    brought.clear()
    clouds = one.clouds(placement.parameters)
    assert (clouds.device, clouds.shape) == (torch.device("meta"), (1, 8, 6 + 1 + 4))
    assert sorted(brought) == [(1, 8, 1), (1, 8, 6)]  # the first layer's biases and weights
    assert placement.holds
    model[2].to_empty(device="cpu")
    assert not placement.holds  # so that it is found again


def test_only_what_the_optimizer_moves_is_measured(model):
    groups = [GROUP, lt.NeuronGroup("out", (lt.Member("2.bias"),))]
    optimizer = torch.optim.SGD([model[2].bias], lr=0.3)
    meter = UpdateMeter(optimizer, model, groups, None)
    assert [group.name for one in meter.sets for group in one.groups] == ["out"]
    optimizer.add_param_group({"params": [model[0].weight], "lr": 0.7})
    assert meter.refresh()
    assert [group.name for one in meter.sets for group in one.groups] == ["0", "out"]
    rates = meter.learning_rates(meter.sets)
    assert {name: float(rate) for name, rate in rates.items()} == {"0": 0.7, "out": 0.3}
    assert not meter.refresh()


def test_rates_are_those_before_the_step(model):
    rate = torch.tensor(0.5)
    meter = UpdateMeter(torch.optim.Adam(model.parameters(), lr=rate), model, [GROUP], None)
    rates = meter.learning_rates(meter.sets)
    rate.fill_(0.1)
    assert float(rates["0"]) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_groups_that_are_not_finite(value):
    model = blocks(2)
    groups = lt.find_neuron_groups(model, torch.randn(2, 6))
    meter = UpdateMeter(sgd(model), model, groups, None)
    meter.before(meter.sets)
    move(model, 0)
    with torch.no_grad():
        model[1].up.bias[3] = value
    found = {group.name: constants for group, constants in meter.after().constants()}
    assert [name for name, constants in found.items() if constants is None] == ["1.up"]


@pytest.mark.parametrize("change", ["object", "shape", "device memory"])
def test_parameters_that_are_exchanged_are_found_again(model, change):
    meter = UpdateMeter(sgd(model), model, [GROUP], None)
    assert not meter.refresh()
    if change == "object":
        model[0].weight = nn.Parameter(torch.randn(60, 5))
    elif change == "shape":
        model[0], model[2] = nn.Linear(5, 70), nn.Linear(70, 2)
    else:
        model.double()
    meter = meter if change == "device memory" else UpdateMeter(sgd(model), model, [GROUP], None)
    if change == "device memory":
        assert meter.refresh()
    found, before, after = measured(meter, model, [GROUP])
    assert found["0"].criticality == pytest.approx(bi_lipschitz(before["0"], after["0"]).criticality, rel=1e-6)


def test_a_group_that_is_gone_is_an_error(model):
    meter = UpdateMeter(sgd(model), model, [GROUP], None)
    torch.nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"no parameter or buffer '0\.weight'"):
        meter.refresh()


def rows_of(points, cloud):
    return [cloud.tolist().index(row) for row in points.tolist()]


def test_drawn_before_the_update_the_sample_keeps_the_pair_that_decided(model):
    sample = DrawnSample(GROUP, model, 8)
    before = sample.before()
    assert before.shape == (8, 8)
    move(model, 0)
    after = sample.after()
    sample.remember(before, after)
    decisive = rows_of(after[list(bi_lipschitz(before, after).pair)], GROUP.points(model))
    again = rows_of(sample.before(), GROUP.points(model))
    assert len(set(again)) == 8
    assert set(decisive) <= set(again)


def test_a_drawn_sample_sees_every_neuron_in_time(model):
    sample, seen = DrawnSample(GROUP, model, 8), set()
    for seed in range(100):
        everything, before = GROUP.points(model), sample.before()
        move(model, seed)
        sample.remember(before, sample.after())
        seen |= set(rows_of(before, everything))
    assert seen == set(range(60))


def test_drawing_leaves_the_random_state(model):
    state = torch.get_rng_state()
    DrawnSample(GROUP, model, 8).before()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "drawn"), [(10, True), (None, False), (60, False)])
def test_groups_too_large_to_be_kept_are_drawn(model, monkeypatch, size, drawn):
    monkeypatch.setattr("lightning_topo.updates.update_meter.MOST_KEPT", 60 * 8 - 1)
    meter = UpdateMeter(sgd(model), model, [GROUP], size)
    assert [isinstance(one, DrawnSample) for one in meter.sets] == [drawn]
    found, before, after = measured(meter, model, [GROUP])
    assert 0 < found["0"].criticality <= bi_lipschitz(before["0"], after["0"]).criticality * (1 + 1e-9)
