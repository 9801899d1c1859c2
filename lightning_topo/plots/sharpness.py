"""The sharpness of the loss over a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_topo.plots._courses import CRITICAL, OF_LOSS, RATE, draw_rates
from lightning_topo.plots._style import notebook_axes, show_if

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sharpness(records: Sequence[Any], ax: Axes | None = None, show: bool = False) -> Axes:
    """Plot the learning rate η beside the critical rate η_c of the loss, on a logarithmic axis.

    Below η_c an update lowers the loss of its own batch. 2/λmax is drawn where λmax was measured: gradient descent is
    stable below it, and for a quadratic loss it is the least that η_c can be.

    Args:
        records: A ``SharpnessMonitor``'s history.
        ax: Axes to draw on; default those of a new figure.
        show: Whether to open the figure in a window.

    Returns:
        The axes.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> from lightning_topo.plots import plot_sharpness
        >>> records = [Record(step=step, learning_rate=0.1, critical_lr=0.5, inverse=0.2) for step in range(3)]
        >>> [line.get_label() for line in plot_sharpness(records).lines]
        ['learning rate η', 'critical rate of the loss, η_c', '2/λmax']
    """
    ax = notebook_axes(show) if ax is None else ax
    lines = {
        "learning rate η": (RATE, [(one.step, one.learning_rate) for one in records]),
        "critical rate of the loss, η_c": (OF_LOSS, [(one.step, one.critical_lr) for one in records]),
        "2/λmax": (CRITICAL, [(one.step, 2 * one.inverse) for one in records]),
    }
    draw_rates(ax, lines, title="η below η_c: updates lower the loss of their batch")
    show_if(show)
    return ax
