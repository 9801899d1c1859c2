"""The course of a fit: criticality, learning rates, how far updates stretch and squeeze, and the neurons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_topo.plots._courses import (
    CRITICAL,
    OF_LOSS,
    RATE,
    courses_of,
    draw_courses,
    draw_line,
    draw_rates,
    finish,
    plain_ticks,
)
from lightning_topo.plots._style import GREY, new_axes, notebook_axes, show_if
from lightning_topo.plots.picture import card_letters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the rates are called, and in brief.
_LETTERS = {"learning rate η": "rate η", "critical rate η*": "η*", "of the loss, η_c": "η_c of the loss"}


def plot_criticality(records: Sequence[Any], ax: Axes | None = None, show: bool = False) -> Axes:
    """Plot κ of each neuron group over the steps, on a logarithmic axis.

    Above the dashed line, κ = 1, an update can merge neurons. The groups with the largest κ have a colour and a name,
    the others are grey.

    Args:
        records: A ``BiLipschitzMonitor``'s history.
        ax: Axes to draw on; default those of a new figure of 640x480 pixels, which is ``ax.figure``.
        show: Whether to open the figure in a window.

    Returns:
        The axes; as the last value of a notebook's cell they are shown.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> from lightning_topo.plots import plot_criticality
        >>> ax = plot_criticality([Record(step=step, group="fc1", criticality=0.1 / (step + 1)) for step in range(9)])
        >>> ax.get_ylabel()
        'criticality κ'
    """
    ax = notebook_axes(show) if ax is None else ax
    ax.set_yscale("log")
    courses = courses_of(records, lambda record: record.criticality or math.nan)
    draw_courses(ax, courses)
    low, high = ax.get_ylim() if courses else (0.1, 1.0)
    ax.axhline(1.0, color=GREY, lw=1, ls="--", zorder=1)
    ax.set(ylim=(low, max(high, 1.5)), ylabel="criticality κ", title="κ of each update")
    plain_ticks(ax)
    show_if(show)
    return ax


def worst_of_each_step(records: Iterable[Any]) -> list[Any]:
    """Of each step the record with the largest κ; steps of which no κ is known are left out."""
    worst: dict[int, Any] = {}
    for record in records:
        known = worst.get(record.step)
        if not math.isnan(record.criticality) and (known is None or record.criticality > known.criticality):
            worst[record.step] = record
    return [worst[step] for step in sorted(worst)]


def plot_learning_rates(
    records: Sequence[Any], sharpness: Sequence[Any] = (), ax: Axes | None = None, show: bool = False
) -> Axes:
    """Plot the learning rate η beside the critical rates, on a logarithmic axis.

    η* is that of the group with the largest κ, at each step; η_c is the critical rate of the loss, where it was
    measured.

    Args:
        records: A ``BiLipschitzMonitor``'s history.
        sharpness: A ``SharpnessMonitor``'s history.
        ax: Axes to draw on; default those of a new figure.
        show: Whether to open the figure in a window.

    Returns:
        The axes.
    """
    ax = notebook_axes(show) if ax is None else ax
    chosen = worst_of_each_step(records)
    of_loss = [(one.step, one.critical_lr) for one in sharpness if getattr(one, "critical_lr", None)]
    rate, critical, loss = _LETTERS
    lines = {
        rate: (RATE, [(one.step, one.learning_rate) for one in chosen]),
        critical: (CRITICAL, [(one.step, one.critical_lr) for one in chosen]),
        loss: (OF_LOSS, of_loss),
    }
    draw_rates(ax, lines, title="η below η*: neurons stay apart")
    show_if(show)
    return ax


def plot_stretch(records: Sequence[Any], ax: Axes | None = None, show: bool = False) -> Axes:
    """Plot how far each update squeezes and stretches distances between neurons: 1 - lower and upper - 1.

    Args:
        records: A ``BiLipschitzMonitor``'s history.
        ax: Axes to draw on; default those of a new figure.
        show: Whether to open the figure in a window.

    Returns:
        The axes.
    """
    ax = notebook_axes(show) if ax is None else ax
    squeeze: dict[int, float] = {}
    stretch: dict[int, float] = {}
    for record in records:
        if not math.isnan(record.lower):
            squeeze[record.step] = max(squeeze.get(record.step, 0.0), 1 - record.lower)
            stretch[record.step] = max(stretch.get(record.step, 0.0), record.upper - 1)
    for label, colour, course in (("1 - lower", RATE, squeeze), ("upper - 1", CRITICAL, stretch)):
        positive = [(step, value) for step, value in sorted(course.items()) if value > 0]
        draw_line(ax, positive, color=colour, label=label)
    ax.set(
        yscale="log",
        xlabel="step",
        ylabel="relative change of distances",
        title="How far each update squeezes and stretches",
    )
    finish(ax)
    show_if(show)
    return ax


def plot_neurons_left(records: Sequence[Any], ax: Axes | None = None, show: bool = False) -> Axes:
    """Plot what is left of the neurons of each group: the distinct ones, or how far the diagrams moved.

    Args:
        records: A ``PersistenceMonitor``'s history. Where its records count distinct neurons, their number is drawn
            as a share of the first; otherwise the largest drift, the bottleneck distance to the first diagrams.
        ax: Axes to draw on; default those of a new figure.
        show: Whether to open the figure in a window.

    Returns:
        The axes.
    """
    ax = notebook_axes(show) if ax is None else ax
    records = sorted(records, key=lambda record: record.step)  # that of the start may have been made later
    if counts_distinct(records):
        first = {record.group: record.distinct for record in reversed(records)}
        draw_courses(ax, courses_of(records, lambda record: record.distinct / first[record.group]), lowest=True)
        ax.set(ylabel="distinct neurons, share of the first", title="Neurons that are left", ylim=(0, 1.05))
    else:
        draw_courses(ax, courses_of(records, lambda record: max(record.drift, default=math.nan)))
        ax.set(ylabel="drift, share of the diameter", title="How far the topology has moved")
    show_if(show)
    return ax


def counts_distinct(records: Sequence[Any]) -> bool:
    """Whether all records of the topology count distinct neurons."""
    return bool(records) and all(getattr(record, "distinct", None) is not None for record in records)


def plot_overview(updates: Sequence[Any], sharpness: Sequence[Any] = (), title: str = "") -> Figure:
    """Draw one figure of a fit: κ of all groups above, the learning rate and the critical rates below.

    Args:
        updates: A ``BiLipschitzMonitor``'s history.
        sharpness: A ``SharpnessMonitor``'s history.
        title: What is written above.

    Returns:
        A figure of 640x480 pixels whose letters can be read on a card half as large.
    """
    with card_letters():
        above = new_axes(left=0.17, bottom=0.13)
        figure: Any = above.figure
        box = above.get_position()
        below = figure.add_axes((box.x0, box.y0, box.width, 0.41 * box.height), sharex=above)
        above.set_position((box.x0, box.y0 + 0.54 * box.height, box.width, 0.46 * box.height))
        plot_criticality(updates, above)
        plot_learning_rates(updates, sharpness, below)
        above.set(title=title, xlabel="", ylabel="")
        below.set(title="", ylabel="")
        above.tick_params(labelbottom=False)
        _legend_between(below)
    return figure


def _legend_between(ax: Axes) -> None:
    """The rates' letters in one row above the axes, where no line is."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        letters = [_LETTERS.get(label, label) for label in labels]
        ax.legend(handles, letters, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=3)
