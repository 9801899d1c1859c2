"""The persistence diagram: one point a bar, its birth against its death."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_topo.functional import Persistence, betti_numbers
from lightning_topo.plots._style import GREY, LIGHT_GREY, dimension_style, new_axes, subscript

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_ALIVE = "#E69F00"


def plot_persistence_diagram(persistence: Persistence, ax: Axes | None = None, *, scale: float = 0.25) -> Axes:
    r"""Plot the persistence diagrams of a neuron cloud, one colour a homology dimension.

    A bar is the point (birth, death); the further above the diagonal, the longer it lives. Bars that never die stand on
    the line ∞ at the top. The bars in the shaded quadrant, $birth \le t < death$ at t = ``scale`` · diameter, are
    alive at that scale: their number in dimension k is the Betti number $\beta_k$ of the legend.

    Args:
        persistence: The diagrams, e.g. of ``lightning_topo.functional.persistence``.
        ax: Axes to draw on; by default those of a new figure of 640x480 pixels, which is ``ax.figure``.
        scale: Where to count the Betti numbers, as a share of the cloud's diameter.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence
        >>> from lightning_topo.plots import plot_persistence_diagram
        >>> t = torch.linspace(0, 6.2, 40)
        >>> ax = plot_persistence_diagram(persistence(torch.stack([t.cos(), t.sin()], dim=1)))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['H₀: 40 bars, β₀ = 1', 'H₁: 1 bar, β₁ = 1', 'alive at 0.25 · diameter']
    """
    ax = new_axes() if ax is None else ax
    diagrams = [np.asarray(diagram.cpu(), dtype=float) for diagram in persistence.diagrams]
    t = scale * persistence.diameter
    top = _top(diagrams, t)
    infinity = 1.08 * top

    _draw_frame(ax, top, infinity)
    for k, (diagram, betti) in enumerate(zip(diagrams, betti_numbers(persistence, scale), strict=True)):
        colour, marker = dimension_style(k)
        deaths = np.where(np.isinf(diagram[:, 1]), infinity, diagram[:, 1])
        index, bars = subscript(k), "bar" if len(diagram) == 1 else "bars"
        label = f"H{index}: {len(diagram)} {bars}, β{index} = {betti}"
        ax.scatter(
            diagram[:, 0], deaths, s=26, c=colour, marker=marker, alpha=0.75, lw=0.4, ec="white", label=label, zorder=3
        )
    _shade_alive(ax, t, infinity, f"alive at {scale:g} · diameter")
    ax.legend(loc="lower right", frameon=False)  # below the diagonal there is never a point
    return ax


def _top(diagrams: list[np.ndarray], t: float) -> float:
    finite = [diagram[np.isfinite(diagram)] for diagram in diagrams]
    top = max([1.05 * t, *(float(values.max()) for values in finite if values.size)])
    return top if top > 0 else 1.0


def _draw_frame(ax: Axes, top: float, infinity: float) -> None:
    low, high = -0.03 * top, 1.04 * top
    ax.fill_between([low, high], [low, high], low, color=LIGHT_GREY, lw=0, zorder=0)
    ax.plot([low, high], [low, high], color=GREY, lw=1, zorder=1)
    ax.plot([low, high], [infinity, infinity], color=GREY, lw=1, ls="--", zorder=1)
    ax.annotate("∞", (high, infinity), (5, 0), textcoords="offset points", va="center", annotation_clip=False)
    ax.set(xlim=(low, high), ylim=(low, infinity + 0.04 * top), xlabel="birth", ylabel="death")
    ax.set_title("Persistence diagram")
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)


def _shade_alive(ax: Axes, t: float, infinity: float, label: str) -> None:
    left = ax.get_xlim()[0]
    ax.fill([left, t, t, left], [t, t, infinity, infinity], color=_ALIVE, alpha=0.15, lw=0, zorder=0, label=label)
    ax.plot([left, t, t], [t, t, infinity], color=_ALIVE, lw=1, ls=":", zorder=1)
