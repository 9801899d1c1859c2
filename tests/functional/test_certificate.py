"""Certified Betti numbers are never above the true ones."""

import math

import pytest
import torch

from lightning_topo.functional import betti_at_scale, betti_numbers, certified_betti, persistence
from lightning_topo.functional.distances import pairwise_distances


def ring(n, noise, generator):
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def random_cloud(kind, generator):
    if kind == 0:
        return ring(24, 0.03, generator)
    if kind == 1:
        return torch.cat([ring(16, 0.02, generator), ring(16, 0.02, generator) + torch.tensor([4.0, 1.0])])
    points = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(points) if kind == 2 else points


def random_map(points, generator):
    """A linear map near a multiple of the identity, then a displacement of each point."""
    dimension = points.shape[1]
    strength = 0.5 * float(torch.rand((), generator=generator)) ** 2
    linear = torch.eye(dimension).double() + strength * torch.randn(dimension, dimension, generator=generator).double()
    moved = points @ linear + 0.1 * strength * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    return moved * float(torch.rand((), generator=generator) + 0.1) * 5


def constants(before, after):
    above = torch.ones(len(before), len(before)).triu(1).bool()
    ratios = (pairwise_distances(after) / pairwise_distances(before))[above]
    return float(ratios.min()), float(ratios.max())


@pytest.mark.parametrize("max_neurons", [None, 22, 12])
@pytest.mark.parametrize("kind", range(4))
def test_never_above_the_true_count(kind, max_neurons):
    generator = torch.Generator().manual_seed(10 * kind + (max_neurons or 0))
    certified_holes = certified_parts = 0
    for trial in range(40):
        before = random_cloud(kind, generator)
        after = random_map(before, generator)
        reference = persistence(before, max_dim=2, max_neurons=max_neurons, engine="ripser")
        lower, upper = constants(before, after)
        scale = (0.15, 0.25, 0.4)[trial % 3]
        certified = certified_betti(reference, lower, upper, scale)
        true = betti_at_scale(after, scale)
        assert all(c <= t for c, t in zip(certified, true, strict=True))
        assert certified[0] >= 1
        certified_holes += certified[1]
        certified_parts += certified[0] - 1
    if max_neurons is None and kind <= 1:
        # The bound says something: it is not met by counting nothing.
        assert certified_holes >= 10
        assert certified_parts >= (10 if kind == 1 else 0)


def test_sample_certifies_the_whole_cloud():
    generator = torch.Generator().manual_seed(0)
    points = ring(400, 0.0, generator)
    reference = persistence(points, max_neurons=60)
    assert reference.covering_radius > 0
    assert certified_betti(reference, 0.95, 1.05) == (1, 1)


def test_covering_radius_is_paid_for():
    # The sample's bars, taken for the cloud's, would certify loops between points that the cloud fills.
    generator = torch.Generator().manual_seed(1)
    points = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator, dtype=torch.float64))
    sample = persistence(points, max_neurons=30)
    assert betti_numbers(sample, 0.3)[1] > betti_at_scale(points, 0.3)[1]
    assert certified_betti(sample, 1.0, 1.0, 0.3) == (1, 0)


def test_ring_that_a_small_stretch_opens_is_not_certified():
    # Edges of 0.52 are in at t = 0.54; one point moves along the ring, and one of its edges grows to 0.61.
    before = ring(12, 0.0, torch.Generator())
    after = before.clone()
    after[0] = torch.tensor([math.cos(0.1), math.sin(0.1)])
    scale = 0.27
    reference = persistence(before)
    assert betti_numbers(reference, scale) == (1, 1)
    assert betti_at_scale(after, scale, max_dim=1) == (1, 0)
    assert certified_betti(reference, *constants(before, after), scale) == (1, 0)


def test_isometry_certifies_every_bar_away_from_the_scale():
    generator = torch.Generator().manual_seed(2)
    for kind in range(4):
        result = persistence(random_cloud(kind, generator), max_dim=2)
        assert certified_betti(result, 3.0, 3.0) == betti_numbers(result)


def test_merged_points_leave_only_the_component_that_never_dies():
    result = persistence(ring(20, 0.0, torch.Generator()))
    assert certified_betti(result, 0.0, 1.0) == (1, 0)
    assert certified_betti(result, 0.0, 0.0) == (1, 0)


def test_looser_constants_never_certify_more():
    result = persistence(ring(40, 0.02, torch.Generator().manual_seed(0)))
    counts = [certified_betti(result, 1 / (1 + x), 1 + x)[1] for x in (0.0, 0.1, 0.3, 0.6, 2.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1
    assert counts[-1] == 0


@pytest.mark.parametrize(("lower", "upper"), [(-0.1, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, math.nan)])
def test_bad_constants_are_refused(lower, upper):
    with pytest.raises(ValueError, match="0 <= lower <= upper < inf"):
        certified_betti(persistence(torch.eye(3)), lower, upper)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match="finite scale >= 0"):
        certified_betti(persistence(torch.eye(3)), 1.0, 1.0, scale)
