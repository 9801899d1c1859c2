"""Warnings that point at the user's own line, not at a library's that happens to call us."""

from __future__ import annotations

import sys
import warnings

_LIBRARIES = ("lightning_topo", "lightning", "pytorch_lightning", "lightning_fabric", "torch", "contextlib")


def warn_user(message: str) -> None:
    """Warn at the innermost line that is neither ours, nor Lightning's, nor torch's: the call of ``fit``, mostly."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
