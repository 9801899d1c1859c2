"""Persistence against closed forms, and its invariants."""

import math
import warnings

import numpy as np
import pytest
import torch

from lightning_topo.functional import Persistence, bottleneck_distance, persistence
from lightning_topo.functional.distances import pairwise_distances

ENGINES = {"ripser": "ripser", "gudhi": "gudhi", "redzed": "redzed_tda"}


@pytest.fixture(params=ENGINES)
def engine(request):
    pytest.importorskip(ENGINES[request.param])
    return request.param


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polygon(m):
    angle = 2 * math.pi * torch.arange(m, dtype=torch.float64) / m
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def rotation(dimension, columns, seed=1):
    return torch.linalg.qr(cloud(dimension, columns, seed)).Q


def bars(diagram):
    return [pytest.approx(bar) for bar in diagram.tolist()]


@pytest.mark.parametrize("m", range(4, 14))
def test_regular_polygon(m, engine):
    # VR of m evenly spaced points with chords of up to k steps is a circle iff 0 < k / m < 1 / 3 (arXiv 1503.03669).
    side, filled = 2 * math.sin(math.pi / m), 2 * math.sin(math.pi * math.ceil(m / 3) / m)
    result = persistence(polygon(m), engine=engine)
    assert result.diagrams[0].tolist() == [pytest.approx([0, side])] * (m - 1) + [[0, math.inf]]
    assert result.diagrams[1].tolist() == [pytest.approx([side, filled])]
    assert result.n_points == m
    assert result.covering_radius == 0.0


