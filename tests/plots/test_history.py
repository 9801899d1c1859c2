"""Figures of a fit: what is drawn are the records, and nothing else is touched."""

import math
from types import SimpleNamespace

import pytest
from matplotlib import pyplot as plt

from lightning_topo.plots import (
    plot_criticality,
    plot_learning_rates,
    plot_neurons_left,
    plot_overview,
    plot_stretch,
)
from lightning_topo.plots.picture import png


def record(step, group, kappa, rate=0.1):
    return SimpleNamespace(
        step=step, group=group, learning_rate=rate, criticality=kappa, critical_lr=rate / kappa if kappa else math.inf,
        lower=1 - kappa / 2, upper=1 + kappa,
    )  # fmt: skip


RECORDS = [record(step, group, kappa) for step in range(5) for group, kappa in (("a", 0.1), ("b", 0.2 * (step + 1)))]


def lines(ax):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines}


def test_a_line_a_group_and_the_bound():
    ax = plot_criticality(RECORDS)
    drawn = lines(ax)
    assert drawn["a"] == [(step, 0.1) for step in range(5)]
    assert drawn["b"] == [(step, pytest.approx(0.2 * (step + 1))) for step in range(5)]
    assert ax.get_ylim()[1] > 1
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_of_long_names_the_legend_leaves_out_what_all_begin_with():
    names = [f"model.encoder.layers.{number}.linear1" for number in range(3)]
    ax = plot_criticality([record(0, name, 0.1) for name in names])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {f"…{number}.linear1" for number in range(3)}
    alone = plot_criticality([record(0, "a_name_of_one_part_that_is_long", 0.1)])
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["a_name_of_one_part_that_is_long"]


def test_of_many_groups_the_largest_have_names():
    many = [record(step, f"g{number}", 0.01 * (number + 1)) for number in range(20) for step in range(3)]
    ax = plot_criticality(many)
    names = {text.get_text() for text in ax.get_legend().get_texts()}
    assert names == {"g19", "g18", "g17", "17 other groups"}
    assert len([line for line in ax.lines if len(line.get_xdata()) == 3]) == 20


def test_rates_are_those_of_the_worst_group():
    sharpness = [SimpleNamespace(step=2, critical_lr=0.7), SimpleNamespace(step=3, critical_lr=None)]
    drawn = lines(plot_learning_rates(RECORDS, sharpness))
    assert drawn["learning rate η"] == [(step, 0.1) for step in range(5)]
    assert drawn["critical rate η*"] == [(step, pytest.approx(0.5 / (step + 1))) for step in range(5)]
    assert drawn["of the loss, η_c"] == [(2, 0.7)]


def test_squeeze_and_stretch_at_their_largest():
    drawn = lines(plot_stretch(RECORDS))
    assert drawn["1 - lower"] == [(step, pytest.approx(0.1 * (step + 1))) for step in range(5)]
    assert drawn["upper - 1"] == [(step, pytest.approx(0.2 * (step + 1))) for step in range(5)]


def test_neurons_left_as_a_share_of_the_first():
    rows = [SimpleNamespace(step=step, group="a", distinct=n, drift=(0.5,)) for step, n in ((50, 32), (0, 64))]
    assert lines(plot_neurons_left(rows))["a"] == [(0, 1.0), (50, 0.5)]
    for row in rows:
        row.distinct = None
    assert lines(plot_neurons_left(rows))["a"] == [(0, 0.5), (50, 0.5)]


@pytest.mark.parametrize("draw", [plot_criticality, plot_learning_rates, plot_stretch, plot_neurons_left])
@pytest.mark.parametrize(
    "records",
    [
        [],
        [SimpleNamespace(step=0, group="a", learning_rate=0.0, criticality=math.nan, critical_lr=math.nan,
                         lower=math.nan, upper=math.nan, distinct=None, drift=())],
        [SimpleNamespace(step=0, group="a", learning_rate=0.1, criticality=0.0, critical_lr=math.inf,
                         lower=1.0, upper=1.0, distinct=None, drift=(0.0,))],
    ],
)  # fmt: skip
def test_nothing_to_draw_is_a_figure_all_the_same(draw, records):
    assert png(draw(records).figure).startswith(b"\x89PNG")


def test_no_figure_is_left_in_pyplot_and_notebooks_see_a_picture():
    before = plt.get_fignums()
    ax = plot_criticality(RECORDS)
    assert ax._repr_png_().startswith(b"\x89PNG")
    assert png(plot_overview(RECORDS, title="a title")).startswith(b"\x89PNG")
    assert plt.get_fignums() == before


def test_axes_of_the_user_are_drawn_on():
    figure, ax = plt.subplots()
    try:
        assert plot_stretch(RECORDS, ax) is ax
    finally:
        plt.close(figure)
