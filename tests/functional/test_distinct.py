"""Distinct neurons: against scipy's single linkage, known clouds and invariants."""

import math

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist

from lightning_topo.functional import betti_numbers, distinct_neurons, persistence


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_scipy(points, start, share):
    """The definition, by another library."""
    x, p = start.double().numpy(), points.double().numpy()
    apart = cdist(x, x)
    np.fill_diagonal(apart, np.inf)
    norm = lambda cloud: math.sqrt(np.mean(np.sum(cloud**2, axis=1)))  # noqa: E731
    t = share * np.median(apart.min(1)) * norm(p) / norm(x)
    return len(set(fcluster(linkage(p, "single"), t, "distance")))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.97, 1.5])  # at 1 the median itself is a tie, up to rounding
def test_single_linkage_of_scipy(seed, share):
    n, dimension = 5 + 7 * seed, (1, 2, 3, 40)[seed % 4]
    start = noise(n, dimension, seed=seed)
    pull = noise(n, 1, seed=seed + 100).abs()  # some neurons have come close to the first
    now = start[0] + (start - start[0]) * pull.clamp(max=1.0) ** 3 + 0.3 * noise(dimension, seed=seed + 200)
    assert distinct_neurons(now, start, share) == by_scipy(now, start, share)
    assert distinct_neurons(start, share=share) == by_scipy(start, start, share)


def test_some_of_the_random_cases_are_merged():
    counts = [
        distinct_neurons(start[0] + (start - start[0]) * noise(60, 1, seed=1).abs().clamp(max=1.0) ** 3, start)
        for start in (noise(60, 40),)
    ]
    assert all(1 < count < 60 for count in counts)


def test_clones_count_once():
    cloud = noise(40, 10)
    cloud[10:25] = cloud[3]
    cloud[30:32] = cloud[29]
    assert distinct_neurons(cloud, noise(40, 10)) == 40 - 15 - 2
    assert distinct_neurons(cloud, noise(40, 10), share=0.0) == 40 - 15 - 2


def test_chains_count_as_one():
    start = torch.linspace(-300, 300, 31)[:, None]  # neighbours are 20 apart, and 2 is close
    chain = start.clone()
    chain[12:19] = torch.linspace(-5, 5, 7)[:, None]
    assert distinct_neurons(start) == 31
    assert distinct_neurons(chain, start) == 31 - 6


def test_it_is_the_number_of_components():
    cloud = noise(80, 3)
    spread = persistence(cloud, max_dim=0)
    apart = torch.cdist(cloud, cloud)
    apart.fill_diagonal_(math.inf)
    for share in (0.3, 1.0, 2.0):
        t = share * apart.amin(1).quantile(0.5)
        assert distinct_neurons(cloud, share=share) == betti_numbers(spread, float(t) / spread.diameter)[0]


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_units_do_not_matter(factor):
    start = noise(50, 6)
    now = start.clone()
    now[:20] = now[0] + 1e-3 * noise(20, 6, seed=1)
    assert distinct_neurons(factor * now, factor * start) == distinct_neurons(now, start) == 31
    assert distinct_neurons(factor * now, start) == distinct_neurons(now, factor * start) == 31


@pytest.mark.parametrize("factor", [1e-4, 0.1, 3.0, 1e4])
def test_a_network_that_shrinks_or_grows_as_a_whole_has_lost_nothing(factor):
    start = noise(50, 6)
    assert distinct_neurons(factor * start, start) == distinct_neurons(start) == 50


def test_beside_neurons_that_are_many_times_larger_the_others_look_alike():
    start = noise(50, 6)
    now = start.clone()
    now[:5] *= 3
    assert distinct_neurons(now, start) == 50
    now[:5] *= 1e4
    assert distinct_neurons(now, start) == 6


def test_neurons_that_all_become_the_same_are_one():
    start = noise(50, 6)
    assert distinct_neurons(start[:1] + 1e-6 * start, start) == 1


def test_order_and_motions_do_not_matter():
    start, shuffled = noise(50, 6), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    now = start.clone()
    now[:20] = now[0] + 0.05 * noise(20, 6, seed=1)
    rotation = torch.linalg.qr(noise(6, 6, seed=2)).Q
    count = distinct_neurons(now, start)
    assert 1 < count < 50
    assert distinct_neurons(now[shuffled], start) == distinct_neurons(now @ rotation, start @ rotation) == count


def test_degenerate_clouds():
    assert distinct_neurons(torch.ones(1, 3)) == 1
    assert distinct_neurons(torch.ones(9, 3)) == 1
    assert distinct_neurons(torch.zeros(9, 3)) == 1
    assert distinct_neurons(noise(9, 3), torch.zeros(9, 3)) == 9  # the scale of clones is 0: what differs is distinct
    assert distinct_neurons(torch.tensor([[0.0], [0.0], [1.0]])) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types(dtype):
    start = noise(64, 100).to(dtype)
    now = start.clone()
    now[:10] = now[10]
    assert distinct_neurons(now, start) == 54


def test_bad_input():
    with pytest.raises(ValueError, match="share >= 0, but got -1"):
        distinct_neurons(torch.ones(3, 2), share=-1)
    with pytest.raises(ValueError, match="distinct_neurons expects finite points"):
        distinct_neurons(torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"distinct_neurons expects a cloud of shape \(n, D\)"):
        distinct_neurons(torch.ones(3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="distinct_neurons expects finite points"):
        distinct_neurons(torch.ones(3, 2), torch.full((3, 2), math.inf))
