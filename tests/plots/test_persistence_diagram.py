from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_topo.functional import Persistence, persistence
from lightning_topo.plots import plot_persistence_diagram

INF = math.inf


def _persistence(*diagrams: list[tuple[float, float]], diameter: float = 2.0) -> Persistence:
    tensors = tuple(torch.tensor(d, dtype=torch.float64).reshape(-1, 2) for d in diagrams)
    return Persistence(tensors, diameter=diameter, covering_radius=0.0, n_points=len(tensors[0]))


def _legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_point_a_bar_with_infinite_ones_on_a_line_above_all():
    ax = plot_persistence_diagram(_persistence([(0, 0.3), (0, 1.2), (0, INF)], [(0.5, 1.5)]))
    loose, loop = (np.asarray(collection.get_offsets()) for collection in ax.collections[-2:])
    assert loose[:2].tolist() == [[0, 0.3], [0, 1.2]]
    infinity = loose[2, 1]
    assert infinity > 1.5
    assert any(set(line.get_ydata()) == {infinity} for line in ax.lines)
    assert [text.get_text() for text in ax.texts] == ["∞"]
    assert loop.tolist() == [[0.5, 1.5]]


def test_the_legend_counts_bars_and_those_alive_at_the_scale():
    diagrams = _persistence([(0, 0.3), (0, 1.2), (0, INF)], [(0.5, 1.5)])
    assert _legend(plot_persistence_diagram(diagrams))[:2] == ["H₀: 3 bars, β₀ = 2", "H₁: 1 bar, β₁ = 1"]
    ax = plot_persistence_diagram(diagrams, scale=0.7)
    assert _legend(ax) == ["H₀: 3 bars, β₀ = 1", "H₁: 1 bar, β₁ = 1", "alive at 0.7 · diameter"]


def test_every_point_is_inside_the_axes():
    ax = plot_persistence_diagram(_persistence([(0, 0.01), (0, INF)], [(7.0, 9.0)], diameter=100.0))
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for collection in ax.collections[-2:]:
        for x, y in collection.get_offsets():
            assert left <= x <= right
            assert bottom <= y <= top


def test_draws_on_given_axes():
    ax = plot_persistence_diagram(_persistence([(0, INF)])).figure.add_subplot()
    assert plot_persistence_diagram(_persistence([(0, INF)]), ax=ax) is ax


@pytest.mark.parametrize(
    "diagrams",
    [
        _persistence([(0, INF)], [], diameter=0.0),  # one neuron
        _persistence([(0, 0), (0, 0), (0, INF)], [], diameter=0.0),  # identical neurons
        _persistence([(0, 1e30), (0, INF)], [], diameter=1e30),
        _persistence([(0, 1e-30), (0, INF)], [], diameter=1e-30),
    ],
)
def test_degenerate_clouds_render(diagrams):
    plot_persistence_diagram(diagrams).figure.canvas.draw()


def test_of_a_real_cloud_leaves_pyplot_alone():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    cloud = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    ax = plot_persistence_diagram(persistence(cloud, max_dim=2))
    ax.figure.canvas.draw()
    assert _legend(ax)[0].startswith("H₀: 20 bars")
    assert pyplot.get_fignums() == []
    assert ax.figure.canvas.get_width_height() == (640, 480)


def test_tensorboard_takes_the_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_figure("diagram", plot_persistence_diagram(_persistence([(0, INF)])).figure)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("diagram")
    assert (image.width, image.height) == (640, 480)
