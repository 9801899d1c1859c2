"""What is told from distances of an earlier time is certain: against the definition, pair by pair."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lightning_topo.functional.reaches import nearest_distances, reaches, update_lengths

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES = {"plain": 1.0, "1e-25": 1e-25, "1e20": 1e20}


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def from_mean(x):
    return (x - x.mean(0)).norm(dim=1)


def nearest(points):
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(math.inf).amin(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_distances_are_never_too_long(points_name, shape, dtype, update_cloud):
    points, _ = update_cloud(points_name, "none", shape, dtype)
    found, truth = nearest_distances(points[None])[0].double(), nearest(points.double())
    assert (found <= truth).all()
    clear = truth > 0.1 * from_mean(points.double()).max()  # others may be lost in rounding
    assert (found[clear] >= 0.99 * truth[clear]).all()


def test_update_lengths_are_never_too_short_and_right_to_a_ten_thousandth(
    points_name, update_name, shape, update_cloud
):
    for dtype in DTYPES:
        before, after = update_cloud(points_name, update_name, shape, dtype)
        found = update_lengths(before[None], after[None])[0].double()
        truth = from_mean(after.double() - before.double())
        assert (found >= truth).all()
        # What all have in common is rounded as it is.
        common = 1e-6 * (after.double() - before.double()).norm(dim=1).max()
        assert (found <= truth * 1.0001 + common).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_below_the_bound_is_certain(dtype, size, pair_loop):
    """On a way that the distances of its start bound, with updates of all lengths."""
    eps, bound = torch.finfo(dtype).eps, 0.1
    start = (SIZES[size] * noise(25, 12)).to(dtype)
    kept, told = nearest_distances(start[None]), 0
    for k in range(1, 8):
        before = (start.double() + SIZES[size] * 0.02 * k * noise(25, 12, seed=k)).to(dtype)
        update = SIZES[size] * 10.0 ** (-k / 2 - 0.5) * noise(25, 12, seed=-k)
        after = (before.double() + update).to(dtype)
        ratio = reaches(
            update_lengths(before[None], after[None]), update_lengths(start[None], before[None]), kept, bound
        )
        kappa = pair_loop(before, after, eps).criticality
        if ratio < 1:
            told += 1
            assert math.isnan(kappa) or kappa / bound <= ratio.item()
    assert told > 1


def test_nobody_moves_and_a_cloud_of_one():
    p = noise(2, 5, 3).float()
    p[0, 1] = p[0, 0]
    assert reaches(update_lengths(p, p), 0.0, nearest_distances(p), 0.1).tolist() == [0.0, 0.0]
    one = noise(1, 1, 3).float()
    assert nearest_distances(one).tolist() == [[math.inf]]
    assert reaches(update_lengths(one, one + 1), 0.0, nearest_distances(one), 0.1).item() == 0.0


def test_clouds_of_a_stack_know_nothing_of_each_other():
    p = torch.stack([noise(30, 8), 1e-20 * noise(30, 8, seed=1), 1e10 * noise(30, 8, seed=2)]).float()
    q = p + 0.1 * p.sin()
    alone = torch.cat([nearest_distances(p[g : g + 1]) for g in range(3)])
    assert torch.allclose(nearest_distances(p), alone, rtol=1e-4)
    alone = torch.cat([update_lengths(p[g : g + 1], q[g : g + 1]) for g in range(3)])
    assert torch.allclose(update_lengths(p, q), alone, rtol=1e-5)


def test_blocks_of_many_points():
    p = noise(700, 10)
    assert torch.allclose(nearest_distances(p.float()[None])[0].double(), nearest(p), rtol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_read_back(dtype):
    with FakeTensorMode():
        p = torch.empty(3, 700, 20, dtype=dtype)
        ratio = reaches(update_lengths(p, p), update_lengths(p, p), nearest_distances(p), 0.1)
    assert ratio.shape == (3,)
