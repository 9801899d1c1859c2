"""What a measurement is going to cost, from its shapes and a short calibration of the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch

from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates.measurement import Measurement, compare

# Coordinates of a compared pair that take as long as one pair of the search, or as one number copied.
_COORDINATES_PER_NUMBER = 100
# Neurons, coordinates and sample of the clouds that are measured to know the machine.
_TINY = (8, 8, 8)
_SMALL = (512, 512, 256)


class Sized(Protocol):
    """What is measured together: so many groups of n neurons of D coordinates on a device."""

    @property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """The groups."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of neurons and of their coordinates."""

    @property
    def device(self) -> torch.device:
        """Where they are compared."""


def expected_seconds(sets: Sequence[Sized], size: int | None) -> float:
    """Seconds that measuring these sets takes, of at most ``size`` neurons a group (None: of all).

    The first call for a device measures two small clouds there, which takes some hundredths of a second.
    """
    total = 0.0
    for alike in sets:
        fixed, each = _calibration(alike.device)
        total += fixed + each * len(alike.groups) * _work(*alike.shape, size)
    return total


def _work(n: int, dimension: int, size: int | None) -> int:
    """Numbers copied, pairs searched, and pairs compared, of one group."""
    compared = n if size is None else min(n, size)
    searched = n if compared < n else 0
    return n * dimension + n * searched + compared**2 * dimension // _COORDINATES_PER_NUMBER


@cache
def _calibration(device: torch.device) -> tuple[float, float]:
    """Seconds of any measurement of a set, and more for each unit of work, on a device."""
    fixed, small = (_seconds(device, *shape) for shape in (_TINY, _SMALL))
    return fixed, max(small - fixed, 0.0) / _work(*_SMALL)


def _seconds(device: torch.device, n: int, dimension: int, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(1, n, dimension, generator=generator).to(device)
    after = before + 1e-3 * torch.randn(1, n, dimension, generator=generator).to(device)
    seconds = []
    for _ in range(3):  # the first loads kernels
        began = time.perf_counter()
        list(Measurement([compare((), before, after, size, 1e-7)]).rows())
        seconds.append(time.perf_counter() - began)
    return min(seconds)
