"""κ alone agrees with the κ of all constants, screened or not, however the cloud lies."""

import math
import sys

import pytest
import torch

from lightning_topo.functional import bi_lipschitz
from lightning_topo.functional.criticality import criticality, pair_criticality

module = sys.modules["lightning_topo.functional.criticality"]
EPS = torch.finfo(torch.float32).eps


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(points):
    return torch.logspace(-3, 0, len(points))[torch.randperm(len(points))][:, None] * noise(*points.shape, seed=1)


CLOUDS = {
    "even": noise(300, 40),
    "far away": noise(300, 40) + 30,
    "clusters": noise(30, 40).repeat(10, 1) + 1e-2 * noise(300, 40, seed=2),
    "equal neurons": noise(30, 40).repeat(10, 1),
    "line": torch.arange(300.0)[:, None] / 30 + 1e-2 * noise(300, 40),
    "minute": 1e-22 * noise(300, 40),
    "huge": 1e22 * noise(300, 40),
}
UPDATES = {
    "even": lambda p: 0.01 * noise(*p.shape, seed=1),
    "uneven": uneven,
    "together": lambda p: 10 * noise(p.shape[1], seed=1) + 0.01 * noise(*p.shape, seed=2),
    "shrinking": lambda p: -0.3 * p / p.std(),
    "one": lambda p: torch.eye(len(p), p.shape[1]) * (torch.arange(len(p)) == 7)[:, None],
    "none": torch.zeros_like,
}


@pytest.fixture(params=[0, 2**40], ids=["screened", "all pairs"])
def _screening(request, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", request.param)
    monkeypatch.setattr(module, "_FEW", 16)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 64)


@pytest.mark.usefixtures("_screening")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("change", UPDATES)
def test_is_that_of_all_constants(cloud, change, dtype):
    before = CLOUDS[cloud].to(dtype)
    size = CLOUDS[cloud].std()
    # The update is in at least single precision, where the difference of two points in half precision is exact.
    update = (size * UPDATES[change](before.float() / size)).to(torch.promote_types(dtype, torch.float32))
    expected = bi_lipschitz(before.double(), before.double() + update.double(), EPS).criticality
    assert criticality(before, update, EPS) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cloud", ["even", "far away", "line"])
@pytest.mark.parametrize("autocast", [False, True])
def test_screening_misses_no_pair(cloud, dtype, autocast):
    before, update = CLOUDS[cloud].to(dtype), 0.01 * noise(300, 40, seed=1)
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    ratios = torch.cdist(update.double(), update.double(), **exact) / torch.cdist(
        before.double(), before.double(), **exact
    )
    ratios = ratios.triu(1).nan_to_num(0, 0, 0)
    kappa = float(ratios.flatten().kthvalue(300 * 300 - 500).values)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = module._pairs_above(before, update, kappa)
    missed = ratios >= kappa
    assert missed.sum() == 501
    missed[tuple(found.T)] = False
    assert not missed.any()


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_screening_leaves_few_pairs(monkeypatch, precision):
    asked = []

    def counting(before, update, pairs, eps):
        asked.append(len(pairs))
        return pair_criticality(before, update, pairs, eps)

    monkeypatch.setattr(module, "_SMALL", 0)
    monkeypatch.setattr(module, "pair_criticality", counting)
    before, update = noise(500, 100), 0.1 * noise(500, 100, seed=1)
    expected = bi_lipschitz(before.double(), before.double() + update.double(), EPS).criticality
    used = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert criticality(before, update, EPS) == pytest.approx(expected, rel=1e-6)
    finally:
        torch.set_float32_matmul_precision(used)
    assert 1 <= asked[0] < 0.01 * 500**2


@pytest.mark.parametrize(("n", "dimension"), [(2, 3), (40, 5), (300, 2), (200, 70)])
def test_close_pairs(n, dimension):
    before, update = noise(n, dimension), 0.1 * noise(n, dimension, seed=1)
    before[-1] = before[0] + 1e-4
    expected = bi_lipschitz(before.double(), before.double() + update.double(), EPS).criticality
    assert criticality(before, update, EPS) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_resolved():
    assert math.isnan(criticality(torch.ones(3, 2), torch.zeros(3, 2), EPS))


def test_of_some_pairs():
    before = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    update = torch.tensor([[0.0], [0.5], [4.0], [5.0]])
    assert pair_criticality(before, update, torch.tensor([[0, 1]]), EPS) == 0.5
    assert pair_criticality(before, update, torch.tensor([[0, 1], [1, 2]]), EPS) == 3.5 / 2
    assert pair_criticality(before, update, torch.tensor([[2, 3]]), EPS) == 0  # at the same place
    assert pair_criticality(before, update, torch.empty(0, 2, dtype=torch.long), EPS) == 0
