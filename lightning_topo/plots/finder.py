"""The trials of a learning-rate search near its answer: criticality against the rate, and the course of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lightning_topo.plots._style import GREY, notebook_axes, show_if

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D

_HELD, _BROKEN, _RATE = "#0072B2", "#D55E00", "#009E73"
# Rates that are shown, over the ends of the bracket: farther trials only show the way that the search came.
_ABOVE, _BELOW = 4.0, 1.5
# Losses that are shown, over the largest of a trial that held: a loss that diverges leaves the picture.
_TALLEST = 3.0


class _Trial(Protocol):
    @property
    def lr(self) -> float: ...
    @property
    def held(self) -> bool: ...
    @property
    def max_criticality(self) -> float: ...
    @property
    def losses(self) -> Sequence[float]: ...


class _ShareTrial(Protocol):
    @property
    def lr(self) -> float: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def loss(self) -> float: ...


class _Result(Protocol):
    @property
    def trials(self) -> Sequence[_Trial]: ...
    @property
    def share_trials(self) -> Sequence[_ShareTrial]: ...
    @property
    def bracket(self) -> tuple[float, float]: ...
    @property
    def critical_lr(self) -> float | None: ...
    def suggestion(self, safety: float | None) -> float | None: ...


def plot_lr_search(
    result: _Result,
    ax: Axes | None = None,
    *,
    suggest: bool = True,
    show: bool = False,
    safety: float | None = None,
) -> Axes:
    r"""Plot a search for the critical learning rate, near its answer.

    Above, each trial is the point (η, largest κ) on logarithmic axes; it broke where κ >= 1, above the dashed line.
    Trials without a finite κ lie on the upper edge. The band is the bracket of η*, the solid line η*, the dotted one
    the suggestion, strokes at the lower edge the short trials that chose it. Trials at rates far above are left out,
    and counted at the right edge. Below, the course of each of these trials' losses, the darker the nearer its rate to
    η*, or that of a short trial to the suggestion; a cross is where a trial broke.

    Args:
        result: A ``TopologicalLRResult``.
        ax: Axes to draw on, whose lower half makes room for the losses; default a new figure of 640x480 pixels, which
            is ``ax.figure``.
        suggest: Whether to mark the suggestion.
        show: Whether to open the figure in a window, as ``pyplot.show`` does.
        safety: Share of η* that is suggested; default the result's own.

    Returns:
        The axes of κ; as the last value of a notebook's cell it is shown.

    Example:
        >>> from lightning_topo.finder import TopologicalLRResult, Trial
        >>> trials = (Trial(0.11, False, 2, 9.0, (2.3, 4.0)), Trial(0.1, True, None, 0.8, (2.3, 0.4)))
        >>> ax = plot_lr_search(TopologicalLRResult("found", (0.1, 0.11), trials))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['held', 'broke', 'η* = 0.105', 'suggestion 0.0262']
    """
    ax = notebook_axes(show) if ax is None else ax
    below = _lower_half(ax)
    low, high = _window(result, result.suggestion(safety) if suggest else None)
    near = [trial for trial in result.trials if low <= trial.lr <= high]
    handles = [*_draw_trials(ax, near), *_draw_rates(ax, result, safety if suggest else None, suggest)]
    handles += _draw_short(ax, [trial.lr for trial in result.share_trials])
    ax.set(xscale="log", yscale="log", xlim=(low, high), xlabel="learning rate η", ylabel="largest criticality κ")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_ticks(axis)
    ax.axhline(1.0, color=GREY, lw=1, ls="--", zorder=1)
    ax.set_title("Search for the critical learning rate", pad=24)
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "columnspacing": 1.2, "handletextpad": 0.5}
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=len(handles), **style)
    _note_farther(ax, [trial.lr for trial in result.trials if trial.lr > high])
    _draw_losses(below, near, result.critical_lr, result.bracket)
    _draw_short_losses(below, result.share_trials, result.suggestion(safety))
    _keep_crosses(below)
    show_if(show)
    return ax


def _plain_ticks(axis: Axis) -> None:
    """Few ticks of a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _lower_half(ax: Axes) -> Axes:
    """Axes in the lower part of the place of some others, which move up."""
    box = ax.get_position()
    ax.set_position((box.x0, box.y0 + 0.55 * box.height, box.width, 0.38 * box.height))
    return ax.figure.add_axes((box.x0, box.y0, box.width, 0.36 * box.height))


def _window(result: _Result, suggestion: float | None) -> tuple[float, float]:
    """The rates that are shown."""
    low, high = result.bracket
    short = [trial.lr for trial in result.share_trials]
    rates = [rate for rate in (low, high, suggestion, *short) if rate and math.isfinite(rate)]
    return min(rates) / _BELOW, max(rates) * _ABOVE


