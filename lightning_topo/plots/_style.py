"""What all figures share: axes without pyplot's global state, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from lightning_topo.plots.picture import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, one colour a homology dimension; the markers tell them apart in print.
DIMENSION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DIMENSION_MARKERS = ("o", "^", "s", "D")
# The same palette, for lines of neuron groups.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8a6d3b")
GREY = "#8a8a8a"
LIGHT_GREY = "#f1f1f1"
# Backends of matplotlib that draw into memory or files.
_WITHOUT_WINDOWS = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})


def new_axes(left: float = 0.13, right: float = 0.97, bottom: float = 0.11) -> Axes:
    """Make axes on a figure of 640x480 pixels that pyplot never hears of: no backend is needed and none leaks.

    The margins are given, as shares of width and height: a layout engine would take longer than all the drawing.
    """
    from matplotlib.figure import Figure

    margins = {"left": left, "right": right, "bottom": bottom, "top": 0.92}
    return Figure(figsize=(6.4, 4.8), dpi=100).subplots(gridspec_kw=margins)


def notebook_axes(show: bool = False) -> Axes:
    """Make axes that a notebook shows as the last value of a cell, or, to be shown in a window, pyplot's own."""
    if show:
        from matplotlib import pyplot as plt

        return plt.figure(figsize=(6.4, 4.8)).subplots()
    ax = new_axes()
    ax._repr_png_ = lambda: png(ax.figure)  # type: ignore[attr-defined]
    return ax


def show_if(show: bool) -> None:
    """Open pyplot's figures in windows, where that is asked for; say so where there is no display."""
    if not show:
        return
    from matplotlib import pyplot as plt

    backend = plt.get_backend()
    if backend.lower() in _WITHOUT_WINDOWS:
        warnings.warn(
            f"expected a display to show the figure on, got matplotlib's backend {backend!r}, which opens no window; "
            "save it instead: result.plot().figure.savefig('figure.png')",
            stacklevel=3,
        )
    plt.show()


def dimension_style(dimension: int) -> tuple[str, str]:
    """Return the colour and the marker of a homology dimension."""
    k = dimension % len(DIMENSION_COLOURS)
    return DIMENSION_COLOURS[k], DIMENSION_MARKERS[k]


def subscript(number: int) -> str:
    """Write a number in subscript digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def cyclic_colours(turns: np.ndarray) -> np.ndarray:
    """Map angles, as parts of a full turn, to RGB: orange, maroon, blue, teal and back."""
    anchors = np.array([[230, 159, 0], [122, 31, 75], [33, 102, 224], [95, 207, 184]]) / 255
    where = np.arange(len(anchors)) / len(anchors)
    return np.stack([np.interp(turns % 1.0, where, channel, period=1.0) for channel in anchors.T], axis=-1)
