"""Each metric against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_topo.metrics import (
    BettiNumbers,
    BiLipschitzDistortion,
    BottleneckDistance,
    PersistenceEntropy,
    TotalPersistence,
)


def _circle(n: int = 48) -> torch.Tensor:
    t = torch.arange(n) * (2 * math.pi / n)
    return torch.stack([t.cos(), t.sin()], dim=1)


def test_betti_numbers_of_a_circle_and_of_two():
    metric = BettiNumbers(max_dim=2)
    assert metric(_circle()).tolist() == [1, 1, 0]
    far = 3.0
    assert BettiNumbers(scale=0.25, max_dim=1)(torch.cat([_circle(), _circle() + far])).tolist() == [2, 2]


def test_entropy_and_total_persistence_of_a_line():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # bars of lengths 1, 2, 4
    shares = torch.tensor([1.0, 2.0, 4.0]) / 7
    assert PersistenceEntropy(max_dim=0)(points).item() == pytest.approx(-(shares * shares.log()).sum().item())
    assert TotalPersistence(max_dim=0)(points).item() == pytest.approx(7.0)


def test_bottleneck_distance_of_scaled_circles():
    step, width = 2 * math.sin(math.pi / 48), 2 * math.sin(math.pi / 3)  # the loop's bar: neighbours join, it is filled
    distance = BottleneckDistance()(_circle(), 1.2 * _circle())
    assert distance.tolist() == pytest.approx([0.2 * step, 0.2 * width], rel=1e-5)
    # Far apart in size, it is cheaper to let both loops vanish: half the length of the longer bar.
    distance = BottleneckDistance()(_circle(), 4 * _circle())
    assert distance[1].item() == pytest.approx(2 * (width - step), rel=1e-5)


def test_sampling_is_passed_on():
    cloud = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for metric_class in (PersistenceEntropy, TotalPersistence):
        assert metric_class(max_dim=0, max_neurons=2)(cloud) != metric_class(max_dim=0)(cloud)


def test_bi_lipschitz_constants_of_known_maps():
    points = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric = BiLipschitzDistortion().set_dtype(torch.float64)
    metric.update(points, 0.5 * points)
    metric.update(points, 3.0 * points)
    result = {name: value.item() for name, value in metric.compute().items()}
    assert result == pytest.approx({"lower": 0.5, "upper": 3.0, "distortion": 1.0, "criticality": 2.0})


def test_bi_lipschitz_skips_updates_without_pairs():
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    metric = BiLipschitzDistortion()
    metric.update(points[:1], points[:1])
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(points, 0.5 * points)
    metric.update(points[:1], points[:1])
    assert metric.compute()["lower"].item() == pytest.approx(0.5)


def test_bi_lipschitz_of_merged_neurons():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    merged = torch.tensor([[0.0], [0.0], [3.0]])
    result = BiLipschitzDistortion()(points, merged)
    assert result["lower"] == 0
    assert result["distortion"] == math.inf
    assert result["criticality"] == 1


@pytest.mark.parametrize("metric_class", [BettiNumbers, PersistenceEntropy, TotalPersistence, BottleneckDistance])
def test_bad_options(metric_class):
    with pytest.raises(ValueError, match="max_dim >= 0, got -1"):
        metric_class(max_dim=-1)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match="scale > 0"):
        BettiNumbers(scale=scale)