def _draw_trials(ax: Axes, trials: Sequence[_Trial]) -> Sequence[Artist]:
    # One that is known to be below 1, and no more, is 0.
    finite = [trial.max_criticality for trial in trials if 0 < trial.max_criticality < math.inf]
    lost = any(not math.isfinite(trial.max_criticality) for trial in trials)
    least, edge = min([0.5, *finite]) / 2, 10 * max([1.0, *finite])
    ax.set_ylim(least, 3 * (edge if lost else max([2.0, *finite])))
    handles = []
    for held, colour, marker, label in ((True, _HELD, "o", "held"), (False, _BROKEN, "^", "broke")):
        group = [trial for trial in trials if trial.held is held]
        if group:
            rates = [trial.lr for trial in group]
            kappas = [max(least, min(trial.max_criticality, edge)) for trial in group]
            handles.append(ax.scatter(rates, kappas, s=36, c=colour, marker=marker, label=label, zorder=3))
    if lost:
        ax.axhline(edge, color=GREY, lw=0.8, zorder=1)
        ax.annotate(
            "κ = ∞", (1, edge), (-3, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
    return handles


def _draw_rates(ax: Axes, result: _Result, safety: float | None, suggest: bool) -> Sequence[Artist]:
    if result.critical_lr is None:
        return []
    ax.axvspan(*result.bracket, color=_RATE, alpha=0.2, lw=0, zorder=0)
    handles = [ax.axvline(result.critical_lr, color=_RATE, lw=1.5, zorder=2, label=f"η* = {result.critical_lr:.3g}")]
    suggestion = result.suggestion(safety) if suggest else None
    if suggestion is not None:
        label = f"suggestion {suggestion:.3g}"
        handles.append(ax.axvline(suggestion, color=_RATE, lw=1.5, ls=":", zorder=2, label=label))
    return handles


def _draw_short(ax: Axes, rates: Sequence[float]) -> Sequence[Artist]:
    """Strokes at the lower edge."""
    if not rates:
        return []
    style: dict[str, Any] = {"s": 60, "c": _RATE, "marker": "|", "clip_on": False, "zorder": 3}
    return [ax.scatter(rates, [0.02] * len(rates), transform=ax.get_xaxis_transform(), label="short trials", **style)]


def _draw_short_losses(ax: Axes, trials: Sequence[_ShareTrial], suggestion: float | None) -> None:
    """The losses of the short trials, for which the axes are made if there are any."""
    courses = [(trial, [loss for loss in trial.losses if math.isfinite(loss)]) for trial in trials]
    courses = sorted(((t, losses) for t, losses in courses if len(losses) > 1), key=lambda course: -course[0].lr)
    handles: list[Line2D] = []
    for trial, losses in courses:
        away = 0.0 if suggestion is None else abs(math.log(trial.lr / suggestion))
        style: dict[str, Any] = {"color": _RATE, "alpha": max(0.3, 1 - 0.5 * away)}
        handles += ax.plot(losses, lw=1.5, label=f"{trial.lr:.3g}", **style)
    if handles:
        frame: dict[str, Any] = {"edgecolor": "none", "framealpha": 0.85, "fontsize": "small"}
        ax.legend(handles=handles, title="short trials at", loc="best", **frame)
    shown = [loss for trial, losses in courses if math.isfinite(trial.loss) for loss in losses]
    if shown and max(shown) > min(shown):
        margin = 0.1 * (max(shown) - min(shown))
        ax.set_ylim(min(shown) - margin, max(shown) + margin)


def _keep_crosses(ax: Axes) -> None:
    """Crosses of losses that leave the picture are drawn at its edge."""
    top = ax.get_ylim()[1]
    for line in ax.lines:
        if line.get_label() == "_broke":
            line.set_ydata(np.minimum(np.asarray(line.get_ydata(), dtype=float), top))
            line.set_clip_on(False)


def _note_farther(ax: Axes, rates: Sequence[float]) -> None:
    if rates:
        text = f"{len(rates)} more, up to {max(rates):.3g} →"
        ax.annotate(text, (1, 0), (-4, 4), "axes fraction", textcoords="offset points", ha="right", color=GREY)


def _draw_losses(ax: Axes, trials: Sequence[_Trial], critical: float | None, named: Sequence[float]) -> None:
    """The losses of trials that made more than one update, one line each; the rates of some are written at its end."""
    courses = [(trial, [loss for loss in trial.losses if math.isfinite(loss)]) for trial in trials]
    courses = [(trial, losses) for trial, losses in courses if len(losses) > 1]
    for trial, losses in sorted(courses, key=lambda course: course[0].lr, reverse=True):
        away = 0.0 if critical is None else abs(math.log(trial.lr / critical))
        style: dict[str, Any] = {"color": _HELD if trial.held else _BROKEN, "alpha": max(0.25, 1 - 0.6 * away)}
        end = len(losses) - 1, losses[-1]
        ax.plot(losses, lw=1.2, label=f"{trial.lr:.3g}", **style)
        if not trial.held:
            ax.plot(*end, "x", ms=6, label="_broke", **style)
        if trial.lr in named:
            ax.annotate(f"{trial.lr:.3g}", end, (6, 0), textcoords="offset points", va="center", size="small", **style)
    ax.set(xlabel="batch", ylabel="training loss")
    ax.margins(x=0.1)
    tops = [max(losses) for trial, losses in courses if trial.held] or [losses[0] for _, losses in courses]
    bottoms = [min(losses) for _, losses in courses]
    if courses and max(tops) > min(bottoms):
        span = max(tops) - min(bottoms)
        ax.set_ylim(min(bottoms) - 0.05 * span, min(bottoms) + (1 + 0.1 * _TALLEST) * span)
