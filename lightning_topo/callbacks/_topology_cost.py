"""What a measurement of a group's topology is going to cost, from its shapes and the speed of the machine."""

from __future__ import annotations

import time
from functools import cache

import torch

# On one core on which a product of 512 x 512 matrices in double precision takes 10 ms (benchmarks/scaling.py): what a
# measurement takes in any case, for each compared neuron, for each coordinate of each compared pair, and for the
# singular values of the activations, for each unit (256 rows of 1,024 units: 55 ms).
_REFERENCE = 0.010
_SECONDS, _PER_NEURON, _PER_COORDINATE, _PER_UNIT = 0.03, 3e-4, 7e-10, 6e-5


def expected_seconds(n: int, dimension: int, n_compared: int) -> float:
    """Seconds that a measurement of a group takes, its first sample included: rather too many.

    Args:
        n: Neurons of the group.
        dimension: Coordinates of each.
        n_compared: Neurons of which Betti numbers are computed.
    """
    compared = min(n, n_compared)
    topology = _SECONDS + _PER_NEURON * compared + _PER_COORDINATE * n * compared * dimension
    return _slowness() * (topology + _PER_UNIT * n)


@cache
def _slowness() -> float:
    """How many times longer this machine takes than the one on which the constants were measured."""
    matrix = torch.ones(512, 512, dtype=torch.float64)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return min(seconds) / _REFERENCE
