"""Measurements of recorded work, on the CPU: a stand-in keeps its results in one place as a CUDA graph does."""

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.clipping import StepClipper
from lightning_topo.updates import UpdateMeter
from lightning_topo.updates.recorded_work import Recordings


@pytest.fixture
def replayed(monkeypatch):
    """The work is done each time, and its results are where those of the first time were."""
    first = {}

    def results(self, sets, work):
        found = {}
        for one in sets:
            found[one] = first.setdefault((self, one), work(one))
            for kept, new in zip(found[one], work(one), strict=True):
                kept.copy_(new)
        return found

    monkeypatch.setattr(Recordings, "results", results)
    return first


def measurements(estimates, updates=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))
    groups = lt.find_neuron_groups(model, torch.randn(2, 5))
    meter = UpdateMeter(torch.optim.SGD(model.parameters(), 0.1), model, groups, 16, estimates=estimates)
    made = []
    for seed in range(updates):
        meter.before(meter.sets)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        made.append(meter.after())
    return made


@pytest.mark.parametrize("estimates", [False, True])
def test_measurements_that_are_read_after_later_ones(estimates, replayed, monkeypatch):
    found = measurements(estimates)
    assert replayed
    # Every constant in double precision, so that the neurons themselves must still be there.
    monkeypatch.setattr("lightning_topo.functional.update_constants._is_certain", lambda row: False)
    rows = [list(measurement.rows()) for measurement in found]
    exact = None if estimates else [measurement.constants() for measurement in found]
    monkeypatch.setattr(Recordings, "results", lambda self, sets, work: {})
    plain = measurements(estimates)
    assert repr(rows) == repr([list(measurement.rows()) for measurement in plain])
    assert estimates or repr(exact) == repr([measurement.constants() for measurement in plain])


@pytest.mark.parametrize("bound", [0.05, 0.3])
def test_step_clipping_does_the_same(bound, replayed, monkeypatch):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))
        groups = lt.find_neuron_groups(model, torch.randn(2, 5))
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        clipper, generator = StepClipper(optimizer, model, groups, bound), torch.Generator().manual_seed(0)
        made = []
        for step in range(30):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) * (0.1 + step % 5)
            clipper.before()
            optimizer.step()
            clipper.after()
            made.append(clipper.last)
        return made, clipper.clipped_updates, [parameter.detach().clone() for parameter in model.parameters()]

    *found, weights = run()
    assert replayed
    monkeypatch.setattr(Recordings, "results", lambda self, sets, work: {})
    *plain, plain_weights = run()
    assert 0 < found[1] < 30 or bound == 0.05
    assert repr(found) == repr(plain)
    assert all(map(torch.equal, weights, plain_weights))


def test_nothing_is_recorded_on_the_cpu():
    recordings = Recordings()
    recordings.refresh([torch.zeros(3)])
    assert recordings.results([], lambda one: ()) == {}
