"""Bottleneck distance against all matchings, and the axioms and bounds that it obeys."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from lightning_topo.functional import Persistence, bottleneck_distance, persistence


def diagrams(*bars):
    tensors = tuple(torch.as_tensor(b, dtype=torch.float64).reshape(-1, 2) for b in bars)
    return Persistence(tensors, diameter=1.0, covering_radius=0.0, n_points=4)


def over_all_matchings(p, q):
    def alone(bars):
        return max(((d - b) / 2 for b, d in bars), default=0.0)

    best = math.inf
    for k in range(min(len(p), len(q)) + 1):
        for i in combinations(range(len(p)), k):
            for j in permutations(range(len(q)), k):
                pairs = [abs(p[a] - q[b]).max() for a, b in zip(i, j, strict=True)]
                rest = alone(np.delete(p, i, 0)), alone(np.delete(q, j, 0))
                best = min(best, max([*pairs, *rest]))
    return best


def random_bars(rng, n, levels=None, born_at_zero=False):
    bars = rng.uniform(0, 1, (n, 2)) if levels is None else rng.integers(0, levels, (n, 2)).astype(float)
    bars[:, 1] += bars[:, 0] + (0.01 if levels is None else 1)
    if born_at_zero:
        bars[:, 0] = 0
    return bars


@pytest.mark.parametrize("born_at_zero", [False, True])
@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(40))
def test_equals_the_best_of_all_matchings(seed, levels, born_at_zero):
    rng = np.random.default_rng(seed)
    p, q = (random_bars(rng, rng.integers(0, 5), levels, born_at_zero) for _ in range(2))
    expected = over_all_matchings(p, q)
    assert bottleneck_distance(diagrams(p), diagrams(q)) == (pytest.approx(expected, abs=1e-15),)


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_of_components_equals_the_search(seed):
    rng = np.random.default_rng(seed)
    p, q = (random_bars(rng, n, born_at_zero=True) for n in (30, 25))
    # One short bar with another birth, in both, keeps the distance and takes the other path.
    other = [[[1e-9, 2e-9]], [[1e-9, 2e-9]]]
    searched = bottleneck_distance(diagrams(np.append(p, other[0], 0)), diagrams(np.append(q, other[1], 0)))
    assert bottleneck_distance(diagrams(p), diagrams(q)) == pytest.approx(searched, abs=1e-8)


def test_known_values():
    ring, other, none = [[1.0, 3.0]], [[1.5, 3.0]], []
    assert bottleneck_distance(diagrams(ring), diagrams(other)) == (0.5,)
    assert bottleneck_distance(diagrams(ring), diagrams(none)) == (1.0,)
    assert bottleneck_distance(diagrams(none), diagrams(none)) == (0.0,)
    assert bottleneck_distance(diagrams(ring, none), diagrams(other, other)) == (0.5, 0.75)


def test_endless_bars_are_matched_by_birth():
    p = [[0.0, math.inf], [3.0, math.inf], [0.0, 1.0]]
    q = [[2.5, math.inf], [0.25, math.inf]]
    assert bottleneck_distance(diagrams(p), diagrams(q)) == (0.5,)
    assert bottleneck_distance(diagrams(p), diagrams(q[:1])) == (math.inf,)


def test_is_a_metric():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b, c = (diagrams(random_bars(rng, rng.integers(1, 20))) for _ in range(3))
        (ab,), (bc,), (ac,) = bottleneck_distance(a, b), bottleneck_distance(b, c), bottleneck_distance(a, c)
        assert bottleneck_distance(a, a) == (0.0,)
        assert bottleneck_distance(b, a) == (ab,)
        assert ac <= ab + bc + 1e-15


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1e-6, 0.01, 0.3])
def test_stability(seed, step):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    moved = points + step * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    farthest = float((moved - points).norm(dim=1).max())
    distances = bottleneck_distance(persistence(points, 2), persistence(moved, 2))
    assert 0 < max(distances) <= 2 * farthest


def test_scaling_a_cloud():
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, large = persistence(points), persistence(5 * points)
    assert max(bottleneck_distance(small.scaled(5), large)) < 1e-12
    assert max(bottleneck_distance(small.scaled(1 / small.diameter), large.scaled(1 / large.diameter))) < 1e-12


def test_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="same dimensions, but got 1 and 2"):
        bottleneck_distance(diagrams([]), diagrams([], []))
