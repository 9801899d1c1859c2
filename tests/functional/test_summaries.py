"""Entropy and total persistence against closed forms."""

import math

import pytest
import torch

from lightning_topo.functional import Persistence, persistence, persistence_entropy, total_persistence


def diagrams(*bars):
    tensors = tuple(torch.tensor(b, dtype=torch.float64).reshape(-1, 2) for b in bars)
    return Persistence(tensors, diameter=1.0, covering_radius=0.0, n_points=4)


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("m", [1, 2, 7])
def test_equal_bars_have_the_entropy_of_their_number(m):
    assert persistence_entropy(diagrams([[1.0, 3.0]] * m)) == (pytest.approx(math.log(m), abs=1e-15),)


def test_unequal_bars():
    (entropy,) = persistence_entropy(diagrams([[0.0, 1.0], [2.0, 5.0]]))
    assert entropy == pytest.approx(math.log(4) - 0.75 * math.log(3))


def test_endless_and_missing_bars_count_nothing():
    result = diagrams([[0.0, 2.0], [0.0, 2.0], [0.0, math.inf]], [], [[1.0, math.inf]])
    assert persistence_entropy(result) == (pytest.approx(math.log(2)), 0.0, 0.0)
    assert total_persistence(result) == (4.0, 0.0, 0.0)


@pytest.mark.parametrize(("order", "expected"), [(1, 4.0), (2, 10.0), (0.5, 1 + math.sqrt(3))])
def test_total_persistence_of_an_order(order, expected):
    assert total_persistence(diagrams([[0.0, 1.0], [2.0, 5.0]]), order) == (pytest.approx(expected),)


def test_total_persistence_of_components_is_a_spanning_tree():
    line = torch.tensor([[0.0], [1.5], [5.0], [7.0]])
    assert total_persistence(persistence(line))[0] == 7.0


def test_scaling_the_cloud():
    points = cloud(30, 3)
    one, three = persistence(points), persistence(3 * points)
    assert persistence_entropy(three) == pytest.approx(persistence_entropy(one))
    assert total_persistence(three, order=2) == pytest.approx([9 * x for x in total_persistence(one, order=2)])


def test_results_are_floats():
    for values in (persistence_entropy(persistence(cloud(9, 2))), total_persistence(persistence(cloud(9, 2)))):
        assert [type(value) for value in values] == [float, float]


@pytest.mark.parametrize("order", [0, -1.0, math.nan, math.inf])
def test_bad_orders_are_refused(order):
    with pytest.raises(ValueError, match="positive finite order"):
        total_persistence(diagrams([]), order)
