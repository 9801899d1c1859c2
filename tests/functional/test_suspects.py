"""The search for suspects misses no pair that reaches the bound, whatever way the cloud takes."""

from unittest.mock import Mock

import pytest
import torch

from lightning_topo.functional import _suspects
from lightning_topo.functional._suspects import SuspectSearch, spread


def reaching(before, update, bound):
    """Neurons of the pairs whose κ reaches the bound, from all pairs in double precision."""
    p, u = before.double(), update.double()
    ratio = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist") / torch.cdist(
        p, p, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return (ratio.fill_diagonal_(0) >= bound).any(1).nonzero().squeeze(1)


@pytest.mark.parametrize("bound", [0.1, 1.0])
@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("kept", [4096, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_pair_is_missed_along_a_walk(monkeypatch, bound, drift, kept, dtype):
    monkeypatch.setattr(_suspects, "_MAX_KEPT", kept)
    monkeypatch.setattr(_suspects, "_BLOCK", 17)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    search, points = SuspectSearch(), noise(60, 12)
    points[1] = points[0] + 1e-3 * noise(12)  # a close pair
    points, found = points.to(dtype), 0
    for step in range(40):
        update = 0.02 * bound * noise(60, 12) + drift * noise(12)  # all move together, and a little apart
        if step % 5 == 0:
            update[step] += bound * noise(12)  # one that moves unlike the others
        moved = (points + update).to(dtype)
        update = moved.float() - points.float()
        suspects = search(points, spread(moved, points), bound)
        due = reaching(points, update, bound)
        assert set(due.tolist()) <= set(suspects.tolist())
        found += len(due)
        points = moved
    assert found > 40


@pytest.mark.parametrize("setting", ["none", "autocast", "tf32", "one backend"])
def test_settings_for_speed_do_not_move_the_bound(monkeypatch, setting):
    if setting == "one backend":  # torch then refuses to name a precision of all
        monkeypatch.setattr(torch, "get_float32_matmul_precision", Mock(side_effect=RuntimeError))
    points = torch.randn(80, 30, generator=torch.Generator().manual_seed(0)) + 5
    points[1] = points[0] + 0.01
    true = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    true.fill_diagonal_(torch.inf)
    used = torch.get_float32_matmul_precision() if setting == "tf32" else None
    try:
        if used:
            torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            kept = _suspects._Reference(points, True)
    finally:
        if used:
            torch.set_float32_matmul_precision(used)
    assert kept.distances is not None
    assert (kept.distances <= true).all()
    assert kept.distances[2:, 2:] == pytest.approx(true[2:, 2:].float(), rel=1e-3)


def test_half_precision_does_not_shorten_the_way():
    generator = torch.Generator().manual_seed(0)
    since, to = (torch.randn(20, 30, generator=generator).bfloat16() for _ in range(2))
    movement = to.double() - since.double()
    assert spread(to, since).double() == pytest.approx((movement - movement.mean(0)).norm(dim=1), rel=1e-6)


def test_a_quiet_cloud_has_no_suspects():
    points = torch.eye(20) * 3
    search = SuspectSearch()
    assert len(search(points, torch.full((20,), 1e-3), 0.1)) == 0
