from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_topo.functional import Persistence, betti_numbers, persistence
from lightning_topo.plots import plot_betti_curves


def _ring(noise: float = 0.0) -> Persistence:
    t = torch.arange(30, dtype=torch.float64) * 2 * math.pi / 30
    points = torch.stack([t.cos(), t.sin()], 1)
    return persistence(points + noise * torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))


def test_a_curve_a_dimension_shows_the_numbers():
    ring = _ring(0.1)
    lines = plot_betti_curves(ring).lines
    for k in (0, 1):
        x, y = (np.asarray(part) for part in lines[k].get_data())
        for i in range(0, len(x), 37):
            assert y[i] == betti_numbers(ring, x[i])[k]


def test_the_start_is_told_apart():
    ax = plot_betti_curves(_ring(0.1), start=_ring())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["b₀ at the start", "b₁ at the start", "b₀", "b₁", "0.25 · diameter"]
    assert [line.get_linestyle() for line in ax.lines[:4]] == ["--", "--", "-", "-"]
    assert ax.lines[0].get_color() == ax.lines[2].get_color() != ax.lines[1].get_color()


def test_marks_the_scale():
    ax = plot_betti_curves(_ring(), scale=0.4)
    assert ax.lines[-1].get_xdata() == [0.4, 0.4]
    assert ax.get_legend().get_texts()[-1].get_text() == "0.4 · diameter"


@pytest.mark.parametrize("points", [torch.ones(5, 3), torch.ones(1, 3), 1e30 * torch.eye(4), torch.eye(900)])
def test_degenerate_clouds_render(points):
    plot_betti_curves(persistence(points, max_dim=0), persistence(points[:1])).figure.canvas.draw()
