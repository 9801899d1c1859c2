"""The level that the largest of several κ come down to, against the sum that it is to make."""

import math

import pytest
import torch

from lightning_topo.clipping.level import common_level


def test_one_group_comes_down_to_the_bound():
    assert common_level([3.0], 0.2) == pytest.approx(0.2)
    assert common_level([0.1], 0.2) == math.inf


def test_equal_groups_share_the_squared_bound():
    assert common_level([5.0] * 4, 1.0) == pytest.approx(0.5)


def test_what_is_not_finite_leaves_the_others_their_part():
    assert common_level([math.inf, math.inf], 1.0) == pytest.approx(math.sqrt(0.5))
    assert common_level([0.6, math.inf, 1e200], 1.0) == pytest.approx(math.sqrt(1 / 3))


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_is_the_bound_and_no_group_goes_below_its_part(seed):
    generator = torch.Generator().manual_seed(seed)
    kappas = torch.randn(1 + seed % 9, generator=generator).mul(2).exp().tolist()
    whole = math.hypot(*kappas)
    for share in (0.05, 0.5, 0.95):
        level = common_level(kappas, share * whole)
        assert math.hypot(*(min(kappa, level) for kappa in kappas)) == pytest.approx(share * whole, rel=1e-9)
        assert level >= share * whole / math.sqrt(len(kappas)) * (1 - 1e-9)
    assert common_level(kappas, 1.0001 * whole) == math.inf
