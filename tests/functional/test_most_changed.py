"""The sample against bi_lipschitz of all neurons, and on clouds where the answer is known."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lightning_topo.functional import bi_lipschitz
from lightning_topo.functional.update_constants import most_changed

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dimension", [2, 20, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_sample_has_the_constants_of_all_where_nothing_is_projected(dimension, seed):
    p = cloud(300, dimension, seed)
    q = p + 0.1 * cloud(300, dimension, seed + 10)
    chosen = most_changed(p, q, 32, EPS)
    part, whole = bi_lipschitz(p[chosen], q[chosen]), bi_lipschitz(p, q)
    assert part.criticality == pytest.approx(whole.criticality, rel=1e-9)
    assert part.lower == pytest.approx(whole.lower, rel=1e-9)
    assert part.upper == pytest.approx(whole.upper, rel=1e-9)


@pytest.mark.parametrize("dimension", [129, 500, 3000])
def test_finds_the_decisive_pairs_in_many_dimensions(dimension):
    p = cloud(400, dimension)
    q = p + 0.01 * cloud(400, dimension, 1)
    p[7] = p[300] + 0.05 * cloud(1, dimension, 2)[0]  # close, and driven apart
    q[7], q[300] = p[7] + 0.02 * cloud(1, dimension, 3)[0], p[300]
    p[11] = p[200] + 0.05 * cloud(1, dimension, 4)[0]  # close, and nearly merged
    q[11] = q[200] + 0.01 * cloud(1, dimension, 5)[0]
    chosen = most_changed(p, q, 16, EPS)
    assert {7, 300, 11, 200} <= set(chosen.tolist())
    part, whole = bi_lipschitz(p[chosen], q[chosen]), bi_lipschitz(p, q)
    assert (part.criticality, part.lower) == pytest.approx((whole.criticality, whole.lower), rel=1e-9)


@pytest.mark.parametrize("dimension", [50, 1000])
def test_the_choice_moves_with_the_neurons(dimension):
    p = cloud(200, dimension)
    q = p + 0.1 * cloud(200, dimension, 1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    permuted, plain = (
        set(order[most_changed(p[order], q[order], 24, EPS)].tolist()),
        set(most_changed(p, q, 24, EPS).tolist()),
    )
    # Both neurons of a pair may score the same: the last place of each of the three kinds is a draw.
    assert len(permuted - plain) <= 3


@pytest.mark.parametrize("k", [1, 2, 7, 8, 33, 99])
def test_so_many_and_none_twice(k):
    p = cloud(100, 10)
    chosen = most_changed(p, p + 0.1 * cloud(100, 10, 1), k, EPS)
    assert len(chosen) == len(set(chosen.tolist())) == k


@pytest.mark.parametrize("k", [5, 6])
def test_all_when_there_are_no_more(k):
    p = cloud(5, 3)
    assert most_changed(p, p, k, EPS).tolist() == [0, 1, 2, 3, 4]


def test_points_that_are_not_finite_come_first():
    p = cloud(100, 10).float()
    q = p.clone()
    q[[3, 50]] = torch.tensor([torch.nan, torch.inf])[:, None]
    assert {3, 50} <= set(most_changed(p, q, 2, EPS32).tolist())


def test_pairs_lost_in_rounding_do_not_count():
    """Two float32 neurons at the distance of rounding, where the largest ratio would be."""
    p = torch.cat([cloud(100, 10), torch.full((2, 10), 3.0)]).float()
    p[101, 0] += 5e-7
    q = p + 1e-3 * cloud(102, 10, 1).float()
    q[100:] = p[100:] + torch.tensor([[1e-5], [-1e-5]])
    assert not {100, 101} & set(most_changed(p, q, 8, EPS32).tolist())
    assert {100, 101} <= set(most_changed(p.double(), q.double(), 8, EPS).tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    p = cloud(100, 300).to(dtype)
    q, eps = (p.double() + 0.5 * cloud(100, 300, 1)).to(dtype), torch.finfo(dtype).eps
    assert torch.equal(most_changed(p, q, 20, eps), most_changed(p.float(), q.float(), 20, eps))


def test_leaves_the_points_and_the_random_state():
    p, q = cloud(100, 300), cloud(100, 300, 1)
    copies, state = (p.clone(), q.clone()), torch.get_rng_state()
    most_changed(p, q, 20, EPS)
    assert torch.equal(p, copies[0])
    assert torch.equal(q, copies[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dimension", [50, 300])
def test_a_stack_says_the_same_as_each_cloud_alone(size, dimension):
    p = size * torch.stack([cloud(200, dimension, seed) for seed in range(3)]).float()
    q = p + 0.1 * size * (p / size).sin()
    p[1, 7] = torch.nan
    chosen = most_changed(p, q, 24, EPS32)
    for g in range(3):
        assert torch.equal(chosen[g], most_changed(p[g], q[g], 24, EPS32))
    assert 7 in chosen[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "dimension"), [(10, 4), (300, 20), (300, 200)])
def test_nothing_is_read_back(n, dimension, dtype):
    with FakeTensorMode():  # which refuses whatever depends on a value
        points = torch.empty(3, n, dimension, dtype=dtype)
        assert most_changed(points, points + 1, 16, EPS32).shape == (3, min(n, 16))


@pytest.mark.gpu
def test_cuda_agrees_with_cpu():
    p, q = cloud(300, 200), cloud(300, 200, 1)
    chosen = most_changed(p.cuda(), q.cuda(), 32, EPS)
    assert chosen.is_cuda
    assert chosen.tolist() == most_changed(p, q, 32, EPS).tolist()
