"""The barcode: one line a bar, from its birth to its death."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_topo.functional import Persistence
from lightning_topo.plots._style import GREY, dimension_style, new_axes, subscript

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.82  # height of a dimension's bars; the rest of its unit holds its label


def plot_barcode(persistence: Persistence, ax: Axes | None = None, *, scale: float = 0.25, max_bars: int = 100) -> Axes:
    """Plot the barcode of a neuron cloud, one band a homology dimension.

    The bars of a dimension are sorted by birth, then by death; bars that never die end in an arrow. The bars that cross
    the dotted line are alive at ``scale`` times the diameter.

    Args:
        persistence: The diagrams, e.g. of ``lightning_topo.functional.persistence``.
        ax: Axes to draw on; by default those of a new figure of 640x480 pixels, which is ``ax.figure``.
        scale: Where to draw the dotted line, as a share of the cloud's diameter.
        max_bars: The most bars to draw in a dimension, the longest ones; the band's label says how many were left out.

    Returns:
        The axes.

    Raises:
        ValueError: If ``max_bars`` is below 1.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence
        >>> from lightning_topo.plots import plot_barcode
        >>> t = torch.linspace(0, 6.2, 40)
        >>> ax = plot_barcode(persistence(torch.stack([t.cos(), t.sin()], dim=1)), max_bars=30)
        >>> [text.get_text() for text in ax.texts]
        ['H₀: 40 bars, 10 shortest not shown', 'H₁: 1 bar']
    """
    if max_bars < 1:
        raise ValueError(f"expected max_bars >= 1, got {max_bars}")
    ax = new_axes(left=0.03) if ax is None else ax
    diagrams = [np.asarray(diagram.cpu(), dtype=float) for diagram in persistence.diagrams]
    t = scale * persistence.diameter
    finite = np.concatenate([diagram[np.isfinite(diagram)] for diagram in diagrams] or [np.zeros(0)])
    right = 1.08 * max([1.05 * t, *finite]) or 1.0

    for k, diagram in enumerate(diagrams):
        _draw_band(ax, k, diagram, right, max_bars)
    ax.axvline(t, color=GREY, lw=1, ls=":", zorder=3)
    ax.set_title(f"dotted: {scale:g} · diameter", loc="right", fontsize="medium", color=GREY)
    ax.set(xlim=(-0.01 * right, 1.01 * right), ylim=(-0.04, len(diagrams) + 0.04), yticks=[])
    ax.set(xlabel="distance at which a bar is born and dies", title="Barcode")
    ax.spines[["top", "left", "right"]].set_visible(False)
    return ax


def _draw_band(ax: Axes, dimension: int, diagram: np.ndarray, right: float, max_bars: int) -> None:
    colour, _ = dimension_style(dimension)
    total = len(diagram)
    bars = _longest(diagram, max_bars)
    heights = dimension + _BAND * (np.arange(len(bars)) + 0.5) / max(len(bars), 1)
    ends = np.where(np.isinf(bars[:, 1]), right, bars[:, 1])
    # 320 points: about the height of the axes of a 640x480 figure, shared by the bands.
    width = float(np.clip(0.7 * 320 * _BAND / (max(len(bars), 1) * (dimension + 1)), 0.6, 3.0))
    ax.hlines(heights, bars[:, 0], ends, color=colour, lw=width)
    forever = np.isinf(bars[:, 1])
    ax.scatter(ends[forever], heights[forever], marker=">", s=30, color=colour, zorder=3)

    left_out = f", {total - len(bars)} shortest not shown" if total > len(bars) else ""
    label = f"H{subscript(dimension)}: {total} {'bar' if total == 1 else 'bars'}{left_out}"
    ax.annotate(label, (right, dimension + 0.5 * (1 + _BAND)), ha="right", va="center", color=colour)


def _longest(diagram: np.ndarray, count: int) -> np.ndarray:
    kept = diagram[np.argsort(diagram[:, 0] - diagram[:, 1], kind="stable")[:count]]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))]
