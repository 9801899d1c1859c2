"""Farthest-point sampling against a plain greedy loop and the optimal covering."""

from itertools import combinations

import numpy as np
import pytest
import torch

from lightning_topo.functional import farthest_point_sample


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def greedy(points, k):
    x = points.numpy()
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmax())]
    while len(chosen) < k:
        chosen.append(int(np.min([np.linalg.norm(x - x[i], axis=1) for i in chosen], axis=0).argmax()))
    return chosen


def radius_of(points, chosen):
    x = points.double().numpy()
    return np.min([np.linalg.norm(x - x[i], axis=1) for i in chosen], axis=0).max()


# With n > 16 k rows of distances are computed one by one, else all at once.
@pytest.mark.parametrize("dimension", [2, 50])
@pytest.mark.parametrize(("n", "k"), [(60, 12), (60, 59), (300, 3), (100, 1)])
def test_equals_the_greedy_loop(n, k, dimension):
    points = cloud(n, dimension)
    indices, radius = farthest_point_sample(points, k)
    assert indices.dtype == torch.int64
    assert indices.tolist() == greedy(points, k)
    assert radius == pytest.approx(radius_of(points, indices.tolist()), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_covering_radius_is_within_twice_the_optimum(seed):
    points = cloud(12, 2, seed)
    _, radius = farthest_point_sample(points, 3)
    best = min(radius_of(points, chosen) for chosen in combinations(range(12), 3))
    assert best <= radius <= 2 * best


@pytest.mark.parametrize("k", [5, 6, 100])
def test_all_points_are_chosen_in_their_own_order(k):
    indices, radius = farthest_point_sample(cloud(5, 3), k)
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert radius == 0.0


def test_copies_are_chosen_last():
    points = cloud(6, 30).repeat(3, 1)
    indices, radius = farthest_point_sample(points, 6)
    assert sorted(index % 6 for index in indices.tolist()) == list(range(6))
    assert radius == 0.0


def test_identical_points():
    indices, radius = farthest_point_sample(torch.ones(4, 2), 2)
    assert len(set(indices.tolist())) == 2
    assert radius == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type(dtype):
    points = cloud(40, 3).to(dtype)
    indices, radius = farthest_point_sample(points, 7)
    wide, wide_radius = farthest_point_sample(points.double(), 7)
    assert indices.tolist() == wide.tolist()
    assert radius == wide_radius


def test_is_deterministic_and_leaves_random_state_alone():
    state = torch.get_rng_state()
    first, second = (farthest_point_sample(cloud(50, 4), 9)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=f"k >= 1, but got k = {k}"):
        farthest_point_sample(cloud(5, 3), k)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="farthest_point_sample expects"):
        farthest_point_sample(torch.zeros(4), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [60, 400])
def test_gpu_agrees(n):
    points = cloud(n, 30)
    indices, radius = farthest_point_sample(points.cuda(), 8)
    assert indices.is_cuda
    assert indices.tolist() == farthest_point_sample(points, 8)[0].tolist()
    assert radius == pytest.approx(farthest_point_sample(points, 8)[1], rel=1e-12)
