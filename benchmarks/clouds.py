"""Neuron clouds whose topology is known, for the benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sphere(n: int, dimension: int = 794, seed: int = 0) -> Tensor:
    """A 2-sphere in R^dimension, by a random orthonormal 3-frame: the paper's initialisation."""
    generator = _generator(seed)
    points = torch.nn.functional.normalize(_normal(n, 3, generator))
    return points @ torch.linalg.qr(_normal(dimension, 3, generator)).Q.T


def figure_eight(n: int, seed: int = 0) -> Tensor:
    """The curve (0.1 sin t - 2, sin 2t), a flat figure-eight in R^2."""
    t = _angles(n, _generator(seed))
    return torch.stack([0.1 * t.sin() - 2, (2 * t).sin()], dim=1)


def two_circles(n: int, seed: int = 0) -> Tensor:
    """Two circles side by side in R^2, flattened to a tenth of their width."""
    t = _angles(n, _generator(seed))
    centre = torch.where(torch.arange(n) % 2 == 0, -1.2, 1.2)
    return torch.stack([0.1 * t.cos() - 2, t.sin() + centre], dim=1)


def gaussian(n: int, dimension: int = 64, seed: int = 0) -> Tensor:
    """A standard normal cloud."""
    return _normal(n, dimension, _generator(seed))


def double_torus(n: int, seed: int = 0) -> Tensor:
    """Two tori in R^3 (radii 1 and 0.4) whose tubes meet."""
    generator = _generator(seed)
    around, tube = _angles(n, generator), _angles(n, generator)
    radius = 1 + 0.4 * tube.cos()
    centre = torch.where(torch.arange(n) % 2 == 0, -1.2, 1.2)
    return torch.stack([radius * around.cos() + centre, radius * around.sin(), 0.4 * tube.sin()], dim=1)


CLOUDS = {
    "2-sphere in R^794": sphere,
    "figure-eight": figure_eight,
    "two circles": two_circles,
    "Gaussian in R^64": gaussian,
    "double torus": double_torus,
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def _angles(n: int, generator: torch.Generator) -> Tensor:
    return 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
