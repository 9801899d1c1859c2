from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_topo.functional import Persistence
from lightning_topo.plots import plot_barcode

INF = math.inf


def _persistence(*diagrams: list[tuple[float, float]], diameter: float = 2.0) -> Persistence:
    tensors = tuple(torch.tensor(d, dtype=torch.float64).reshape(-1, 2) for d in diagrams)
    return Persistence(tensors, diameter=diameter, covering_radius=0.0, n_points=len(tensors[0]))


def _bars(ax, dimension: int) -> np.ndarray:
    """Birth, end and height of each bar drawn, from the bottom."""
    lines = [c for c in ax.collections if hasattr(c, "get_segments")][dimension]
    return np.array([[segment[0][0], segment[1][0], segment[0][1]] for segment in lines.get_segments()])


def test_bars_are_sorted_by_birth_then_death():
    ax = plot_barcode(_persistence([(0, 0.9), (0, 0.2), (0, INF)], [(0.5, 0.6), (0.1, 0.8), (0.1, 0.3)]))
    assert _bars(ax, 0)[:2, :2].tolist() == [[0, 0.2], [0, 0.9]]
    assert _bars(ax, 1)[:, :2].tolist() == [[0.1, 0.3], [0.1, 0.8], [0.5, 0.6]]
    assert (np.diff(np.concatenate([_bars(ax, 0)[:, 2], _bars(ax, 1)[:, 2]])) > 0).all()


def test_infinite_bars_outlast_all_and_end_in_an_arrow():
    ax = plot_barcode(_persistence([(0, 0.9), (0, INF)], [(0.5, 3.0)]))
    end, height = _bars(ax, 0)[1, 1:]
    assert end > 3.0
    arrows = ax.collections[1].get_offsets()
    assert np.asarray(arrows).tolist() == [[end, height]]


def test_keeps_the_longest_and_says_how_many_are_left_out():
    loops = [(0.1 * k, 0.1 * k + 0.01 * (k + 1)) for k in range(10)]
    ax = plot_barcode(_persistence([(0, INF)], loops), max_bars=3)
    assert _bars(ax, 1)[:, :2] == pytest.approx(np.array(loops[-3:]))
    assert [text.get_text() for text in ax.texts] == ["H₀: 1 bar", "H₁: 10 bars, 7 shortest not shown"]


def test_marks_the_scale():
    ax = plot_barcode(_persistence([(0, INF)], diameter=8.0), scale=0.5)
    assert ax.lines[0].get_xdata() == [4.0, 4.0]
    assert ax.get_title(loc="right") == "dotted: 0.5 · diameter"


@pytest.mark.parametrize(
    "diagrams",
    [
        _persistence([(0, INF)], [], diameter=0.0),
        _persistence([(0, 0), (0, INF)], [], [], diameter=0.0),
        _persistence([(0, 1e30), (0, INF)], diameter=1e30),
        _persistence([(0, 1.0)] * 5000 + [(0, INF)], diameter=1.0),
    ],
)
def test_degenerate_clouds_render(diagrams):
    plot_barcode(diagrams).figure.canvas.draw()


def test_bad_max_bars():
    with pytest.raises(ValueError, match="max_bars >= 1, got 0"):
        plot_barcode(_persistence([(0, INF)]), max_bars=0)
