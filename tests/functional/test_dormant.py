"""Dormant units: against the definition in plain loops, and known layers."""

import math

import pytest
import torch

from lightning_topo.functional import dormant_share


def layer(m=40, n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(m, n, generator=generator) * torch.logspace(-4, 1, n)
    return h.relu()


def by_loops(h, threshold, centred):
    rows, scores = h.double().tolist(), []
    for unit in zip(*rows, strict=True):
        mean = sum(unit) / len(unit) if centred else 0.0
        scores.append(sum(abs(value - mean) for value in unit) / len(unit))
    average = sum(scores) / len(scores)
    return sum(score / average <= threshold for score in scores) / len(scores)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.025, 0.1, 0.5])
@pytest.mark.parametrize("centred", [True, False])
def test_definition(seed, threshold, centred):
    h = layer(seed=seed)
    assert dormant_share(h, threshold, centred) == pytest.approx(by_loops(h, threshold, centred))


def test_a_relu_that_never_fires_is_dormant_by_both_scores():
    h = torch.rand(20, 8)
    h[:, 2:5] = 0
    assert dormant_share(h) == dormant_share(h, centred=False) == dormant_share(h, 0.0) == 3 / 8


@pytest.mark.parametrize("stuck", [0.1, 0.7, 1.0, -1.0, 1e6])
def test_a_unit_that_is_stuck_is_dormant_as_it_says_nothing(stuck):
    h = torch.rand(37, 8)
    h[:, 3] = stuck
    assert dormant_share(h, 0.0) == 1 / 8
    assert dormant_share(h, 0.0, centred=False) == 0


def test_constant_layers_are_dormant_as_a_whole():
    for value in (0.0, 0.1, 3.7):
        assert dormant_share(torch.full((11, 5), value)) == 1
    assert dormant_share(torch.rand(1, 5)) == 1  # a single row differs from nothing
    assert dormant_share(torch.rand(1, 5) + 1, centred=False) == 0


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e20])
def test_units_of_measurement_do_not_matter(factor):
    h = layer().double()
    assert dormant_share(factor * h) == dormant_share(h)


def test_half_precision_does_not_overflow():
    h = torch.full((4000, 4), 60000.0, dtype=torch.float16)
    h[::2, 0] = 0
    assert dormant_share(h) == 3 / 4
    assert dormant_share(h, centred=False) == 0


def test_bad_input():
    with pytest.raises(ValueError, match=r"threshold >= 0, but got -0\.1"):
        dormant_share(torch.rand(3, 3), -0.1)
    with pytest.raises(ValueError, match=r"activations of shape \(m, n\).*got \(2, 3, 4\)"):
        dormant_share(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"but got \(0, 3\)"):
        dormant_share(torch.rand(0, 3))
    with pytest.raises(ValueError, match="floating-point"):
        dormant_share(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="finite activations"):
        dormant_share(torch.full((3, 3), math.nan))
    with pytest.raises(TypeError, match="list"):
        dormant_share([[1.0]])
