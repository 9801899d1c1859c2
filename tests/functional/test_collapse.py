"""Collapses keep the homology of any graph's clique complex, and do collapse."""

import numpy as np
import pytest
import torch
from ripser import ripser

from lightning_topo.functional._collapse import link_collapse, strong_collapse

COLLAPSES = (strong_collapse, link_collapse)


def homology(adjacency, max_dim=3):
    """Betti numbers of the clique complex: edges of length 1, all others of length 2."""
    distances = np.where(adjacency.numpy(), 1.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    if len(distances) == 1:
        return [1] + [0] * max_dim
    diagrams = ripser(distances, maxdim=max_dim, thresh=1.0, distance_matrix=True)["dgms"]
    return [int(np.isinf(bars[:, 1]).sum()) for bars in diagrams]


def random_graph(n, share, seed):
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(n, n, generator=generator) < share).triu(1)
    return upper | upper.T | torch.eye(n, dtype=torch.bool)


def blown_up(graph, copies):
    """Each point replaced by some that are adjacent to each other: equal neighbourhoods."""
    return graph.repeat_interleave(copies, 0).repeat_interleave(copies, 1)


def exhausted(adjacency, collapse):
    before = 10**9
    while len(adjacency) < before:
        before, adjacency = len(adjacency), collapse(adjacency)
    return adjacency


def octahedron():
    graph = torch.ones(6, 6, dtype=torch.bool)
    graph[range(6), [1, 0, 3, 2, 5, 4]] = False
    return graph


@pytest.mark.parametrize("collapse", COLLAPSES)
@pytest.mark.parametrize("seed", range(100))
def test_homology_of_random_graphs_is_kept(collapse, seed):
    graph = random_graph(6 + seed % 15, (0.2, 0.4, 0.6, 0.8)[seed % 4], seed)
    if seed % 3 == 0:
        graph = blown_up(graph, 2)
    expected = homology(graph)
    while True:
        smaller = collapse(graph)
        assert homology(smaller) == expected
        if len(smaller) == len(graph):
            break
        graph = smaller


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_complete_graph_becomes_a_point(collapse):
    assert len(exhausted(torch.ones(50, 50, dtype=torch.bool), collapse)) == 1


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_equal_neighbourhoods_become_one(collapse):
    # No point of the octahedron itself can go.
    left = exhausted(blown_up(octahedron(), 5), collapse)
    assert len(left) == 6
    assert homology(left) == [1, 0, 1, 0]


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_isolated_points_stay(collapse):
    assert len(collapse(torch.eye(9, dtype=torch.bool))) == 9


def test_links_collapse_where_neighbourhoods_do_not():
    points = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)))
    graph = torch.cdist(points, points) <= 0.7
    by_neighbourhood, by_link = (exhausted(graph, collapse) for collapse in COLLAPSES)
    assert len(by_neighbourhood) > 200
    assert len(by_link) < 100
    expected = homology(graph, max_dim=2)
    assert homology(by_neighbourhood, max_dim=2) == expected
    assert homology(by_link, max_dim=2) == expected
    assert expected[2] == 1


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_result_is_a_graph_and_the_input_is_untouched(collapse):
    graph = blown_up(random_graph(15, 0.6, seed=0), 2)
    before = graph.clone()
    smaller = collapse(graph)
    assert len(smaller) < 30
    assert torch.equal(smaller, smaller.T)
    assert smaller.diagonal().all()
    assert torch.equal(graph, before)
