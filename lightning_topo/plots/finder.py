"""The trials of a learning-rate search: criticality and final loss against the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lightning_topo.plots._style import GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HELD, _BROKEN, _RATE = "#0072B2", "#D55E00", "#009E73"


class _Trial(Protocol):
    @property
    def lr(self) -> float: ...
    @property
    def held(self) -> bool: ...
    @property
    def max_criticality(self) -> float: ...
    @property
    def losses(self) -> Sequence[float]: ...


class _Result(Protocol):
    @property
    def trials(self) -> Sequence[_Trial]: ...
    @property
    def bracket(self) -> tuple[float, float]: ...
    @property
    def critical_lr(self) -> float | None: ...
    def suggestion(self, safety: float) -> float | None: ...


def plot_lr_search(result: _Result, ax: Axes | None = None, *, safety: float = 0.25) -> Axes:
    r"""Plot the trials of a search for the critical learning rate.

    Each trial is the point (η, largest κ); it broke where κ >= 1, above the dashed line. Trials without a finite κ lie
    on the upper edge. Crosses are the last training loss of each trial, on the right axis. The band is the bracket of
    η*, the solid line η*, the dotted one the suggestion ``safety`` · η*. All axes are logarithmic.

    Args:
        result: A ``TopologicalLRResult``.
        ax: Axes to draw on; by default those of a new figure of 640x480 pixels, which is ``ax.figure``.
        safety: Share of η* that is suggested.

    Returns:
        The axes of κ.

    Example:
        >>> from lightning_topo.finder import TopologicalLRResult, Trial
        >>> trials = (Trial(0.3, False, 2, 9.0, (2.3, 4.0)), Trial(0.1, True, None, 0.8, (2.3, 0.4)))
        >>> ax = plot_lr_search(TopologicalLRResult("found", (0.1, 0.11), trials))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['held', 'broke', 'last loss', 'η* = 0.105', 'suggestion 0.0262']
    """
    ax = new_axes(right=0.87, bottom=0.24) if ax is None else ax
    losses = ax.twinx()
    ax.set_zorder(losses.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.set(xscale="log", yscale="log", xlabel="learning rate η", ylabel="largest criticality κ")
    losses.set(yscale="log", ylabel="last training loss")
    losses.yaxis.label.set_color(GREY)
    losses.tick_params(axis="y", which="both", colors=GREY)

    handles = [*_draw_trials(ax, result.trials), *_draw_losses(losses, result.trials)]
    ax.axhline(1.0, color=GREY, lw=1, ls="--", zorder=1)
    handles += _draw_rates(ax, result, safety)
    ax.set_title("Search for the critical learning rate")
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    return ax


def _draw_trials(ax: Axes, trials: Sequence[_Trial]) -> list:
    finite = [trial.max_criticality for trial in trials if math.isfinite(trial.max_criticality)]
    edge = 10 * max([1.0, *finite])
    handles = []
    for held, colour, marker, label in ((True, _HELD, "o", "held"), (False, _BROKEN, "^", "broke")):
        group = [trial for trial in trials if trial.held is held]
        if group:
            rates = [trial.lr for trial in group]
            kappas = [min(trial.max_criticality, edge) for trial in group]
            handles.append(ax.scatter(rates, kappas, s=36, c=colour, marker=marker, label=label, zorder=3))
    if len(finite) < len(trials):
        ax.axhline(edge, color=GREY, lw=0.8, zorder=1)
        ax.annotate(
            "κ = ∞", (1, edge), (-3, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
    return handles


def _draw_losses(ax: Axes, trials: Sequence[_Trial]) -> list:
    last = [(trial.lr, trial.losses[-1]) for trial in trials if trial.losses and trial.losses[-1] > 0]
    rates, losses = (
        [rate for rate, loss in last if math.isfinite(loss)],
        [loss for _, loss in last if math.isfinite(loss)],
    )
    return [ax.scatter(rates, losses, s=24, c=GREY, marker="x", lw=1, label="last loss")] if losses else []


def _draw_rates(ax: Axes, result: _Result, safety: float) -> list:
    suggestion = result.suggestion(safety)
    if result.critical_lr is None or suggestion is None:
        return []
    ax.axvspan(*result.bracket, color=_RATE, alpha=0.2, lw=0, zorder=0)
    critical = ax.axvline(result.critical_lr, color=_RATE, lw=1.5, zorder=2, label=f"η* = {result.critical_lr:.3g}")
    return [
        critical,
        ax.axvline(suggestion, color=_RATE, lw=1.5, ls=":", zorder=2, label=f"suggestion {suggestion:.3g}"),
    ]
