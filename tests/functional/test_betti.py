"""Betti numbers at a scale against closed forms, ties, and the full persistence."""

import math

import pytest
import torch

from lightning_topo.functional import Persistence, betti_at_scale, betti_numbers, persistence

SCALES = (0.0, 0.1, 0.25, 0.4, 0.6, 1.0)


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(n, dimension, levels, seed):
    """Points with many copies and equal distances."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (n, dimension), generator=generator).double()


def rotated(points, dimension=100, seed=1):
    return points.double() @ torch.linalg.qr(cloud(dimension, points.shape[1], seed)).Q.T


def polygon(m):
    angle = 2 * math.pi * torch.arange(m, dtype=torch.float64) / m
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def sphere(n, seed=0):
    return torch.nn.functional.normalize(cloud(n, 3, seed))


def even_sphere(n):
    """Points of a spiral, each with the same area of the sphere."""
    z = 1 - (2 * torch.arange(n, dtype=torch.float64) + 1) / n
    angle = torch.arange(n) * math.pi * (3 - math.sqrt(5))
    r = (1 - z**2).sqrt()
    return torch.stack([r * angle.cos(), r * angle.sin(), z], dim=1)


def both(points, scale, max_dim=2):
    at_scale = betti_at_scale(points, scale, max_dim)
    assert at_scale == betti_numbers(persistence(points, max_dim, engine="ripser"), scale)
    return at_scale


def test_half_open_bars_and_ties():
    bars = torch.tensor([[0.0, 1.0], [0.5, 2.0], [1.0, 3.0], [1.5, 4.0], [0.0, math.inf]], dtype=torch.float64)
    diagram = Persistence((bars, bars[:0]), diameter=4.0, covering_radius=0.0, n_points=5)
    # At t = 1 the first is dead, the third alive.
    assert betti_numbers(diagram, scale=0.25) == (3, 0)
    assert betti_numbers(diagram, scale=0.25 * (1 - 1e-9)) == (3, 0)
    assert betti_numbers(diagram, scale=0.0) == (2, 0)


# An edge as long as the scale is in, also where rounding puts it just above.
@pytest.mark.parametrize("embed", [lambda x: x, rotated, lambda x: 0.1 * rotated(x) + 0.3])
def test_edges_as_long_as_the_scale_are_in(embed):
    line = torch.arange(5.0)[:, None].double()
    assert both(embed(line), scale=0.25) == (1, 0, 0)
    assert both(embed(line), scale=0.25 - 1e-9) == (5, 0, 0)
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert both(embed(square), scale=math.sqrt(0.5)) == (1, 1, 0)
    assert both(embed(square), scale=1.0) == (1, 0, 0)


@pytest.mark.parametrize("m", range(5, 30))
def test_regular_polygon(m):
    # A circle while chords of k steps are in with 0 < k / m < 1 / 3 (arXiv 1503.03669).
    steps = (m - 1) // 3
    chord = math.sin(math.pi * steps / m)  # half of it: the radius is 1
    diameter = 1.0 if m % 2 == 0 else math.sin(math.pi * (m // 2) / m)
    assert betti_at_scale(polygon(m), scale=chord / diameter) == (1, 1, 0)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("embed", [lambda x: x, rotated])
def test_cross_polytope_is_a_sphere(k, embed):
    points = embed(torch.cat([torch.eye(k), -torch.eye(k)]))
    expected = [1] + [0] * 4
    expected[k - 1] += 1
    assert both(points, scale=0.8, max_dim=4) == tuple(expected)


def test_dense_shapes():
    assert betti_at_scale(rotated(even_sphere(400))) == (1, 0, 1)
    assert betti_at_scale(polygon(500)) == (1, 1, 0)
    two = torch.cat([polygon(300), polygon(300) + torch.tensor([10.0, 0.0])])
    assert betti_at_scale(two, scale=0.05) == (2, 2, 0)
    two_spheres = torch.cat([even_sphere(200), even_sphere(200) + torch.tensor([5.0, 0.0, 0.0])])
    assert betti_at_scale(two_spheres, scale=0.1) == (2, 0, 2)


def test_torus():
    u, v = torch.cartesian_prod(*[torch.arange(24) * (2 * math.pi / 24)] * 2).double().T
    flat = torch.stack([u.cos(), u.sin(), v.cos(), v.sin()], dim=1)  # diameter √8, neighbours at 0.26
    assert betti_at_scale(flat, scale=0.15) == (1, 2, 1)


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_full_persistence(seed):
    points = (cloud(30, 2 + seed % 4, seed), grid(30, 2 + seed % 3, 4, seed), sphere(40, seed))[seed % 3]
    result = persistence(points, max_dim=2, engine="ripser")
    for scale in SCALES:
        assert betti_at_scale(points, scale) == betti_numbers(result, scale)


@pytest.mark.parametrize("max_dim", range(4))
def test_one_number_a_dimension(max_dim):
    points = cloud(12, 3)
    assert len(betti_at_scale(points, max_dim=max_dim)) == max_dim + 1
    assert betti_at_scale(points, max_dim=max_dim) == betti_at_scale(points, max_dim=3)[: max_dim + 1]


@pytest.mark.parametrize("scale", SCALES)
def test_few_and_identical_points(scale):
    assert betti_at_scale(cloud(1, 3), scale) == (1, 0, 0)
    assert betti_at_scale(torch.full((20, 50), 0.3), scale) == (1, 0, 0)
    assert betti_at_scale(cloud(2, 3), scale) == (1 if scale == 1 else 2, 0, 0)


def test_cloud_without_edges():
    assert betti_at_scale(cloud(50, 500)) == (50, 0, 0)


def test_invariance():
    points = grid(60, 2, 9, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    for scale in SCALES:
        assert betti_at_scale(rotated(points[order]) * 3 + 7, scale) == betti_at_scale(points, scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type(dtype):
    points = sphere(60).to(dtype)
    assert betti_at_scale(points, 0.3) == betti_at_scale(points.double(), 0.3)


def test_autocast_does_not_round_counts():
    # In bfloat16 the 515 common neighbours of two corners are the 516 neighbours of one, which would be removed.
    square = torch.tensor([[0.0, 0.0]] * 514 + [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert betti_at_scale(square, math.sqrt(0.5)) == (1, 1, 0)


def test_random_state_is_left_alone():
    state = torch.get_rng_state()
    betti_at_scale(sphere(100))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match="betti_at_scale expects a finite scale >= 0"):
        betti_at_scale(cloud(4, 2), scale)
    with pytest.raises(ValueError, match="betti_numbers expects a finite scale >= 0"):
        betti_numbers(persistence(cloud(4, 2)), scale)


def test_bad_dimension_and_points_are_refused():
    with pytest.raises(ValueError, match="max_dim >= 0, but got -1"):
        betti_at_scale(cloud(4, 2), max_dim=-1)
    with pytest.raises(ValueError, match="at least one point"):
        betti_at_scale(torch.zeros(0, 2))


@pytest.mark.gpu
def test_gpu_agrees():
    for points in (rotated(even_sphere(400)), polygon(300), grid(80, 3, 5, seed=0)):
        for scale in SCALES[:4]:
            assert betti_at_scale(points.cuda(), scale) == betti_at_scale(points, scale)


@pytest.mark.parametrize("make", [0, 1, 2])
def test_the_graph_by_single_precision_is_that_of_all_distances(make):
    from lightning_topo.functional._near_graph import near_graph
    from lightning_topo.functional.distances import ROUNDING, pairwise_distances

    generator = torch.Generator().manual_seed(make)
    points = {
        0: torch.randn(400, 60, generator=generator, dtype=torch.float64),
        # a lattice: many pairs at exactly the distance, and at the diameter
        1: torch.randint(2, (400, 20), generator=generator).double(),
        2: 1e30 * (torch.randint(3, (400, 20), generator=generator).double() + 1000),
    }[make]
    distances = pairwise_distances(points)
    for scale in (0.0, 0.25, 0.5, 0.7, 0.7071067811865476, 1.0):
        assert torch.equal(near_graph(points, scale), distances <= (scale + ROUNDING) * distances.max())


def test_a_large_graph_is_collapsed_whatever_the_order_of_its_points():
    """Two circles whose points alternate, of which a sample must not see one alone."""
    t = torch.linspace(0, 2 * torch.pi, 701, dtype=torch.float64)[:-1]
    centre = torch.where(torch.arange(700) % 2 == 0, -5.0, 5.0)
    points = torch.stack([t.cos(), t.sin() + centre], dim=1)
    assert betti_at_scale(points, 0.1) == (2, 2, 0)
