import math

import pytest
import torch
from torch import nn

from lightning_topo.finder import _criticality
from lightning_topo.finder._criticality import CriticalityMeter
from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import Member, NeuronGroup


def meter(n=60, dimension=20):
    model = nn.Linear(dimension, n, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(n, dimension, generator=torch.Generator().manual_seed(0)))
    return model, CriticalityMeter(model, NeuronGroup("fc", (Member("weight"),)))


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_screening_decides_exactly_and_never_overstates(monkeypatch, scale, drift):
    monkeypatch.setattr(_criticality, "_ALWAYS_EXACT", 0)
    monkeypatch.setattr(_criticality, "_FASTEST", 8)
    _, screened = meter()
    generator = torch.Generator().manual_seed(1)
    start = screened.points()
    screened.criticality(start, start + 1e-3)  # keeps the distances of the start
    for _ in range(20):
        before = start + drift * torch.randn(start.shape, generator=generator)
        speed = scale * torch.rand(len(start), 1, generator=generator) ** 4
        after = before + speed * torch.randn(start.shape, generator=generator)
        true, seen = bi_lipschitz(before, after).criticality, screened.criticality(before, after)
        assert (seen >= 1) == (true >= 1)
        assert 0 < seen <= true * (1 + 1e-9)


def test_small_clouds_are_exact():
    _, plain = meter()
    start = plain.points()
    after = start + 0.01 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    assert plain.criticality(start, after) == bi_lipschitz(start, after).criticality


def test_screening_leaves_out_quiet_neurons(monkeypatch):
    monkeypatch.setattr(_criticality, "_ALWAYS_EXACT", 0)
    monkeypatch.setattr(_criticality, "_FASTEST", 8)
    sizes = []
    monkeypatch.setattr(_criticality, "bi_lipschitz", lambda p, q: sizes.append(len(p)) or bi_lipschitz(p, q))
    _, screened = meter()
    start = screened.points()
    after = start + 1e-3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    screened.criticality(start, after)
    assert sizes == [8]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_infinite(value):
    _, plain = meter()
    after = plain.points()
    after[3, 2] = value
    assert plain.criticality(plain.points(), after) == math.inf


def test_one_neuron_or_none_that_moved():
    _, alone = meter(n=1)
    assert alone.criticality(alone.points(), alone.points() + 1) == 0.0
    _, still = meter()
    assert still.criticality(still.points(), still.points()) == 0.0
