"""A figure as a picture."""

from __future__ import annotations

import io
from typing import Any


def png(figure: Any, dpi: float | None = None) -> bytes:
    """Draw a matplotlib figure as a PNG file, at its own resolution or another; no display is needed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure" if dpi is None else dpi)
    return buffer.getvalue()
