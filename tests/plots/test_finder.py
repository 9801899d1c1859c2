import json
import math

import pytest
from matplotlib.figure import Figure

from lightning_topo.finder import ShareTrial, TopologicalLRResult, Trial
from lightning_topo.plots.finder import plot_lr_search

FIRST = Trial(100.0, False, 0, 700.0, (2.3,))
DIVERGED = Trial(0.3, False, 1, math.inf, (2.3, math.nan))
BROKEN = Trial(0.11, False, 2, 9.0, (2.3, 2.0, 4.0))
HELD = Trial(0.1, True, None, 0.8, (2.3, 1.0, 0.4, 0.3))
FOUND = TopologicalLRResult("found", (0.1, 0.11), (FIRST, DIVERGED, BROKEN, HELD))


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def below(ax):
    return ax.figure.axes[-1]


def test_trials_near_the_answer_lie_at_their_rate_and_criticality():
    ax = plot_lr_search(FOUND)
    held, broke = ax.collections[:2]
    assert held.get_offsets().tolist() == [[0.1, 0.8]]
    assert [rate for rate, _ in broke.get_offsets().tolist()] == [0.3, 0.11]
    assert broke.get_offsets()[1].tolist() == [0.11, 9.0]
    assert broke.get_offsets()[0].tolist()[1] > 9.0
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_picture_is_of_the_answer_and_says_what_it_leaves_out():
    """A search begins at 100: empty decades are not drawn."""
    ax = plot_lr_search(FOUND)
    low, high = ax.get_xlim()
    assert low < FOUND.suggestion() < FOUND.critical_lr < high
    assert high / low < 100
    assert [text.get_text() for text in ax.texts] == ["κ = ∞", "1 more, up to 100 →"]


def test_each_course_of_losses_and_where_it_broke():
    ax = below(plot_lr_search(FOUND))
    lines = {line.get_label(): line for line in ax.lines}
    assert lines.keys() == {"0.11", "0.1", "_broke"}  # one update has no course, and of two of which one is NaN none
    assert lines["0.1"].get_ydata().tolist() == [2.3, 1.0, 0.4, 0.3]
    assert lines["_broke"].get_xdata().tolist() == [2]
    assert lines["_broke"].get_ydata().tolist() == [min(4.0, ax.get_ylim()[1])]  # at the edge where the loss has left


def test_short_trials_are_drawn_and_the_picture_is_of_their_losses():
    short = (ShareTrial(0.05, (2.3, 1.5, 0.9), 3, 0.9), ShareTrial(0.025, (2.3, 1.9, 1.6), 3, 1.6))
    wild = Trial(0.1, True, None, 0.8, (2.3, 50.0, 60.0))
    result = TopologicalLRResult("found", (0.1, 0.11), (BROKEN, wild), 0.48, short)
    ax = plot_lr_search(result)
    assert labels(ax)[-1] == "short trials"
    strokes = ax.collections[-1]
    assert [rate for rate, _ in strokes.get_offsets().tolist()] == [0.05, 0.025]
    lower = below(ax)
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["0.05", "0.025"]
    assert lower.get_ylim()[0] < 0.9 < 2.3 < lower.get_ylim()[1] < 5
    assert ax.get_xlim()[0] < 0.025


def test_loss_that_diverges_leaves_the_picture():
    wild = Trial(0.12, False, 3, 2.0, (2.3, 5.0, 1e6))
    ax = below(plot_lr_search(TopologicalLRResult("found", (0.1, 0.12), (wild, HELD))))
    assert ax.get_ylim()[0] < 0.3 < 2.3 < ax.get_ylim()[1] < 10


def test_rates_and_bracket():
    for ax, share in ((plot_lr_search(FOUND), 0.0262), (FOUND.plot(safety=0.5), 0.0524)):
        assert labels(ax)[-2:] == ["η* = 0.105", f"suggestion {share}"]
        band = ax.patches[0]
        corners = ax.transData.inverted().transform(band.get_window_extent())  # a polygon in matplotlib 3.8
    assert tuple(corners[:, 0]) == pytest.approx(FOUND.bracket)
    assert labels(FOUND.plot(suggest=False)) == ["held", "broke", "η* = 0.105"]


@pytest.mark.parametrize(
    "result",
    [
        TopologicalLRResult("not_reached", (1.0, math.inf), (Trial(1.0, True, None, 0.2, (2.0, 1.0)),)),
        TopologicalLRResult("below_min", (0.0, 0.3), (FIRST, DIVERGED)),
        TopologicalLRResult("below_min", (0.0, 0.3), ()),
        TopologicalLRResult("found", (0.1, 0.11), (BROKEN, Trial(0.1, True, None, 0.8, (1.0, 1.0, 1.0)))),
    ],
)
def test_every_result_can_be_drawn(result):
    ax = plot_lr_search(result)
    assert [label for label in labels(ax) if label.startswith("η*")] == (["η* = 0.105"] if result.critical_lr else [])
    ax.figure.canvas.draw()


def test_draws_on_given_axes_and_within_their_place():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    place = right.get_position()
    assert FOUND.plot(right) is right
    assert figure.axes[:2] == [left, right]
    for ax in figure.axes[1:]:
        assert place.x0 <= ax.get_position().x0 < ax.get_position().x1 <= place.x1 + 1e-9
        assert place.y0 <= ax.get_position().y0 < ax.get_position().y1 <= place.y1 + 1e-9


def test_notebooks_show_the_axes_that_are_returned():
    assert FOUND.plot()._repr_png_().startswith(b"\x89PNG")


def test_window_is_opened_only_when_it_is_asked_for(monkeypatch):
    from matplotlib import pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    monkeypatch.setattr(plt, "get_backend", lambda: "QtAgg")
    FOUND.plot()
    assert plt.get_fignums() == shown == []
    FOUND.plot(show=True)
    assert len(shown) == len(shown[0]) == 1
    plt.close("all")


def test_no_display_is_said():
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with pytest.warns(UserWarning, match="expected a display to show the figure on"):
        FOUND.plot(show=True)
    plt.close("all")


def test_saved_result_draws_the_same_picture():
    back = TopologicalLRResult.from_dict(json.loads(json.dumps(FOUND.to_dict())))
    assert back.plot()._repr_png_() == FOUND.plot()._repr_png_()
