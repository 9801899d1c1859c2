"""The estimate of κ, against the definition."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lightning_topo.functional.estimated_criticality import estimated_criticality
from lightning_topo.functional.update_constants import UpdateConstants

EPS = 2.0**-23


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unpacked(before, after, eps=EPS):
    return UpdateConstants.unpack(estimated_criticality(before, after, eps).packed().tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_is_never_above_the_definition(points_name, update_name, shape, dtype, update_cloud, pair_loop):
    before, after = update_cloud(points_name, update_name, shape, dtype)
    eps = torch.finfo(dtype).eps
    truth = pair_loop(before, after, eps)
    ((found, finite, certain),) = unpacked(before[None], after[None], eps)
    assert finite
    assert certain == (len(before) < 2)
    assert math.isnan(found.criticality) or found.criticality <= truth.criticality * (1 + 1e-4)


@pytest.mark.parametrize(("n", "dimension"), [(2, 1), (3, 40), (64, 75), (64, 1200), (200, 8)])
def test_is_the_definition_of_points_that_are_apart(n, dimension, pair_loop):
    before = noise(3, n, dimension)
    after = before + 1e-3 * noise(3, n, dimension, seed=1) * torch.tensor([1.0, 1e-2, 1e2])[:, None, None]
    for one, p, q in zip(unpacked(before, after), before, after, strict=True):
        truth = pair_loop(p, q, EPS)
        assert one[0].criticality == pytest.approx(truth.criticality, rel=1e-3)
        assert truth.criticalities[one[0].pair] == pytest.approx(one[0].criticality, rel=1e-3)


def test_a_close_pair_that_decides_is_found_and_evaluated_exactly(pair_loop):
    """Its squared distance is a thousandth of what a product in single precision resolves."""
    before = noise(40, 30)
    before[7] = before[3] + 1e-5 * noise(30, seed=2)
    after = before + 1e-5 * noise(40, 30, seed=1)
    ((found, _, _),) = unpacked(before[None], after[None])
    assert found.pair == (3, 7)
    assert found.criticality == pytest.approx(pair_loop(before, after, EPS).criticality, rel=1e-4)


def test_nothing_moves_or_all_move_alike():
    before = noise(1, 20, 6)
    ((found, _, _),) = unpacked(before, before.clone())
    assert found.criticality == 0.0
    ((found, _, _),) = unpacked(before, 1.5 * before)
    assert found.criticality == pytest.approx(0.5, rel=1e-5)


def test_points_that_are_not_finite():
    before = noise(2, 20, 6)
    after = 1.01 * before
    after[1, 3, 2] = math.nan
    (_, first, _), (broken, second, _) = unpacked(before, after)
    assert (first, second) == (True, False)
    assert math.isnan(broken.criticality)


def test_clouds_without_pairs():
    for shape in ((2, 1, 5), (1, 4, 0)):
        before = torch.zeros(shape)
        assert all(math.isnan(one.criticality) for one, _, _ in unpacked(before, before))


def test_reads_nothing_back():
    with FakeTensorMode():
        p = torch.randn(3, 50, 40)
        estimated_criticality(p, 1.01 * p, EPS)
