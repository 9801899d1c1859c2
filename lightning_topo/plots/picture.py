"""A figure as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A figure of 640x480 pixels is shown at about half that size on a card of TensorBoard.
CARD_FONT = 15


def png(figure: Any, dpi: float | None = None) -> bytes:
    """Draw a matplotlib figure as a PNG file, at its own resolution or another; no display is needed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure" if dpi is None else dpi)
    return buffer.getvalue()


@contextmanager
def card_letters(size: float = CARD_FONT) -> Iterator[None]:
    """Draw with letters that can be read on a card that shows the figure at half its size."""
    from matplotlib import rc_context

    with rc_context({"font.size": size, "axes.titlesize": size, "legend.fontsize": size - 2}):
        yield


def set_card_title(ax: Axes, title: str) -> None:
    """Put a title on the left, in the place of the one in the middle, and make room for larger letters."""
    ax.set_title("")
    ax.set_title(title, loc="left", fontsize=CARD_FONT - 1)
    box = ax.get_position()
    ax.set_position((box.x0 + 0.03, box.y0 + 0.05, box.width - 0.03, box.height - 0.06))
