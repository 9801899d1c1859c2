"""Effective rank: closed forms, scipy's entropy and the bounds of Roy and Vetterli."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from lightning_topo.functional import effective_rank


def matrix(m, n, seed=0):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (20, 7), (7, 20), (30, 30)])
def test_entropy_of_singular_values_by_other_libraries(shape):
    h = matrix(*shape)
    expected = math.exp(entropy(np.linalg.svd(h.numpy(), compute_uv=False)))
    assert effective_rank(h) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-9 <= effective_rank(h) <= min(shape) + 1e-9


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_singular_values_give_the_rank(rank):
    left, right = (torch.linalg.qr(matrix(size, rank, seed)).Q for seed, size in enumerate((12, 8)))
    assert effective_rank(5.0 * left @ right.T) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize("faint", [0.5, 0.1, 1e-3])
def test_a_faint_direction(faint):
    p = faint / (1 + faint)
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert effective_rank(torch.diag(torch.tensor([1.0, faint], dtype=torch.float64))) == pytest.approx(expected)


def test_clones_and_silent_units_add_nothing():
    h = matrix(50, 6)
    with_clones = torch.linalg.qr(h).Q
    silent = torch.cat([with_clones, torch.zeros(50, 4)], 1)
    assert effective_rank(silent) == pytest.approx(effective_rank(with_clones)) == pytest.approx(6)
    cloned = torch.cat([with_clones] * 3, 1)
    assert effective_rank(cloned) == pytest.approx(6, rel=1e-5)


def test_invariances():
    h = matrix(30, 12)
    expected = effective_rank(h)
    rotation = torch.linalg.qr(matrix(12, 12, seed=1)).Q
    for same in (1e-20 * h, 1e20 * h, -h, h.T, h.flip(0), h.flip(1), h @ rotation):
        assert effective_rank(same) == pytest.approx(expected)


def test_nothing_has_rank_zero_and_a_constant_one():
    assert effective_rank(torch.zeros(5, 3)) == 0
    assert effective_rank(torch.full((5, 3), 2.0)) == pytest.approx(1)


def test_half_precision():
    h = matrix(40, 10)
    assert effective_rank(h.half()) == pytest.approx(effective_rank(h), rel=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="effective_rank expects finite"):
        effective_rank(torch.tensor([[math.inf]]))
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        effective_rank(torch.ones(3))
