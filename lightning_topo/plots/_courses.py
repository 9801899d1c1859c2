"""Lines over the steps of a fit, as all figures of a course draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lightning_topo.plots._style import GREY, LINE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Courses of so few points are drawn with a marker at each: between them nothing was measured.
_FEW_POINTS = 60
# So many groups get a colour each, the ones with the largest values; the rest are grey.
_MOST_COLOURED = len(LINE_COLOURS)
# Letters of a name of which two are wider than the axes, also with the large letters of a card.
_LONG_NAME = 20
# A logarithmic axis of fewer decades has ticks within them.
_NARROW = 300.0
RATE, CRITICAL, OF_LOSS = "#0072B2", "#D55E00", "#009E73"


def courses_of(records: Iterable[Any], value: Callable[[Any], float]) -> dict[str, list[tuple[int, float]]]:
    """Of each group its steps with their values, those that are finite."""
    courses: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if math.isfinite(value(record)):
            courses.setdefault(record.group, []).append((record.step, value(record)))
    return courses


def draw_courses(ax: Axes, courses: dict[str, list[tuple[int, float]]], lowest: bool = False) -> None:
    """A line a group; those that matter most in colour, the others grey."""
    sign = -1 if lowest else 1
    order = sorted(courses, key=lambda name: max(sign * value for _, value in courses[name]), reverse=True)
    labels = _shortened(order)
    coloured = order[:_MOST_COLOURED] if len(order) <= _MOST_COLOURED else order[:3]
    for name in reversed(order):
        if name in coloured:
            draw_line(ax, courses[name], color=LINE_COLOURS[coloured.index(name)], label=labels[name], zorder=3)
        else:
            draw_line(ax, courses[name], color=GREY, alpha=0.5, label="_" + name, zorder=2)
    if len(order) > len(coloured):
        ax.plot([], [], color=GREY, alpha=0.5, label=f"{len(order) - len(coloured)} other groups")
    ax.set_xlabel("step")
    finish(ax)


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Names for a legend: where some are long, what they all begin with is left out."""
    if not names or max(map(len, names)) <= _LONG_NAME:
        return {name: name for name in names}
    parents = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len(set(parts)) == 1, parents))
    return {name: f"…{name.removeprefix(shared)}" if shared else name for name in names}


def plain_ticks(ax: Axes) -> None:
    """Few ticks of a logarithmic axis, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    narrow = high < _NARROW * low
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if narrow else (1.0,), numticks=6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_line(ax: Axes, course: Sequence[tuple[float, float]], **style: Any) -> None:
    """One line, with a marker at each point where there are few."""
    if course:
        few = len(course) <= _FEW_POINTS
        ax.plot(*zip(*course, strict=True), lw=1.5, marker="o" if few else None, ms=3.5, **style)


def draw_rates(ax: Axes, lines: Mapping[str, tuple[str, Sequence[tuple[int, float]]]], title: str) -> None:
    """Rates on a logarithmic axis: of each label its colour, and steps with their rates, of which positive ones."""
    for label, (colour, course) in lines.items():
        draw_line(ax, [(step, rate) for step, rate in course if 0 < rate < math.inf], color=colour, label=label)
    ax.set(yscale="log", xlabel="step", ylabel="learning rate", title=title)
    finish(ax)


def finish(ax: Axes) -> None:
    """Ticks, legend and frame; where nothing was drawn it says so."""
    if ax.get_yscale() == "log":
        plain_ticks(ax)
    ax.spines[["top", "right"]].set_visible(False)
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        columns = 2 if max(map(len, labels)) <= _LONG_NAME else 1
        ax.legend(frameon=False, loc="best", ncols=columns, columnspacing=1.0, handlelength=1.2)
    else:
        ax.annotate("nothing was measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
