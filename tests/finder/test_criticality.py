import math

import pytest
import torch
from torch import nn

from lightning_topo.finder import _criticality
from lightning_topo.finder._criticality import CriticalityMeter
from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import Member, NeuronGroup


def meter(n=60, dimension=20, floor=0.5):
    model = nn.Linear(dimension, n, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(n, dimension, generator=torch.Generator().manual_seed(0)))
    return model, CriticalityMeter(model, NeuronGroup("fc", (Member("weight"),)), floor)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("fastest", [8, 1000])
def test_screened_criticality_is_exact_from_the_floor_on(monkeypatch, scale, drift, fastest):
    monkeypatch.setattr(_criticality, "_ALWAYS_EXACT", 0)
    monkeypatch.setattr(_criticality, "_FASTEST", fastest)
    _, screened = meter()
    generator = torch.Generator().manual_seed(1)
    start = screened.points()
    screened.criticality(start, start + 1e-3)  # keeps the distances of the start
    for _ in range(10):
        before = start + drift * torch.randn(start.shape, generator=generator)
        speed = scale * torch.rand(len(start), 1, generator=generator) ** 4
        after = before + speed * torch.randn(start.shape, generator=generator)
        true, seen = bi_lipschitz(before, after).criticality, screened.criticality(before, after)
        assert seen <= true * (1 + 1e-9)
        assert (seen >= 1) == (true >= 1)
        if 0.5 <= true < 1 or fastest > len(start):
            assert seen == pytest.approx(true, rel=1e-9) or true < 0.5


def test_screening_leaves_out_quiet_neurons(monkeypatch):
    monkeypatch.setattr(_criticality, "_ALWAYS_EXACT", 0)
    sizes = []
    monkeypatch.setattr(_criticality, "bi_lipschitz", lambda p, q: sizes.append(len(p)) or bi_lipschitz(p, q))
    _, screened = meter()
    start = screened.points()
    after = start + 1e-3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    assert screened.criticality(start, after) == 0.0
    assert sizes == []
    after[7] += 100.0
    assert screened.criticality(start, after) == pytest.approx(bi_lipschitz(start, after).criticality)


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