def test_rounding_makes_no_bars(engine):
    # In R^100 the equal distances of a grid differ in their last digits.
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3).double()
    exact, rounded = (persistence(x, max_dim=2, engine=engine) for x in (grid, grid @ rotation(100, 3).T + 5))
    for a, b in zip(exact.diagrams, rounded.diagrams, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_cube(engine):
    # At 1 the edge graph of the cube: 12 - 8 + 1 loops. At √2 only antipodes are apart: the 16-cell, a 3-sphere.
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    h0, h1, h2, h3 = persistence(cube, max_dim=3, engine=engine).diagrams
    assert len(h0) == 8
    assert h1.tolist() == [pytest.approx([1, math.sqrt(2)])] * 5
    assert h2.shape == (0, 2)
    assert h3.tolist() == [pytest.approx([math.sqrt(2), math.sqrt(3)])]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_cross_polytope_is_a_sphere(k, engine):
    points = torch.cat([torch.eye(k), -torch.eye(k)]).double()
    diagrams = persistence(points, max_dim=k, engine=engine).diagrams
    assert len(diagrams) == k + 1
    for dimension in range(1, k + 1):
        expected = [pytest.approx([math.sqrt(2), 2])] if dimension == k - 1 else []
        assert diagrams[dimension].tolist() == expected


def test_two_clusters():
    points = torch.cat([cloud(15, 8) * 0.01, cloud(15, 8, seed=3) * 0.01 + 10])
    deaths = persistence(points).diagrams[0][:, 1]
    gap = pairwise_distances(points)[:15, 15:].min()
    assert deaths[-1] == math.inf
    assert deaths[-2] == gap
    assert (deaths[:-2] < 1).all()


def test_spanning_tree_equals_scipy():
    from scipy.sparse.csgraph import minimum_spanning_tree

    points = cloud(80, 3)
    deaths = persistence(points, max_dim=0).diagrams[0][:-1, 1].numpy()
    tree = minimum_spanning_tree(pairwise_distances(points).numpy()).data
    np.testing.assert_array_equal(deaths, np.sort(tree))


@pytest.mark.parametrize("max_dim", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points(n, max_dim, engine):
    result = persistence(cloud(n, 3), max_dim=max_dim, engine=engine)
    assert [diagram.shape[0] for diagram in result.diagrams] == [n] + [0] * max_dim
    assert all(diagram.dtype == torch.float64 and diagram.shape[1] == 2 for diagram in result.diagrams)


def test_identical_points_are_one(engine):
    result = persistence(torch.full((9, 40), 0.3), max_dim=2, engine=engine)
    assert [diagram.tolist() for diagram in result.diagrams] == [[[0.0, math.inf]], [], []]
    assert result.diameter == 0.0


def test_copies_change_nothing(engine):
    points = cloud(25, 2)
    once, thrice = persistence(points, engine=engine), persistence(points.repeat(3, 1), engine=engine)
    for a, b in zip(once.diagrams, thrice.diagrams, strict=True):
        assert torch.equal(a, b)


def test_values_are_exact_edge_lengths(engine):
    points = cloud(60, 20)
    lengths = set(pairwise_distances(points).flatten().tolist())
    finite = torch.cat([d.flatten() for d in persistence(points, max_dim=2, engine=engine).diagrams])
    assert {value for value in finite.tolist() if value < math.inf} <= lengths | {0.0}


def test_bars_shorter_than_float32_are_seen(engine):
    # Four points with sides 1 and diagonals 1 + 1e-9.
    a = (1 + 1e-9) / 2
    h = math.sqrt((1 - 2 * a * a) / 4)
    points = torch.tensor([[a, 0, h], [-a, 0, h], [0, a, -h], [0, -a, -h]], dtype=torch.float64)
    ((birth, death),) = persistence(points, engine=engine).diagrams[1].tolist()
    assert birth == pytest.approx(1, abs=1e-14)
    assert death - birth == pytest.approx(1e-9, rel=1e-4)


def test_invariance_under_isometries_and_scaling():
    points = cloud(40, 5)
    result = persistence(points)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    moved = points[order] @ rotation(30, 5).T * 3 + 7
    for a, b in zip(result.scaled(3).diagrams, persistence(moved).diagrams, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
    assert persistence(moved).diameter == pytest.approx(3 * result.diameter)


@pytest.mark.parametrize("seed", range(3))
def test_engines_give_the_same_bars(seed, engine):
    points = cloud(50, 4, seed)
    ripser, other, auto = (persistence(points, max_dim=2, engine=name) for name in ("ripser", engine, "auto"))
    for a, b, c in zip(ripser.diagrams, other.diagrams, auto.diagrams, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("k", [5, 20, 60])
@pytest.mark.parametrize("make", [lambda: polygon(80), lambda: cloud(80, 3), lambda: cloud(80, 40)])
def test_sample_is_within_twice_its_covering_radius(make, k):
    points = make()
    whole, sample = persistence(points), persistence(points, max_neurons=k)
    assert sample.n_points == k
    assert sample.covering_radius > 0
    assert whole.diameter - 2 * sample.covering_radius <= sample.diameter <= whole.diameter
    assert max(bottleneck_distance(whole, sample)) <= 2 * sample.covering_radius * (1 + 1e-12)


def test_sample_of_all_points_is_the_cloud():
    points = cloud(30, 3)
    for a, b in zip(persistence(points).diagrams, persistence(points, max_neurons=30).diagrams, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type(dtype):
    points = cloud(30, 3).to(dtype)
    for a, b in zip(persistence(points).diagrams, persistence(points.double()).diagrams, strict=True):
        assert torch.equal(a, b)


def test_more_columns_than_rows_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        persistence(cloud(10, 200), engine="ripser")


def test_is_deterministic_and_leaves_random_state_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second = (persistence(cloud(60, 3), max_neurons=40) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.diagrams, second.diagrams, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_scaled_scales_everything():
    diagrams = (torch.tensor([[0.0, 1.0], [0.0, math.inf]]).double(), torch.zeros(0, 2).double())
    double = Persistence(diagrams, diameter=4.0, covering_radius=0.5, n_points=7).scaled(2)
    assert double.diagrams[0].tolist() == [[0.0, 2.0], [0.0, math.inf]]
    assert (double.diameter, double.covering_radius, double.n_points) == (8.0, 1.0, 7)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_scaled_refuses_other_factors(factor):
    with pytest.raises(ValueError, match="positive finite factor"):
        persistence(cloud(3, 2)).scaled(factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_dim": -1}, "max_dim >= 0, but got -1"),
        ({"max_neurons": 0}, "max_neurons >= 1 or None for all points, but got 0"),
        ({"engine": "giotto"}, "'auto', 'ripser', 'gudhi', 'redzed', but got 'giotto'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        persistence(cloud(5, 2), **options)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="persistence expects finite points"):
        persistence(torch.tensor([[math.nan, 0.0]]))


@pytest.mark.parametrize(
    ("name", "advice"), [("gudhi", "pip install gudhi scikit-learn"), ("redzed", "pip install redzed-tda")]
)
def test_a_missing_extra(monkeypatch, name, advice):
    import sys

    for module in ("gudhi.sklearn.rips_persistence", "gudhi.sklearn", "gudhi", "redzed_tda"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=advice):
        persistence(polygon(5), engine=name)
    assert len(persistence(polygon(5), engine="auto").diagrams[1]) == 1


@pytest.mark.gpu
def test_gpu_agrees():
    points = cloud(60, 30)
    for a, b in zip(persistence(points.cuda()).diagrams, persistence(points).diagrams, strict=True):
        assert not a.is_cuda
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)
