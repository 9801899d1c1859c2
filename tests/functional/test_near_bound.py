"""What is said about a bound is certain: against the definition, pair by pair, of clouds of all sizes."""

import math

import pytest
import torch

from lightning_topo.functional import near_bound
from lightning_topo.functional.near_bound import criticality_near

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES = {"plain": 1.0, "1e-25": 1e-25, "1e20": 1e20}


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["in full", "searched"])
def _route(request, monkeypatch):
    if request.param == "searched":
        for name, value in {"_ALWAYS_EXACT": 0, "_FASTEST": 4, "_FEW": 4, "_MAX_ROWS": 16}.items():
            monkeypatch.setattr(near_bound, name, value)


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_exact_from_the_bound_on(points_name, update_name, dtype, update_cloud, pair_loop):
    before, after = update_cloud(points_name, update_name, (40, 30), dtype)
    eps = torch.finfo(dtype).eps
    kappa = pair_loop(before, after, eps).criticality
    for share in (0.5, 0.999, 1.001, 3.0):
        bound = share * kappa if kappa > 0 else 0.1
        found = criticality_near(before, after, bound, eps)
        if math.isnan(kappa) or kappa < bound:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(kappa, rel=1e-7)
            enough = criticality_near(before, after, bound, eps, enough=bound)
            assert bound <= enough <= kappa * (1 + 1e-7)


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_sizes_that_underflow_or_overflow_when_squared(size, precision, pair_loop):
    before = (SIZES[size] * noise(60, 40)).bfloat16()
    after = (before.double() * (1 + 0.3 * noise(60, 40, seed=1))).bfloat16()
    kappa = pair_loop(before, after, 2**-7).criticality
    kept = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert criticality_near(before, after, 0.9 * kappa, 2**-7) == pytest.approx(kappa, rel=1e-7)
        assert math.isnan(criticality_near(before, after, 1.1 * kappa, 2**-7))
    finally:
        torch.set_float32_matmul_precision(kept)


def test_the_search_of_a_large_cloud_finds_the_one_pair(monkeypatch):
    monkeypatch.setattr(near_bound, "_ALWAYS_EXACT", 0)
    p = noise(500, 200).float()
    p[7] = p[300] + 1e-2 * noise(200, seed=2).float()
    q = p + 1e-4 * noise(500, 200, seed=1).float()
    q[7] = p[7] + 8e-3 * noise(200, seed=3).float()
    d, u = p[7].double() - p[300].double(), (q[7].double() - p[7].double()) - (q[300].double() - p[300].double())
    assert criticality_near(p, q, 0.1, 2**-23) == pytest.approx((u.norm() / d.norm()).item(), rel=1e-7)
