"""Which units coincide, against definitions that are checked pair by pair."""

import itertools

import pytest
import torch

from lightning_topo.neurons.merging.clones import coinciding, distances


def fixed(points):
    return lambda merged: points


def test_equal_rows_are_one_and_the_first_stands_for_them():
    points = torch.tensor([[1.0, 2], [0, 0], [1, 2], [3, 4], [0, 0], [1, 2]]).double()
    assert coinciding(fixed(points), 6, 0.0).tolist() == [0, 1, 0, 3, 1, 0]


def test_rows_that_differ_in_the_last_bit_are_two():
    points = torch.ones(2, 3, dtype=torch.float64)
    points[1, 2] += torch.finfo(torch.float64).eps
    assert coinciding(fixed(points), 2, 0.0).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_unit_lies_within_the_limit_of_the_one_that_stands_for_it_and_those_lie_apart(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    merged = coinciding(fixed(points), 60, 0.7)
    apart = [[float((points[i] - points[j]).norm()) for j in range(60)] for i in range(60)]
    assert all(apart[unit][stands] <= 0.7 for unit, stands in enumerate(merged.tolist()))
    assert all(apart[i][j] > 0.7 for i, j in itertools.combinations(sorted(set(merged.tolist())), 2))
    assert len(set(merged.tolist())) < 60
    torch.testing.assert_close(
        distances(points, merged), torch.tensor([apart[u][c] for u, c in enumerate(merged.tolist())]).double()
    )


def test_units_that_are_not_numbers_stand_for_themselves():
    points = torch.tensor([[1.0], [float("nan")], [1.0], [float("nan")], [float("inf")]]).double()
    assert coinciding(fixed(points), 5, 0.5).tolist() == [0, 1, 0, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_units_that_read_their_own_group_are_split_as_a_graph_is_refined(seed):
    """The coarsest equitable partition, found here by brute force over all partitions of six units."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 2, (6, 6), generator=generator).double()
    weights = weights + weights.T if seed % 2 else weights

    def points(merged):
        return torch.zeros(6, 6, dtype=torch.float64).index_add(1, merged, weights)

    found = coinciding(points, 6, 0.0).tolist()
    equitable = [labels for labels in partitions(6) if is_equitable(labels, weights)]
    coarsest = min(equitable, key=lambda labels: len(set(labels)))
    assert [first(found, unit) for unit in range(6)] == [first(coarsest, unit) for unit in range(6)]


def partitions(n):
    if n == 0:
        yield []
        return
    for labels in partitions(n - 1):
        for label in range(max(labels, default=-1) + 2):
            yield [*labels, label]


def is_equitable(labels, weights):
    for i, j in itertools.combinations(range(len(labels)), 2):
        if labels[i] == labels[j]:
            for label in set(labels):
                inside = [k for k, other in enumerate(labels) if other == label]
                if weights[i, inside].sum() != weights[j, inside].sum():
                    return False
    return True


def first(labels, unit):
    return labels.index(labels[unit])
