import math

import pytest
import torch
from torch import nn

from lightning_topo.finder._trial_meter import TrialMeter
from lightning_topo.functional import near_bound
from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import Member, NeuronGroup
from lightning_topo.updates import bound_watch

GROUP = NeuronGroup("0", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))


class Lab:
    """A hidden layer, its meter, and updates made by hand."""

    def __init__(self, n=60, dtype=torch.float32):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(12, n), nn.Tanh(), nn.Linear(n, 7)).to(dtype)
        self.meter = TrialMeter(torch.optim.SGD(self.model.parameters(), lr=1.0), self.model, [GROUP])

    @torch.no_grad()
    def put(self, points):
        first, bias, second = points.split([12, 1, 7], dim=1)
        for parameter, value in zip(self.model[0].parameters(), (first, bias[:, 0]), strict=True):
            parameter.copy_(value)
        self.model[2].weight.copy_(second.T)

    def update(self, before, after):
        """True κ of the map that was really made, and the meter's."""
        self.put(before)
        self.meter.before()
        before = GROUP.points(self.model)
        self.put(after)
        return bi_lipschitz(before, GROUP.points(self.model)).criticality, self.meter.after()[0]


@pytest.fixture
def screened(monkeypatch):
    """Every cloud is screened, and hardly a neuron is evaluated before that."""
    monkeypatch.setattr(near_bound, "_ALWAYS_EXACT", 0)
    monkeypatch.setattr(bound_watch, "_ALWAYS_WHOLE", 0)
    for room in (near_bound, bound_watch):
        monkeypatch.setattr(room, "_FASTEST", 4)
    monkeypatch.setattr(near_bound, "_MAX_ROWS", 16)


CLOUDS = {
    "even": lambda: torch.randn(60, 20),
    "one coordinate": lambda: torch.cat([1e-3 * torch.randn(60, 19), 3 * torch.randn(60, 1)], dim=1),
    "line": lambda: torch.arange(60.0)[:, None] / 30 + 1e-2 * torch.randn(60, 20),
    "pairs": lambda: torch.randn(30, 20).repeat(2, 1) + 0.05 * torch.randn(60, 20),
    "far away": lambda: torch.randn(60, 20) + 30,
}


@pytest.mark.usefixtures("screened")
@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("few", "pair_cost"), [(0, 0.5), (64, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_screening_decides_exactly_and_never_overstates(monkeypatch, cloud, few, pair_cost, dtype):
    monkeypatch.setattr(near_bound, "_FEW", few)
    monkeypatch.setattr(near_bound, "_PAIR_COST", pair_cost)
    lab, decisions = Lab(dtype=dtype), set()
    for power in (1, 4):  # of even speeds, and of some that are much faster than the rest
        for scale in torch.logspace(-3, 1, 25):
            before = CLOUDS[cloud]()
            after = before + scale * torch.rand(60, 1) ** power * torch.randn(60, 20)
            true, seen = lab.update(before, after)
            if math.isnan(true):  # nothing that rounding leaves
                assert seen == 0
                continue
            assert (seen >= 1) == (true >= 1)
            assert 0 <= seen <= true * (1 + 1e-9)
            decisions.add(true >= 1)
    assert decisions == {False, True}


@pytest.mark.usefixtures("screened")
def test_the_one_pair_that_breaks_is_found_among_slow_neurons():
    """Two close neurons that swap, far slower than the others, which all move alike."""
    lab, before = Lab(), CLOUDS["even"]()
    before[7] = before[31] + 1e-3
    after = before + 0.05 * torch.randn(60, 1) @ torch.randn(1, 20)
    after[[7, 31]] = before[[31, 7]]
    true, seen = lab.update(before, after)
    assert seen == pytest.approx(true)
    assert seen == pytest.approx(2, rel=1e-3)


@pytest.mark.usefixtures("screened")
def test_neurons_that_stay(monkeypatch):
    lab, before = Lab(), CLOUDS["even"]()
    before[:30] = 0.0  # alike
    assert lab.update(before, before) == (0.0, 0.0)


def test_small_clouds_are_exact():
    lab, before = Lab(), CLOUDS["even"]()
    true, seen = lab.update(before, before + 0.01 * torch.randn(60, 20))
    assert seen == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_infinite(value):
    lab = Lab()
    lab.meter.before()
    with torch.no_grad():
        lab.model[2].weight[3, 2] = value
    assert lab.meter.after()[0] == math.inf


def test_divergence_outside_the_neurons_is_infinite():
    model = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 7))
    meter = TrialMeter(torch.optim.SGD(model.parameters(), lr=1.0), model, [GROUP])
    meter.before()
    with torch.no_grad():
        model[2].bias[3] = math.nan
    assert meter.after() == (math.inf, None)


def test_a_state_that_is_put_back_between_trials():
    """The way since the first distances is not that of the updates alone."""
    lab, start = Lab(), CLOUDS["even"]()
    for scale in (0.3, 3.0, 1e-3, 0.5):
        for _ in range(4):
            true, seen = lab.update(start, start + scale * torch.randn(60, 20))
            assert seen == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("n", [1, 60])
def test_one_neuron_or_none_that_moved(n):
    lab = Lab(n=n)
    lab.meter.before()
    if n == 1:
        lab.put(torch.ones(1, 20))
    assert lab.meter.after()[0] == 0.0
