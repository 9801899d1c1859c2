"""Betti curves against the numbers at each single scale, and the scale of the longest bar against known shapes."""

import math

import pytest
import torch

from lightning_topo.functional import Persistence, betti_curves, betti_numbers, longest_bar_scale, persistence


def cloud(n=40, dimension=2, seed=0):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))


def diagrams(*bars, diameter=2.0):
    tensors = tuple(torch.tensor(bar, dtype=torch.float64).reshape(-1, 2) for bar in bars)
    return Persistence(tensors, diameter, 0.0, 5)


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_at_each_scale(seed):
    found = persistence(cloud(seed=seed), max_dim=1)
    # Also where bars are born and die, which float32 would miss.
    ends = torch.cat([bars.flatten() for bars in found.diagrams]) / found.diameter
    scales = torch.cat([torch.linspace(0, 1.2, 50, dtype=torch.float64), ends[ends.isfinite()]])
    curves = betti_curves(found, scales)
    assert curves.shape == (2, len(scales))
    assert [tuple(column) for column in curves.T.tolist()] == [betti_numbers(found, float(s)) for s in scales]


def test_curves_begin_with_all_neurons_and_end_with_one():
    curves = betti_curves(persistence(cloud(), max_dim=2), torch.tensor([0.0, 1.0]))
    assert curves.tolist() == [[40, 1], [0, 0], [0, 0]]


def test_empty_dimensions_and_points_that_coincide():
    assert betti_curves(persistence(torch.ones(5, 2)), torch.tensor([0.0, 0.5])).tolist() == [[1, 1], [0, 0]]
    assert betti_curves(persistence(cloud()), torch.zeros(0)).shape == (2, 0)


@pytest.mark.parametrize(
    "scales", [torch.tensor(0.5), torch.tensor([-0.1]), torch.tensor([math.nan]), torch.ones(2, 2)]
)
def test_bad_scales(scales):
    with pytest.raises(ValueError, match="betti_curves expects scales"):
        betti_curves(persistence(cloud()), scales)


def test_middle_of_the_longest_bar():
    found = diagrams([(0, 0.3), (0, math.inf)], [(0.4, 1.4), (0.1, 0.5)])
    assert longest_bar_scale(found) == pytest.approx(0.45)
    assert betti_numbers(found, longest_bar_scale(found)) == (1, 1)


def test_the_longest_bar_of_a_ring_is_its_loop():
    angle = 2 * math.pi * torch.arange(60, dtype=torch.float64) / 60
    ring = persistence(torch.stack([angle.cos(), angle.sin()], 1))
    # Born at the side of the polygon, dead when every third point is reached (side of a triangle), diameter 2.
    expected = (2 * math.sin(math.pi / 60) + math.sqrt(3)) / 2 / 2
    assert longest_bar_scale(ring) == pytest.approx(expected)


def test_neurons_as_far_from_each_other_are_counted_until_they_are_half_as_far():
    simplex = torch.eye(20)
    scale = longest_bar_scale(persistence(simplex))
    assert scale == pytest.approx(0.5)
    assert betti_numbers(persistence(simplex), scale)[0] == 20


def test_nothing_to_choose_from():
    assert longest_bar_scale(persistence(torch.ones(5, 2))) == 0.25
    assert longest_bar_scale(persistence(torch.ones(1, 2))) == 0.25


def test_the_scale_is_of_the_shape_and_not_of_its_size():
    points = cloud().double()
    expected = longest_bar_scale(persistence(points))
    assert longest_bar_scale(persistence(1e-3 * points + 3)) == pytest.approx(expected)
    assert 0 < expected < 1
