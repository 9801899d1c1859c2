"""The sharpness of the loss: what is drawn are the records."""

import math
from types import SimpleNamespace

import pytest

from lightning_topo.plots import plot_sharpness
from lightning_topo.plots.picture import png


def record(step, rate=math.nan, critical=math.nan, inverse=math.nan):
    return SimpleNamespace(step=step, learning_rate=rate, critical_lr=critical, inverse=inverse)


def test_rates_and_twice_the_inverse_of_the_largest_eigenvalue():
    records = [record(0, 0.1, 0.4), record(1, inverse=0.3), record(2, 0.2, math.inf), record(3, 0.3, 0.0, 0.25)]
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in plot_sharpness(records).lines}
    assert drawn == {
        "learning rate η": [(0, 0.1), (2, 0.2), (3, 0.3)],
        "critical rate of the loss, η_c": [(0, 0.4)],
        "2/λmax": [(1, 0.6), (3, 0.5)],
    }


@pytest.mark.parametrize("records", [[], [record(0)]])
def test_nothing_to_draw_is_said(records):
    ax = plot_sharpness(records)
    assert [text.get_text() for text in ax.texts] == ["nothing was measured"]
    assert png(ax.figure).startswith(b"\x89PNG")
