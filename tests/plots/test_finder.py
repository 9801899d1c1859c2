import math

import pytest

from lightning_topo.finder import TopologicalLRResult, Trial
from lightning_topo.plots.finder import plot_lr_search

HELD = Trial(0.1, True, None, 0.8, (2.3, 0.4))
BROKEN = Trial(0.3, False, 2, 9.0, (2.3, 4.0))
DIVERGED = Trial(1.0, False, 0, math.inf, (2.3, math.nan))
FOUND = TopologicalLRResult("found", (0.1, 0.11), (DIVERGED, BROKEN, HELD))


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_trials_lie_at_their_rate_and_criticality():
    ax = plot_lr_search(FOUND)
    held, broke = ax.collections[:2]
    assert held.get_offsets().tolist() == [[0.1, 0.8]]
    assert broke.get_offsets()[1].tolist() == [0.3, 9.0]
    assert broke.get_offsets()[0].tolist()[1] > 9.0
    assert [text.get_text() for text in ax.texts] == ["κ = ∞"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_last_finite_losses_on_the_right():
    ax = plot_lr_search(FOUND)
    right = next(other for other in ax.figure.axes if other is not ax)
    assert right.collections[0].get_offsets().tolist() == [[0.3, 4.0], [0.1, 0.4]]


def test_rates_and_bracket():
    ax = plot_lr_search(FOUND, safety=0.25)
    assert labels(ax)[-2:] == ["η* = 0.105", "suggestion 0.0262"]
    band = ax.patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(FOUND.bracket)


@pytest.mark.parametrize(
    "result",
    [
        TopologicalLRResult("not_reached", (1.0, math.inf), (HELD,)),
        TopologicalLRResult("below_min", (0.0, 0.3), (BROKEN,)),
    ],
)
def test_without_a_critical_rate_only_the_trials_are_drawn(result):
    ax = plot_lr_search(result)
    assert len(labels(ax)) == 2
    ax.figure.canvas.draw()


def test_draws_on_given_axes():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert FOUND.plot(ax) is ax
