"""Every bar of the engines on random clouds with ties and duplicates: `CLOUDS=10000 pytest` tries ten thousand."""

import math
import os

import pytest
import torch

from lightning_topo.functional import persistence

N_CLOUDS = int(os.environ.get("CLOUDS", "250"))


def lattice(n, dimension, generator):
    return torch.randint(5, (n, dimension), generator=generator).double()


def normal(n, dimension, generator):
    return torch.randn(n, dimension, generator=generator).double()


def with_copies(n, dimension, generator):
    points = normal(n, dimension, generator)
    points[torch.randint(n, (n // 3,), generator=generator)] = points[0].clone()
    return points


def polygon(n, dimension, generator):
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def two_lattices(n, dimension, generator):
    return 0.1 * torch.randint(3, (n, dimension), generator=generator).double() + lattice(n, dimension, generator) // 3


KINDS = [lattice, normal, with_copies, polygon, two_lattices]


@pytest.mark.parametrize("engine", ["gudhi", "redzed_tda"])
@pytest.mark.parametrize("make", KINDS)
def test_engines_agree_on_every_bar(make, engine):
    pytest.importorskip(engine)
    n_bars = 0
    for seed in range(N_CLOUDS // len(KINDS)):
        generator = torch.Generator().manual_seed(seed)
        points = make(4 + seed % 29, 1 + seed // 29 % 4, generator)
        top = 2 if len(points) > 16 else 3
        ours, other = (persistence(points, top, engine=name) for name in ("ripser", engine.removesuffix("_tda")))
        n_bars += sum(map(len, ours.diagrams))
        for a, b in zip(ours.diagrams, other.diagrams, strict=True):
            assert torch.equal(a, b), seed
    assert n_bars > N_CLOUDS
