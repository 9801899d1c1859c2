"""Where the neurons start and what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """Neurons (n, D), incoming weights first, and the data they are trained on."""

    neurons: Tensor
    inputs: Tensor
    targets: Tensor
    batch_size: int
    loss: Callable[[Tensor, Tensor], Tensor]


def teacher_task(neurons: Tensor, seed: int, weight_scale: float = 1.0) -> Task:
    """Regression on a teacher of 128 sigmoid units: 5,000 inputs ~ 2·N(0, 1), of which 70% train."""
    generator = torch.Generator().manual_seed(seed)
    dimension = neurons.shape[1] - 1
    inputs = 2 * torch.randn(5000, dimension, generator=generator)
    incoming = weight_scale * torch.randn(128, dimension, generator=generator)
    outgoing = 0.6 * weight_scale * torch.randn(1, 128, generator=generator)
    targets = torch.sigmoid(inputs @ incoming.T) @ outgoing.T
    return Task(neurons, inputs[:3500], targets[:3500], 128, nn.functional.mse_loss)


def closed_curve(n: int) -> Tensor:
    """N angles, half a spacing away from 0, so that no neuron lies on a crossing of the curve."""
    return 2 * math.pi * (torch.arange(n) + 0.5) / n


def figure_eight(n: int = 1024) -> Tensor:
    """(0.1·sin t - 2, sin 2t), one component and two loops."""
    t = closed_curve(n)
    return torch.stack([0.1 * t.sin() - 2, (2 * t).sin()], dim=1)


def two_circles(n: int = 1024) -> Tensor:
    """Circles of radius 1, centres 2.4 apart in the second coordinate, the first times 0.1 minus 2."""
    t = closed_curve(n // 2)
    return torch.cat([torch.stack([0.1 * t.cos() - 2, t.sin() + shift], dim=1) for shift in (-1.2, 1.2)])


def double_torus(n: int, generator: torch.Generator) -> Tensor:
    """Uniform in a solid double torus: two tori, R = 0.5, r = 0.2, at ±0.8 on x, with a soft minimum, turned."""
    kept = torch.empty(0, 3)
    while len(kept) < n:
        p = (2 * torch.rand(16 * n, 3, generator=generator) - 1) * torch.tensor([1.7, 0.9, 0.4])
        rings = [torch.hypot(p[:, 0] - centre, p[:, 1]) - 0.5 for centre in (-0.8, 0.8)]
        signed = torch.stack([torch.hypot(ring, p[:, 2]) - 0.2 for ring in rings])
        kept = torch.cat([kept, p[torch.logsumexp(-5 * signed, dim=0) >= 0]])  # soft minimum <= 0: inside
    return kept[:n] @ rotation(0.6, 0.3, 1.1).T * torch.tensor([0.1, 1, 1]) - torch.tensor([2.0, 0, 0])


def rotation(x: float, y: float, z: float) -> Tensor:
    """Rz(z) Ry(y) Rx(x)."""
    turned = torch.eye(3)
    for angle, (i, j) in ((x, (1, 2)), (y, (2, 0)), (z, (0, 1))):
        step = torch.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        turned = step @ turned
    return turned


def sphere(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Uniform on a unit 2-sphere in the span of three random orthonormal vectors of R^D: one component, one void."""
    frame = torch.linalg.qr(torch.randn(dimension, 3, generator=generator)).Q
    return nn.functional.normalize(torch.randn(n, 3, generator=generator)) @ frame.T
