"""Clouds and their constants by the definition: pair by pair, in double precision and plain numpy."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch


@dataclass
class Truth:
    criticality: float
    lower: float
    upper: float
    n_unresolved: int
    criticalities: dict[tuple[int, int], float]


def loop(before, after, eps):
    p, q = before.double().numpy(), after.double().numpy()
    error = 2 * eps
    lowers, uppers, criticalities, n_unresolved = [], [], {}, 0
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            distance = math.sqrt(float(np.sum((p[i] - p[j]) ** 2)))
            moved = math.sqrt(float(np.sum(((q[i] - p[i]) - (q[j] - p[j])) ** 2)))
            least_before = error * math.sqrt(float(np.sum(p[i] ** 2) + np.sum(p[j] ** 2)))
            least_after = error * math.sqrt(float(np.sum(q[i] ** 2) + np.sum(q[j] ** 2)))
            if distance <= least_before or 0 < moved < least_after:
                n_unresolved += 1
                continue
            ratio = math.sqrt(float(np.sum((q[i] - q[j]) ** 2))) / distance
            lowers.append(ratio)
            uppers.append(ratio)
            criticalities[i, j] = moved / distance
    if not criticalities:
        return Truth(math.nan, math.nan, math.nan, n_unresolved, {})
    return Truth(max(criticalities.values()), min(lowers), max(uppers), n_unresolved, criticalities)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nearly_equal(n, dimension):
    p = noise(n, dimension)
    p[1] = p[0] + 1e-4 * noise(1, dimension, seed=2)[0]
    p[3] = p[2] + 1e-2 * noise(1, dimension, seed=3)[0]
    return p


def identical(n, dimension):
    p = noise(n, dimension)
    p[4 : n // 2] = p[4]
    return p


POINTS = {
    "random": noise,
    "nearly equal": nearly_equal,
    "identical": identical,
    "all identical": lambda n, dimension: noise(1, dimension).expand(n, dimension).clone(),
    "far off": lambda n, dimension: noise(n, dimension) + 1000.0,
    "line": lambda n, dimension: torch.linspace(-1, 1, n).double()[:, None] + 0.01 * noise(n, dimension),
    "sizes": lambda n, dimension: torch.logspace(-6, 0, n).double()[:, None] * noise(n, dimension),
    "minute": lambda n, dimension: 1e-30 * noise(n, dimension),
    "huge": lambda n, dimension: 1e30 * noise(n, dimension),
}


def dead(p):
    u = 0.01 * p.abs().max() * noise(*p.shape, seed=1)
    u[::2] = 0
    return u


UPDATES = {
    "small": lambda p: 1e-3 * p.std() * noise(*p.shape, seed=1),
    "tiny": lambda p: 1e-6 * p.std() * noise(*p.shape, seed=1),
    "large": lambda p: 3.0 * p.std() * noise(*p.shape, seed=1),
    "together": lambda p: p.std() * (10 * noise(p.shape[1], seed=1) + 0.01 * noise(*p.shape, seed=2)),
    "shrinking": lambda p: -0.1 * p + 1e-4 * p.std() * noise(*p.shape, seed=1),
    "none": torch.zeros_like,
    "dead": dead,
    "one": lambda p: torch.nn.functional.pad(p[:1] * 0.5, (0, 0, 7, len(p) - 8)),
    "merging": lambda p: torch.nn.functional.pad((p[1] - p[0])[None], (0, 0, 0, len(p) - 1)),
}


def cloud(points, update, shape, dtype):
    before = POINTS[points](*shape)
    return before.to(dtype), (before.to(dtype).double() + UPDATES[update](before)).to(dtype)


@pytest.fixture
def pair_loop():
    """The definition: before, after, eps -> Truth."""
    return loop


@pytest.fixture
def update_cloud():
    """Makes a cloud before and after an update: name of the points, name of the update, shape, dtype."""
    return cloud


@pytest.fixture(params=POINTS)
def points_name(request):
    return request.param


@pytest.fixture(params=UPDATES)
def update_name(request):
    return request.param


@pytest.fixture(params=[(16, 5), (12, 300), (50, 40)], ids=str)
def shape(request):
    return request.param
