"""Persistence and Betti numbers against gudhi's Rips complex, bottleneck distances against gudhi and persim."""

import math

import numpy as np
import pytest
import torch

from lightning_topo.functional import betti_at_scale, betti_numbers, bottleneck_distance, persistence
from lightning_topo.functional._collapse import link_collapse, strong_collapse

gudhi = pytest.importorskip("gudhi")


def normal(n, dimension, seed):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(n, seed):
    return 2 * math.pi * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(n, seed=0, dimension=794):
    frame = torch.linalg.qr(normal(dimension, 3, seed + 1)).Q
    return torch.nn.functional.normalize(normal(n, 3, seed)) @ frame.T


def figure_eight(n, seed=0):
    t = angles(n, seed)
    return torch.stack([0.1 * t.sin() - 2, (2 * t).sin()], dim=1)


def two_circles(n, seed=0):
    t = angles(n, seed)
    centre = torch.where(torch.arange(n) % 2 == 0, -1.2, 1.2)
    return torch.stack([0.1 * t.cos() - 2, t.sin() + centre], dim=1)


def gaussian(n, seed=0):
    return normal(n, 64, seed)


def rips_complex(points, max_dim, max_edge=math.inf):
    """gudhi's simplex tree, with its persistence computed in all dimensions up to ``max_dim``."""
    tree = gudhi.RipsComplex(points=points.numpy(), max_edge_length=max_edge).create_simplex_tree(max_dim + 1)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    return tree


def rips_betti(points, scale):
    tree = rips_complex(points, 2, scale * float(torch.pdist(points).max()))
    return (*tree.betti_numbers(), 0, 0, 0)[:3]


def in_order(bars):
    return sorted(map(tuple, np.asarray(bars).reshape(-1, 2).tolist()))


@pytest.mark.parametrize(
    ("make", "n"), [(sphere, 1024), (figure_eight, 150), (two_circles, 150), (gaussian, 1024), (sphere, 200)]
)
def test_betti_numbers_at_a_quarter_of_the_diameter(make, n):
    points = make(n)
    assert betti_at_scale(points) == rips_betti(points, 0.25)


@pytest.mark.parametrize("make", [sphere, figure_eight, two_circles, gaussian])
def test_betti_numbers_of_the_full_persistence(make):
    points = make(100)
    for scale in (0.05, 0.15, 0.25, 0.3):
        truth = rips_betti(points, scale)
        assert betti_at_scale(points, scale) == truth
        assert betti_numbers(persistence(points, max_dim=2, engine="ripser"), scale) == truth


@pytest.mark.parametrize("seed", range(60))
def test_betti_numbers_of_small_clouds_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(5, (8 + seed % 20, 2 + seed % 3), generator=generator).double()
    for scale in (0.2, 0.25, 0.5, 0.8):
        assert betti_at_scale(points, scale) == rips_betti(points, scale)


@pytest.mark.parametrize("collapse", [strong_collapse, link_collapse])
@pytest.mark.parametrize("seed", range(30))
def test_collapses_keep_the_homology_of_random_graphs(collapse, seed):
    def homology(graph):
        tree = gudhi.SimplexTree()
        tree.insert_batch(np.arange(len(graph)).reshape(1, -1), np.zeros(len(graph)))
        tree.insert_batch(graph.triu(1).nonzero().T.numpy(), np.zeros(int(graph.triu(1).sum())))
        tree.expansion(4)
        tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
        return (*tree.betti_numbers(), 0, 0, 0, 0)[:4]

    share = (0.3, 0.5, 0.7)[seed % 3]
    upper = (torch.rand(24, 24, generator=torch.Generator().manual_seed(seed)) < share).triu(1)
    graph = upper | upper.T | torch.eye(24, dtype=torch.bool)
    assert homology(collapse(graph)) == homology(graph)


@pytest.mark.parametrize("engine", ["ripser", "gudhi"])
@pytest.mark.parametrize("make", [sphere, figure_eight, two_circles, gaussian])
def test_diagrams(make, engine):
    points = make(60)
    tree = rips_complex(points, 2)
    for dimension, diagram in enumerate(persistence(points, max_dim=2, engine=engine).diagrams):
        truth = in_order(tree.persistence_intervals_in_dimension(dimension))
        assert len(diagram) == len(truth)
        np.testing.assert_allclose(diagram.numpy(), np.reshape(truth, (-1, 2)), atol=1e-11)


@pytest.mark.parametrize("make", [sphere, figure_eight, two_circles, gaussian])
def test_larger_diagrams(make):
    from gudhi.sklearn.rips_persistence import RipsPersistence

    points = make(256)
    truth = RipsPersistence([0, 1], homology_coeff_field=2).fit_transform([points.numpy()])[0]
    for diagram, other in zip(persistence(points, engine="ripser").diagrams, truth, strict=True):
        # gudhi keeps bars that only the rounding of equal lengths makes.
        other = other[other[:, 1] - other[:, 0] > 1e-12]
        np.testing.assert_allclose(diagram.numpy(), np.reshape(in_order(other), (-1, 2)), atol=1e-6)


@pytest.mark.parametrize("make", [sphere, figure_eight, two_circles, gaussian])
@pytest.mark.parametrize("seed", range(3))
def test_bottleneck_distances(make, seed):
    p, q = (persistence(make(70, seed=s)) for s in (seed, seed + 10))
    for distance, a, b in zip(bottleneck_distance(p, q), p.diagrams, q.diagrams, strict=True):
        assert distance > 0
        assert distance == pytest.approx(gudhi.bottleneck_distance(a.numpy(), b.numpy()), abs=1e-12)


@pytest.mark.parametrize("make", [sphere, two_circles])
def test_bottleneck_distances_of_persim(make):
    persim = pytest.importorskip("persim")
    p, q = (persistence(make(50, seed=s)) for s in (0, 1))
    for distance, a, b in zip(bottleneck_distance(p, q), p.diagrams, q.diagrams, strict=True):
        a, b = (bars[bars[:, 1].isfinite()].numpy() for bars in (a, b))
        assert distance == pytest.approx(persim.bottleneck(a, b), abs=1e-6)


@pytest.mark.parametrize("k", [10, 40])
def test_sample_is_within_twice_its_covering_radius(k):
    points = two_circles(120)
    whole, sample = persistence(points), persistence(points, max_neurons=k)
    for a, b in zip(whole.diagrams, sample.diagrams, strict=True):
        distance = gudhi.bottleneck_distance(a.numpy(), b.numpy())
        assert distance <= 2 * sample.covering_radius * (1 + 1e-12)
