"""Betti curves: how many components, loops and voids there are, at each scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_topo.functional import Persistence, betti_curves
from lightning_topo.plots._style import GREY, dimension_style, new_axes, subscript

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 600  # scales at which the curves are drawn: about one a pixel


def plot_betti_curves(
    persistence: Persistence, start: Persistence | None = None, ax: Axes | None = None, *, scale: float = 0.25
) -> Axes:
    """Plot the Betti numbers of a neuron cloud over all scales, one curve a homology dimension.

    Scales are shares of each cloud's own diameter. The axis of counts is logarithmic above 1: there are hundreds of
    components and a few loops.

    Args:
        persistence: The diagrams, e.g. of ``lightning_topo.functional.persistence``.
        start: Those of an earlier time, whose curves are drawn as thin, dashed lines.
        ax: Axes to draw on; by default those of a new figure of 640x480 pixels, which is ``ax.figure``.
        scale: Where to draw the dotted line, as a share of the cloud's diameter.

    Returns:
        The axes.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import persistence
        >>> from lightning_topo.plots import plot_betti_curves
        >>> t = torch.linspace(0, 6.2, 40)
        >>> ax = plot_betti_curves(persistence(torch.stack([t.cos(), t.sin()], dim=1)))
        >>> [line.get_label() for line in ax.lines[:2]]
        ['b₀', 'b₁']
    """
    from matplotlib.ticker import ScalarFormatter

    ax = new_axes() if ax is None else ax
    scales = torch.linspace(0.0, 1.0, _POINTS, dtype=torch.float64)
    for of, width, dashes in ((start, 1.0, "--"), (persistence, 2.0, "-")):
        if of is None:
            continue
        for k, curve in enumerate(betti_curves(of, scales)):
            colour, _ = dimension_style(k)
            label = f"b{subscript(k)}" + (" at the start" if of is start else "")
            ax.step(scales.numpy(), curve.numpy(), where="post", color=colour, label=label, lw=width, ls=dashes)
    ax.axvline(scale, color=GREY, lw=1, ls=":", zorder=0, label=f"{scale:.3g} · diameter")
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set(xlim=(0, 1), xlabel="scale, as a share of the diameter", ylabel="Betti number", title="Betti curves")
    ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
