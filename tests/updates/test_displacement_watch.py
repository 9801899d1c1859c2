"""DisplacementWatch: what it predicts of updates that are known."""

import copy
import math

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.updates import displacement_watch
from lightning_topo.updates.displacement_watch import DisplacementWatch
from lightning_topo.updates.placement import Placement

from .test_update_meter import blocks


@pytest.fixture
def model():
    return blocks(3)


@pytest.fixture
def placement(model):
    return Placement(model, lt.find_neuron_groups(model, torch.randn(2, 6)))


def learnt(placement, kappa):
    """A watch after a window in which each parameter was displaced by 0.01 in each coordinate."""
    watch = DisplacementWatch(placement)
    before = [parameter.detach().clone() for parameter in placement.parameters]
    shift(placement.parameters, 0.01)
    watch.learn(before, torch.tensor(kappa))
    return watch


def shift(parameters, by):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by)


KAPPA = [0.1, 0.3, 0.2, 0.4]


@pytest.mark.parametrize("times", [0.0, 0.5, 3.0])
def test_an_update_in_proportion_is_predicted_in_proportion(placement, times):
    watch = learnt(placement, KAPPA)
    shift(placement.parameters, 0.01 * times)
    assert float(watch.predict()) == pytest.approx(times * math.hypot(*KAPPA), rel=1e-4, abs=1e-9)
    assert float(watch.predict()) == 0.0  # nothing since


def test_each_group_counts_by_its_own_parameters(model, placement):
    """Of parameters that one group alone has, displaced fourfold, the prediction is its own, by hand."""
    watch = learnt(placement, KAPPA)
    names = [group.name for alike in placement.alike for group in alike.groups]
    group = names.index("2.up")
    mine = [placement.parameters[slot] for slot in placement.slots_of("2.up")]
    others = [
        p for name in names if name != "2.up" for p in map(placement.parameters.__getitem__, placement.slots_of(name))
    ]
    alone = [p for p in mine if not any(p is other for other in others)]
    shift(alone, 0.04)
    length = math.sqrt(sum(p.numel() for p in alone)) * 0.04
    whole = math.sqrt(sum(p.numel() for p in mine)) * 0.01
    assert float(watch.predict()) == pytest.approx(KAPPA[group] * length / whole, rel=1e-3)


def test_large_parameters_are_watched_by_their_first_rows(monkeypatch, model, placement):
    monkeypatch.setattr(displacement_watch, "_WATCHED", 50)
    watch = learnt(placement, KAPPA)
    shift(placement.parameters, 0.02)
    assert float(watch.predict()) == pytest.approx(2 * math.hypot(*KAPPA), rel=1e-4)
    with torch.no_grad():
        model[1].up.weight[3:] += 1.0
    assert float(watch.predict()) == 0.0


def test_parameters_that_get_other_memory_are_followed(model, placement):
    watch = learnt(placement, KAPPA)
    for parameter in placement.parameters:
        parameter.data = parameter.data + 0.01
    assert float(watch.predict()) == pytest.approx(math.hypot(*KAPPA), rel=1e-4)


def test_nothing_is_predicted_before_a_window_was_measured(placement):
    assert DisplacementWatch(placement).predict() is None


def test_a_window_in_which_nothing_moved_predicts_nothing(placement):
    watch = DisplacementWatch(placement)
    watch.learn(
        [parameter.detach().clone() for parameter in placement.parameters], torch.tensor([0.0, math.nan, 0.0, 0.0])
    )
    shift(placement.parameters, 0.01)
    assert float(watch.predict()) == 0.0


def test_goes_on_from_its_state(model, placement):
    watch = learnt(placement, KAPPA)
    other = DisplacementWatch(placement)
    other.load(copy.deepcopy(watch.state()))
    shift(placement.parameters, 0.003)
    assert float(watch.predict()) == float(other.predict())
    fresh = DisplacementWatch(placement)
    fresh.load(DisplacementWatch(placement).state())
    assert fresh.predict() is None


def test_scalars_and_parameters_without_numbers(placement):
    model = nn.Module()
    model.scale, model.none = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0, 3))
    placement.parameters.extend([model.scale, model.none])
    watch = learnt(placement, KAPPA)
    shift(placement.parameters, 0.01)
    assert float(watch.predict()) == pytest.approx(math.hypot(*KAPPA), rel=1e-4)
